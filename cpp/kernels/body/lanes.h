// Small matrices of lanes, kLanes registers of kLanes floats: log2(kLanes) stages that exchange off-diagonal blocks.
#pragma once

namespace tq::kernels::TQ_ISA_NAMESPACE {

template <int D = kLanes / 2>
inline void transpose(F32* v) {
  if constexpr (D > 0) {
    for (int i = 0; i < kLanes; i++) {
      if (i & D) continue;
      const F32 a = v[i], b = v[i + D];
      v[i] = exchange_low<D>(a, b);
      v[i + D] = exchange_high<D>(a, b);
    }
    transpose<D / 2>(v);
  }
}

// Lane i of the result is the sum of v[i]; v is used up. With Apart > 1, v holds every Apart-th register of those, and the stages end
// where the others are needed: row_sums<Apart / 2> of what all of them give is the result.
template <int D = kLanes / 2, int Apart = 1>
inline F32 row_sums(F32* v) {
  if constexpr (D >= Apart) {
    constexpr int kHalf = D / Apart;
    for (int i = 0; i < kHalf; i++) v[i] = exchange_low<D>(v[i], v[i + kHalf]) + exchange_high<D>(v[i], v[i + kHalf]);
    return row_sums<D / 2, Apart>(v);
  } else {
    return v[0];
  }
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
