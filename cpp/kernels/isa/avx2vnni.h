// AVX2 with AVX-VNNI (Alder Lake, Sierra Forest, Zen 5 and later). Row operands are unsigned: small values, or value + 128.
#pragma once

namespace tq::kernels::avx2vnni {

inline constexpr char kName[] = "avx2vnni";
inline constexpr int kOffset = 128, kPanelTokens = 4, kFloatTokens = 6;
inline constexpr bool kPairSums = false;

}  // namespace tq::kernels::avx2vnni

#include "kernels/isa/avx2_common.h"

namespace tq::kernels::avx2vnni {

inline I32 dot(I32 acc, Row w, Acts a) { return _mm256_dpbusd_avx_epi32(acc, w, a); }
inline I32 dot(I32 acc, Split w, Acts a) { return dot(acc, w.magnitude, _mm256_sign_epi8(a, w.sign)); }
inline I32 small_dot(I32 acc, Row w, Acts a) { return dot(acc, w, a); }
inline PairSums add_products(PairSums sum, Wide v, Wide w) { return _mm256_dpwssd_avx_epi32(sum, v, w); }

}  // namespace tq::kernels::avx2vnni

#include "kernels/isa/dot_panel.h"
#include "kernels/isa/no_pairs.h"
