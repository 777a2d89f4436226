// The words of the panel kernels where a 4-way dot product is all there is: their operands are the decoder's.
#pragma once

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kPanelSide = 1;
template <class Rows>
inline void store_panel(int8_t* p, const Rows* w, int i) {
  store_row(p, w[0][i]);
}
inline Acts panel_acts(const int8_t* p) { return load_acts(p); }
inline I32 panel_dot(I32 acc, Row w, Acts a) { return dot(acc, w, a); }

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
