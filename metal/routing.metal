// A mixture's router on the device: the best experts of each row, rows grouped by expert, and the sum of what the experts give.
#include "arguments.h"
#include "kernel.h"

namespace tq {
using namespace metal_args;

TQ_CONSTANT uint32_t kRouteSimds = kRouteThreads / 32;

struct Choice {
  uint expert;
  float weight;
};

// One row by one simdgroup: softmax over its logits (overwritten), then the top_k most probable experts, ties to the lower index. Lane j
// gets choice j; every expert is below n, whatever the logits are.
inline Choice choose(device float* logits, uint n, uint top_k, bool normalize, uint lane) {
  float most = -INFINITY, sum = 0, chosen = 0;
  for (uint i = lane; i < n; i += 32) most = max(most, logits[i]);
  most = simd_max(most);
  for (uint i = lane; i < n; i += 32) {
    const float value = exp(logits[i] - most);
    logits[i] = value, sum += value;
  }
  sum = simd_sum(sum);
  Choice mine = {0, 0};
  for (uint j = 0; j < top_k; j++) {
    float best = -2;
    uint index = 0;
    for (uint i = lane; i < n; i += 32)
      if (logits[i] > best) best = logits[i], index = i;
    for (ushort d = 16; d > 0; d /= 2) {
      const float other = simd_shuffle_xor(best, d);
      const uint other_index = simd_shuffle_xor(index, d);
      if (other > best || (other == best && other_index < index)) best = other, index = other_index;
    }
    if (lane == j) mine.expert = index, mine.weight = best / sum;
    chosen += best / sum;
    if (index % 32 == lane) logits[index] = -1;  // below every probability
  }
  if (normalize) mine.weight /= chosen;
  return mine;
}

// The sum over the threads before this one. All threads; sums: (kRouteSimds), free again on return.
inline uint exclusive_sum(uint x, threadgroup uint* sums, uint lane, uint sg) {
  const uint below = simd_prefix_exclusive_sum(x);
  if (lane == 31) sums[sg] = below + x;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint sum = below;
  for (uint s = 0; s < sg; s++) sum += sums[s];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return sum;
}

}  // namespace tq

using namespace tq;

// One thread-group: a simdgroup a row chooses, then a thread an expert collects its rows.
kernel void route(constant RouteArgs& a [[buffer(0)]], device float* logits [[buffer(1)]], device float* weights [[buffer(2)]],
                  device int* place [[buffer(3)]], device int* rows [[buffer(4)]], device ExpertGroup* list [[buffer(5)]],
                  device uint* n_groups [[buffer(6)]], TQ_IDS) {
  TQ_SHARED(ushort, chosen, kMaxRoutes);
  TQ_SHARED(uint, sums, kRouteSimds);
  const uint routes = a.rows * a.top_k;
  for (uint r = sg; r < a.rows; r += kRouteSimds) {
    const Choice mine = choose(logits + ulong(r) * a.n_experts, a.n_experts, a.top_k, (a.flags & kNormalize) != 0, lane);
    if (lane < a.top_k) chosen[r * a.top_k + lane] = ushort(mine.expert), weights[r * a.top_k + lane] = mine.weight;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint count = 0;
  for (uint i = 0; i < routes; i++) count += uint(chosen[i]) == tid ? 1u : 0u;
  const uint own_groups = (count + kGroupRows - 1) / kGroupRows;
  const uint first = exclusive_sum(count, sums, lane, sg), first_group = exclusive_sum(own_groups, sums, lane, sg);
  uint at = first;
  for (uint i = 0; i < routes; i++) {
    if (uint(chosen[i]) != tid) continue;
    place[i] = int(at), rows[at] = int(i / a.top_k);
    at++;
  }
  for (uint g = 0; g < own_groups; g++) {
    device ExpertGroup& to = list[first_group + g];
    to.expert = tid, to.first = first + g * kGroupRows, to.count = min(kGroupRows, count - g * kGroupRows);
  }
  if (tid == kRouteThreads - 1) *n_groups = first_group + own_groups;
}
TQ_KERNEL(route)

kernel void expert_bias(constant RouteArgs& a [[buffer(0)]], device float* y [[buffer(1)]], device const float* biases [[buffer(2)]],
                        device const ExpertGroup* list [[buffer(3)]], device const uint* n_groups [[buffer(4)]], TQ_IDS) {
  const uint column = group.x * kRowThreads + tid;
  if (column >= a.width || group.y >= *n_groups) return;
  device const ExpertGroup& work = list[group.y];
  const float bias = biases[ulong(work.expert) * a.width + column];
  for (uint i = 0; i < work.count; i++) y[ulong(work.first + i) * a.width + column] += bias;
}
TQ_KERNEL(expert_bias)

kernel void combine(constant RouteArgs& a [[buffer(0)]], device const float* x [[buffer(1)]], device const float* weights [[buffer(2)]],
                    device const int* place [[buffer(3)]], device const float* shared [[buffer(4)]],
                    device const float* shared_logits [[buffer(5)]], device float* y [[buffer(6)]], TQ_IDS) {
  const uint column = group.x * kRowThreads + tid, row = group.y;
  if (column >= a.width) return;
  device float* to = y + ulong(row) * a.width + column;
  float sum = *to;
  for (uint i = row * a.top_k; i < (row + 1) * a.top_k; i++) sum += a.alpha * weights[i] * x[ulong(place[i]) * a.width + column];
  if (a.flags & kShared) {
    const float weight = (a.flags & kSharedLogits) ? 1.0f / (1.0f + exp(-shared_logits[row])) : 1.0f;
    sum += a.alpha * weight * shared[ulong(row) * a.width + column];
  }
  *to = sum;
}
TQ_KERNEL(combine)
