// NEON with int8 matrix products (FEAT_I8MM: Armv8.6, Neoverse V1 and N2 and later): `smmla` multiplies 2 rows x 8 columns by 8 columns x 2
// tokens, twice the products of `sdot`. Panels are kept in that shape; a single token is multiplied as in neon.h.
#pragma once
#include "kernels/isa/neon_common.h"

namespace tq::kernels::neoni8mm {

inline constexpr char kName[] = "neoni8mm";
inline constexpr int kPanelSide = 2;

// The operands of two tiles, 4 rows x 4 columns each, as two operands of 2 rows x 8 columns.
inline void store_panel(int8_t* p, const int8_t* values) {
  for (int row = 0; row < tqn::kTileRows; row += kLanes, p += 2 * kRowBytes) {
    const int32x4_t left = vreinterpretq_s32_s8(vld1q_s8(values + 4 * row));
    const int32x4_t right = vreinterpretq_s32_s8(vld1q_s8(values + tqn::kTileSteps + 4 * row));
    vst1q_s8(p, vreinterpretq_s8_s32(vzip1q_s32(left, right)));
    vst1q_s8(p + kRowBytes, vreinterpretq_s8_s32(vzip2q_s32(left, right)));
  }
}
using PanelActs = int8x16_t;
inline PanelActs panel_acts(const int8_t* p) { return vld1q_s8(p); }
// (2 tokens, 2 rows) += a (2 tokens, 8 columns) * w (2 rows, 8 columns)^T
template <bool>
I32 panel_dot(I32 acc, Row w, PanelActs a) {
  return vmmlaq_s32(acc, a, w);
}

}  // namespace tq::kernels::neoni8mm
