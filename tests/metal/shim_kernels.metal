// Kernels that try the shim: lanes write what they found wrong, or what they see.
#include "kernel.h"

inline uint shim_value(uint lane) { return lane * lane + 3; }

kernel void shim_simd(device uint* out [[buffer(0)]], TQ_IDS) {
  const uint mine = shim_value(lane);
  uint sum = 0, wrong = 0, below = 0;
  for (uint l = 0; l < 32; l++) sum += shim_value(l), below += l < lane ? shim_value(l) : 0;
  wrong += simd_sum(mine) != sum;
  wrong += simd_max(mine) != shim_value(31);
  wrong += simd_min(float(mine)) != float(shim_value(0));
  wrong += simd_or(1u << lane) != 0xFFFFFFFFu;
  wrong += simd_shuffle(mine, ushort((lane * 5 + 1) % 32)) != shim_value((lane * 5 + 1) % 32);
  wrong += simd_shuffle_xor(mine, 9) != shim_value(lane ^ 9);
  const uint down = simd_shuffle_down(mine, 4), up = simd_shuffle_up(mine, 4);
  wrong += lane < 28 && down != shim_value(lane + 4);
  wrong += lane >= 4 && up != shim_value(lane - 4);
  wrong += simd_broadcast(mine, 17) != shim_value(17);
  wrong += simd_prefix_exclusive_sum(mine) != below;
  wrong += as_type<uint>(1.0f) != 0x3F800000u;
  wrong += float(half(2049.0f)) != 2048.0f || float(half(2051.0f)) != 2052.0f || float(half(0x1p-24f)) != 0x1p-24f;
  wrong += size.x != 96 || groups.x != 3 || tid != sg * 32 + lane;
  out[group.x * size.x + tid] = wrong;
}
TQ_KERNEL(shim_simd)

kernel void shim_reverse(device uint* out [[buffer(0)]], TQ_IDS) {
  TQ_SHARED(uint, values, 256);
  values[tid] = group.x * 1000 + tid;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[group.x * size.x + tid] = values[size.x - 1 - tid];
}
TQ_KERNEL(shim_reverse)

kernel void shim_race(device uint* out [[buffer(0)]], TQ_IDS) {
  TQ_SHARED(uint, values, 64);
  values[tid] = tid;
  out[tid] = values[63 - tid];
}
TQ_KERNEL(shim_race)

kernel void shim_leave(device uint* out [[buffer(0)]], TQ_IDS) {
  if (lane < 10) return;
  out[tid] = simd_sum(1u);
}
TQ_KERNEL(shim_leave)

kernel void shim_matrix(device uint* out [[buffer(0)]], TQ_IDS) {
  TQ_SHARED(half, values, 64);
  TQ_SHARED(float, sums, 64);
  values[tid] = half(float(tid));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (sg == 0) {
    simdgroup_half8x8 a, b;
    simdgroup_float8x8 c = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    simdgroup_load(a, values, 8);
    simdgroup_load(b, values, 8, 0, true);
    simdgroup_multiply_accumulate(c, a, b, c);
    simdgroup_store(c, sums, 8);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[tid] = uint(sums[tid]);
}
TQ_KERNEL(shim_matrix)
