// The best tokens of each row of logits. A thread-group sorts a piece of a row and keeps its best; pieces of what is left follow until one
// holds all. A key orders by value, then by lower token, and is 0 only for what no sampler may choose.
#include "arguments.h"
#include "kernel.h"

namespace tq {
using namespace metal_args;

inline ulong key_of(float value, uint token) {
  if (!(value > -INFINITY)) return 0;
  const uint bits = as_type<uint>(value == 0.0f ? 0.0f : value);  // -0 is 0
  return (ulong(bits >> 31 ? ~bits : bits | 0x80000000u) << 32) | ulong(~token);
}

// Bitonic, descending; n a power of two. All threads, after their own writes; ends with a barrier.
inline void sort(threadgroup ulong* keys, uint n, uint tid) {
  for (uint length = 2; length <= n; length *= 2)
    for (uint d = length / 2; d > 0; d /= 2) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      for (uint i = tid; i < n / 2; i += kTopThreads) {
        const uint a = 2 * i - (i & (d - 1));
        const ulong x = keys[a], y = keys[a + d];
        if ((x < y) == ((a & length) == 0)) keys[a] = y, keys[a + d] = x;
      }
    }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

}  // namespace tq

using namespace tq;

kernel void top(constant TopArgs& a [[buffer(0)]], device const uint* x [[buffer(1)]], device ulong* to [[buffer(2)]],
                device uint* best [[buffer(3)]], TQ_IDS) {
  TQ_SHARED(ulong, keys, kTopPiece);
  const uint first = group.x * kTopPiece, count = min(kTopPiece, a.n - first), row = group.y;
  const ulong at = ulong(row) * a.n + first;
  uint length = 2;
  while (length < count || length < a.k) length *= 2;
  for (uint i = tid; i < length; i += kTopThreads) {
    if (i >= count)
      keys[i] = 0;
    else
      keys[i] = (a.flags & kGather) ? ((device const ulong*)x)[at + i] : key_of(as_type<float>(x[at + i]), first + i);
  }
  sort(keys, length, tid);
  for (uint i = tid; i < a.k; i += kTopThreads) {
    if (!(a.flags & kLast)) {
      to[(ulong(row) * groups.x + group.x) * a.k + i] = keys[i];
      continue;
    }
    const uint high = uint(keys[i] >> 32);
    device uint* candidate = best + 2 * (ulong(row) * a.k + i);
    candidate[0] = keys[i] == 0 ? as_type<uint>(-INFINITY) : high >> 31 ? high ^ 0x80000000u : ~high;
    candidate[1] = keys[i] == 0 ? ~0u : ~uint(keys[i]);
  }
}
TQ_KERNEL(top)
