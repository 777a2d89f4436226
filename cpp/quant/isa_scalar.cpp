// Vectors of four in the compiler's own notation: what every machine of an architecture has (SSE2, NEON), plain code where it has none.
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "quant/isa_body.h"

namespace tq::quant {
namespace {

typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourIntegers __attribute__((vector_size(16)));

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
  friend Floats operator+(Floats a, Floats b) { return {a.x + b.x}; }
  friend Floats multiply_add(Floats a, Floats b, Floats c) { return {a.x * b.x + c.x}; }
};

struct Integers {
  static constexpr int kLanes = 4;
  FourIntegers x;

  static Integers load(const void* p) {
    Integers v;
    std::memcpy(&v.x, p, sizeof v.x);
    return v;
  }
  void store(int32_t* p) const { std::memcpy(p, &x, sizeof x); }
  template <int k>
  static Integers spread(const int32_t* p) {
    if constexpr (k == 1) return {FourIntegers{p[0], p[0], p[1], p[1]}};
    return {FourIntegers{*p, *p, *p, *p}};
  }
#if defined(__SSE2__)
  static Integers pair(tqn::StepCost step) {
    const int32_t both = uint16_t(step.slope) | step.weight << 16;
    return {FourIntegers{both, both, both, both}};
  }
  static Integers distance(const ValuePair* p, Integers pair) {
    return {FourIntegers(_mm_madd_epi16(__m128i(load(p).x), __m128i(pair.x)))};
  }
#else
  static tqn::StepCost pair(tqn::StepCost step) { return step; }
  static Integers distance(const ValuePair* p, tqn::StepCost step) {
    const FourIntegers both = load(p).x;
    return {(both << 16 >> 16) * step.slope + (both >> 16) * step.weight};
  }
#endif
  friend Integers operator+(Integers a, Integers b) { return {a.x + b.x}; }
  friend Integers min(Integers a, Integers b) { return {b.x < a.x ? b.x : a.x}; }
};

}  // namespace

#if defined(TQ_ARM)
extern const Isa kScalar = isa_of<Floats, Integers>("neon");
#else
extern const Isa kScalar = isa_of<Floats, Integers>("scalar");
#endif

}  // namespace tq::quant
