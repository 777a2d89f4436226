// The words of the panel kernels where a 4-way dot product is all there is: their operands are the decoder's.
#pragma once

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kPanelSide = 1;
using PanelActs = Acts;
inline void store_panel(int8_t*, const int8_t*) {}
inline PanelActs panel_acts(const int8_t* p) { return broadcast_acts(p); }
template <bool Small>
I32 panel_dot(I32 acc, Row w, PanelActs a) {
  return Small ? small_dot(acc, w, a) : dot(acc, w, a);
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
