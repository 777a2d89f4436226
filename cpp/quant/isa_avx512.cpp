#include <immintrin.h>

#include "quant/isa_body.h"

namespace tq::quant {
namespace {

struct Floats {
  static constexpr int kLanes = 16, kSums = 4;
  __m512 x;

  static Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Floats all(float x) { return {_mm512_set1_ps(x)}; }
  void store(float* p) const { _mm512_storeu_ps(p, x); }
  template <int run>  // lane i = p[i / run]
  static Floats runs(const float* p) {
    if constexpr (run >= kLanes) return {_mm512_set1_ps(*p)};
    const __m512i lane = _mm512_setr_epi32(0, 1 / run, 2 / run, 3 / run, 4 / run, 5 / run, 6 / run, 7 / run, 8 / run, 9 / run, 10 / run,
                                           11 / run, 12 / run, 13 / run, 14 / run, 15 / run);
    return {_mm512_permutexvar_ps(lane, _mm512_broadcast_f32x4(_mm_loadu_ps(p)))};
  }
  static void zip(Floats a, Floats b, Floats& low, Floats& high) {
    low.x = _mm512_permutex2var_ps(a.x, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b.x);
    high.x = _mm512_permutex2var_ps(a.x, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b.x);
  }
  friend Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.x, b.x)}; }
  friend Floats multiply_add(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }
  friend Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.x, b.x)}; }
};

}  // namespace

extern const Isa kAvx512 = isa_of<Floats>("avx512");

}  // namespace tq::quant
