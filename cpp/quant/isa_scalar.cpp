// Vectors of four in the compiler's own notation: what every machine of an architecture has (SSE2, NEON), plain code where it has none.
#include "quant/isa_body.h"

namespace tq::quant {
namespace {

typedef float Four __attribute__((vector_size(16)));

struct Floats {
  static constexpr int kLanes = 4, kSums = 2;
  Four x;

  static Floats load(const float* p) {
    Floats v;
    std::memcpy(&v.x, p, sizeof v.x);
    return v;
  }
  static Floats all(float x) { return {Four{x, x, x, x}}; }
  void store(float* p) const { std::memcpy(p, &x, sizeof x); }
  template <int run>  // lane i = p[i / run]
  static Floats runs(const float* p) {
    static_assert(run >= kLanes);
    return all(*p);
  }
  static void zip(Floats a, Floats b, Floats& low, Floats& high) {
    low.x = __builtin_shufflevector(a.x, b.x, 0, 4, 1, 5);
    high.x = __builtin_shufflevector(a.x, b.x, 2, 6, 3, 7);
  }
  friend Floats operator+(Floats a, Floats b) { return {a.x + b.x}; }
  friend Floats multiply_add(Floats a, Floats b, Floats c) { return {a.x * b.x + c.x}; }
  friend Floats min(Floats a, Floats b) { return {b.x < a.x ? b.x : a.x}; }
};

}  // namespace

#if defined(TQ_ARM)
extern const Isa kScalar = isa_of<Floats>("neon");
#else
extern const Isa kScalar = isa_of<Floats>("scalar");
#endif

}  // namespace tq::quant
