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
  friend Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.x, b.x)}; }
  friend Floats multiply_add(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.x, b.x, c.x)}; }
};

struct Integers {
  static constexpr int kLanes = 8;
  __m256i x;

  static Integers load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
  void store(int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  template <int k>
  static Integers spread(const int32_t* p) {
    if constexpr (k >= 3) return {_mm256_set1_epi32(*p)};
    const __m256 four = k == 1 ? _mm256_castsi256_ps(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))
                               : _mm256_castpd_ps(_mm256_broadcast_sd(reinterpret_cast<const double*>(p)));
    const __m256i from = k == 1 ? _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3) : _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    return {_mm256_castps_si256(_mm256_permutevar_ps(four, from))};
  }
  static Integers pair(tqn::StepCost step) { return {_mm256_set1_epi32(uint16_t(step.slope) | step.weight << 16)}; }
  static Integers distance(const ValuePair* p, Integers pair) { return {_mm256_madd_epi16(load(p).x, pair.x)}; }
  friend Integers operator+(Integers a, Integers b) { return {_mm256_add_epi32(a.x, b.x)}; }
  friend Integers min(Integers a, Integers b) { return {_mm256_min_epi32(a.x, b.x)}; }
};

}  // namespace

extern const Isa kAvx2 = isa_of<Floats, Integers>("avx2");

}  // namespace tq::quant
