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
  friend Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.x, b.x)}; }
  friend Floats multiply_add(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.x, b.x, c.x)}; }
};

struct Integers {
  static constexpr int kLanes = 16;
  __m512i x;

  static Integers load(const void* p) { return {_mm512_loadu_si512(p)}; }
  void store(int32_t* p) const { _mm512_storeu_si512(p, x); }
  template <int k>
  static Integers spread(const int32_t* p) {
    if constexpr (k == 4) return {_mm512_set1_epi32(*p)};
    if constexpr (k == 1) {
      const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      return {_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), _mm512_castsi256_si512(eight))};
    }
    const __m128i few =
        k == 2 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)) : _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m512i from = k == 2 ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
                                : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return {_mm512_permutexvar_epi32(from, _mm512_castsi128_si512(few))};
  }
  static Integers pair(tqn::StepCost step) { return {_mm512_set1_epi32(uint16_t(step.slope) | step.weight << 16)}; }
  static Integers distance(const ValuePair* p, Integers pair) { return {_mm512_madd_epi16(load(p).x, pair.x)}; }
  friend Integers operator+(Integers a, Integers b) { return {_mm512_add_epi32(a.x, b.x)}; }
  friend Integers min(Integers a, Integers b) { return {_mm512_min_epi32(a.x, b.x)}; }
};

}  // namespace

extern const Isa kAvx512 = isa_of<Floats, Integers>("avx512");

}  // namespace tq::quant
