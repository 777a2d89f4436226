#include <immintrin.h>

#include "quant/isa_body.h"

namespace tq::quant {
namespace {

struct Floats {
  static constexpr int kLanes = 8, kSums = 2;
  __m256 x;

  static Floats load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Floats all(float x) { return {_mm256_set1_ps(x)}; }
  void store(float* p) const { _mm256_storeu_ps(p, x); }
  template <int run>  // lane i = p[i / run]
  static Floats runs(const float* p) {
    if constexpr (run >= kLanes)
      return {_mm256_broadcast_ss(p)};
    else
      return {_mm256_setr_m128(_mm_broadcast_ss(p), _mm_broadcast_ss(p + 1))};
  }
  static void zip(Floats a, Floats b, Floats& low, Floats& high) {
    const __m256 l = _mm256_unpacklo_ps(a.x, b.x), h = _mm256_unpackhi_ps(a.x, b.x);
    low.x = _mm256_permute2f128_ps(l, h, 0x20);
    high.x = _mm256_permute2f128_ps(l, h, 0x31);
  }
  friend Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.x, b.x)}; }
  friend Floats multiply_add(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.x, b.x, c.x)}; }
  friend Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.x, b.x)}; }
};

}  // namespace

extern const Isa kAvx2 = isa_of<Floats>("avx2");

}  // namespace tq::quant
