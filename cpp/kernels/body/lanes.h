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

// Lane i of the result is the sum of v[i]; v is used up.
template <int D = kLanes / 2>
inline F32 row_sums(F32* v) {
  if constexpr (D > 0) {
    for (int i = 0; i < D; i++) v[i] = exchange_low<D>(v[i], v[i + D]) + exchange_high<D>(v[i], v[i + D]);
    return row_sums<D / 2>(v);
  } else {
    return v[0];
  }
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
