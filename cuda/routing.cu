// A mixture's router on the device: the best experts of each row, rows grouped by expert, and the sum of what the experts give.
#include "dependent.h"
#include "epilogue.cuh"

namespace tq::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kMaxDeviceExperts / 32;

// One row by one warp: softmax over its logits (overwritten), then the top_k most probable experts, ties to the lower index. Lane j returns
// choice j; every index is below n, whatever the logits are.
__device__ inline void choose(float* logits, int n, int top_k, bool normalize, int& expert, float& weight) {
  const int lane = threadIdx.x % 32;
  float max = -INFINITY, sum = 0, chosen = 0;
  for (int i = lane; i < n; i += 32) max = fmaxf(max, logits[i]);
  max = warp_max(max);
  for (int i = lane; i < n; i += 32) sum += logits[i] = expf(logits[i] - max);
  sum = warp_sum(sum);
  expert = 0, weight = 0;
  for (int j = 0; j < top_k; j++) {
    float best = -2;
    int index = 0;
    for (int i = lane; i < n; i += 32)
      if (logits[i] > best) best = logits[i], index = i;
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
      const float other = __shfl_xor_sync(~0u, best, d);
      const int other_index = __shfl_xor_sync(~0u, index, d);
      if (other > best || (other == best && other_index < index)) best = other, index = other_index;
    }
    if (lane == j) expert = index, weight = best / sum;
    chosen += best / sum;
    if (index % 32 == lane) logits[index] = -1;  // below every probability
  }
  if (normalize) weight /= chosen;
}

// The sum over the threads before this one; a block of kMaxDeviceExperts threads.
__device__ inline int exclusive_sum(int x) {
  __shared__ int warp_sums[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = x;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int below = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += below;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  for (int i = 0; i < warp; i++) sum += warp_sums[i];
  __syncthreads();
  return sum - x;
}

// One block: a warp a row chooses, then a thread an expert collects its rows.
__global__ void __launch_bounds__(kMaxDeviceExperts)
    route_kernel(float* logits, int rows, int n_experts, int top_k, bool normalize, const __grid_constant__ RouteView route) {
  __shared__ int chosen[kMaxRoutes];
  const int lane = threadIdx.x % 32, routes = rows * top_k;
  release_dependents();
  await_inputs();
  for (int r = threadIdx.x / 32; r < rows; r += kWarps) {
    int expert;
    float weight;
    choose(logits + int64_t(r) * n_experts, n_experts, top_k, normalize, expert, weight);
    if (lane < top_k) chosen[r * top_k + lane] = expert, route.weights[r * top_k + lane] = weight;
  }
  __syncthreads();
  const int expert = threadIdx.x;
  int count = 0;
  for (int i = 0; i < routes; i++) count += chosen[i] == expert;
  const int n_groups = (count + kGroupRows - 1) / kGroupRows;
  const int first = exclusive_sum(count), first_group = exclusive_sum(n_groups);
  for (int i = 0, at = first; i < routes; i++)
    if (chosen[i] == expert) route.place[i] = at, route.rows[at++] = i / top_k;
  for (int g = 0; g < n_groups; g++)
    route.groups[first_group + g] = {expert, first + g * kGroupRows, min(kGroupRows, count - g * kGroupRows)};
  if (threadIdx.x == kMaxDeviceExperts - 1) *route.n_groups = first_group + n_groups;
}

__global__ void __launch_bounds__(kThreads) bias_kernel(float* y, const float* biases, const __grid_constant__ RouteView route, int width) {
  const int column = blockIdx.x * kThreads + threadIdx.x, g = blockIdx.y;
  release_dependents();
  await_inputs();
  if (column >= width || g >= *route.n_groups) return;
  const ExpertGroup group = route.groups[g];
  const float bias = biases[int64_t(group.expert) * width + column];
  for (int i = 0; i < group.count; i++) y[int64_t(group.first + i) * width + column] += bias;
}

struct CombineLaunch {
  const float* x;  // (routes, width), by expert
  RouteView route;
  int top_k;
  const float *shared, *shared_logits;  // (rows, width), (rows); null: none, weight 1
  float alpha;
  int width;
  float* y;
};

__global__ void __launch_bounds__(kThreads) combine_kernel(const __grid_constant__ CombineLaunch l) {
  const int column = blockIdx.x * kThreads + threadIdx.x, row = blockIdx.y;
  release_dependents();
  await_inputs();
  if (column >= l.width) return;
  float* y = l.y + int64_t(row) * l.width + column;
  float sum = *y;
  for (int i = row * l.top_k; i < (row + 1) * l.top_k; i++)
    sum += l.alpha * l.route.weights[i] * l.x[int64_t(l.route.place[i]) * l.width + column];
  if (l.shared) {
    const float weight = l.shared_logits ? 1 / (1 + expf(-l.shared_logits[row])) : 1.f;
    sum += l.alpha * weight * l.shared[int64_t(row) * l.width + column];
  }
  *y = sum;
}

}  // namespace

void route(float* logits, int rows, int n_experts, int top_k, bool normalize, const RouteView& route, cudaStream_t stream) {
  launch_dependent("route", route_kernel, dim3(1), kMaxDeviceExperts, 0, stream, logits, rows, n_experts, top_k, normalize, route);
}

void add_expert_bias(float* y, const float* biases, const RouteView& route, int groups, int width, cudaStream_t stream) {
  const dim3 grid((width + kThreads - 1) / kThreads, groups);
  launch_dependent("expert bias", bias_kernel, grid, kThreads, 0, stream, y, biases, route, width);
}

void combine(const float* x, const RouteView& route, int rows, int top_k, const SharedExpert& shared, float alpha, int width, float* y,
             cudaStream_t stream) {
  const dim3 grid((width + kThreads - 1) / kThreads, rows);
  const CombineLaunch launch{x, route, top_k, shared.x, shared.logits, alpha, width, y};
  launch_dependent("combine", combine_kernel, grid, kThreads, 0, stream, launch);
}

}  // namespace tq::cuda
