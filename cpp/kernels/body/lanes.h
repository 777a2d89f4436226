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

// Lane i of the result is the sum of v[i]; v is used up. In steps: row_sums<1, D> of every D registers, then row_sums<D> of what they give.
template <int D = 1, int End = kLanes>
inline F32 row_sums(F32* v) {
  if constexpr (D < End) {
    for (int i = 0; i < End / D / 2; i++) {
      const F32 a = v[2 * i], b = v[2 * i + 1];
      v[i] = exchange_low<D>(a, b) + exchange_high<D>(a, b);
    }
    return row_sums<2 * D, End>(v);
  } else {
    return v[0];
  }
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
