// Plain C++ in fours, which compilers turn into the vectors that every machine of the architecture has (SSE2, NEON).
#include "quant/isa_body.h"

namespace tq::quant {
namespace {

struct Floats {
  static constexpr int kLanes = 4;
  float x[kLanes];

  static Floats load(const float* p) { return {p[0], p[1], p[2], p[3]}; }
  static Floats all(float x) { return {x, x, x, x}; }
  void store(float* p) const { std::memcpy(p, x, sizeof x); }
  template <int run>  // lane i = p[i / run]
  static Floats runs(const float* p) {
    return {p[0], p[1 / run], p[2 / run], p[3 / run]};
  }
  static void zip(const Floats a, const Floats b, Floats& low, Floats& high) {
    low = {a.x[0], b.x[0], a.x[1], b.x[1]};
    high = {a.x[2], b.x[2], a.x[3], b.x[3]};
  }
  friend Floats operator+(Floats a, const Floats& b) {
    for (int i = 0; i < kLanes; i++) a.x[i] += b.x[i];
    return a;
  }
  friend Floats multiply_add(const Floats& a, const Floats& b, Floats c) {
    for (int i = 0; i < kLanes; i++) c.x[i] += a.x[i] * b.x[i];
    return c;
  }
  friend Floats min(Floats a, const Floats& b) {
    for (int i = 0; i < kLanes; i++) a.x[i] = b.x[i] < a.x[i] ? b.x[i] : a.x[i];
    return a;
  }
};

}  // namespace

#if defined(TQ_ARM)
extern const Isa kScalar = isa_of<Floats>("neon");
#else
extern const Isa kScalar = isa_of<Floats>("scalar");
#endif

}  // namespace tq::quant
