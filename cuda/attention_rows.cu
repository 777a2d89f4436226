// Rotary embedding and cache writes; attention of single rows in float, as decoding and the float path need it.
#include <cmath>

#include "dependent.h"
#include "epilogue.cuh"
#include "rope.cuh"

namespace tq::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kKeyLanes = 8;                   // lanes that share one cached position
constexpr int kGroups = kThreads / kKeyLanes;  // positions that a block works on at once
constexpr int kMaxParts = 32;                  // states that are merged at once: a warp's lanes

__device__ inline int64_t cache_row(const AttentionView& a, int row, int kv_head, int64_t position) {
  return ((int64_t(a.batch.slots[row]) * a.shape.n_kv_heads + kv_head) * a.capacity + position) * a.shape.head_dim;
}

__device__ inline void store(uint16_t* cache, int64_t i, float x) { cache[i] = __half_as_ushort(__float2half_rn(x)); }
__device__ inline void store(float* cache, int64_t i, float x) { cache[i] = x; }

// A block is one head of q, or one head of k and v together.
template <class T>
__global__ void __launch_bounds__(kThreads) store_kernel(const __grid_constant__ AttentionView a) {
  const int head = blockIdx.x, row = blockIdx.y, dim = a.shape.head_dim;
  release_dependents();
  await_inputs();
  if (head < a.shape.n_heads) {
    float* q = a.q + (int64_t(row) * a.shape.n_heads + head) * dim;
    if (a.cos) rope(a, row, q);
    if (a.growth.beta != 0) grow_query(a, row, q);
    return;
  }
  const int kv_head = head - a.shape.n_heads;
  const int64_t at = (int64_t(row) * a.shape.n_kv_heads + kv_head) * dim, cached = cache_row(a, row, kv_head, a.batch.positions[row]);
  if (a.cos) rope(a, row, a.k + at);
  __syncthreads();
  for (int i = threadIdx.x; i < dim; i += kThreads)
    store(static_cast<T*>(a.k_cache), cached + i, a.k[at + i]), store(static_cast<T*>(a.v_cache), cached + i, a.v[at + i]);
}

__device__ inline void to_floats(const uint16_t* p, float (&out)[8]) {
  const uint4 v = *reinterpret_cast<const uint4*>(p);
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
    out[2 * i] = f.x, out[2 * i + 1] = f.y;
  }
}

__device__ inline void to_floats(const float* p, float (&out)[8]) {
  const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
  out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w, out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

// Softmax state before normalization.
struct State {
  float max, sum;
};

// A lane owns elements 64 j + 8 l .. + 7 of the head for its l = lane % 8 and j < D.
template <int D>
struct LaneHead {
  float x[D][8];
};

template <int D, class T>
__device__ inline LaneHead<D> load_head(const T* p, int l, int dim) {
  LaneHead<D> h = {};
#pragma unroll
  for (int j = 0; j < D; j++)
    if (64 * j + 8 * l < dim) to_floats(p + 64 * j + 8 * l, h.x[j]);
  return h;
}

__device__ inline float score_of(const AttentionView& a, float product) {
  const float score = product * a.shape.scale;
  return a.shape.soft_cap > 0 ? a.shape.soft_cap * tanhf(score / a.shape.soft_cap) : score;
}

// Positions [first, last), every kGroups-th from the lane's own, for N queries that share their keys and values.
template <int D, int N, class T>
__device__ inline void attend(const AttentionView& a, const LaneHead<D> (&q)[N], const T* k, const T* v, int64_t first, int64_t last,
                              State (&states)[N], LaneHead<D> (&out)[N]) {
  const int l = threadIdx.x % kKeyLanes, dim = a.shape.head_dim;
  for (int64_t base = first; base < last; base += kGroups) {  // lanes of a warp stay together: the sums below cross lanes
    const int64_t position = base + threadIdx.x / kKeyLanes;
    const bool real = position < last;
    const LaneHead<D> key = load_head<D>(k + (real ? position : first) * dim, l, dim),
                      value = load_head<D>(v + (real ? position : first) * dim, l, dim);
#pragma unroll
    for (int g = 0; g < N; g++) {
      float product = 0;
#pragma unroll
      for (int j = 0; j < D; j++)
#pragma unroll
        for (int i = 0; i < 8; i++) product += q[g].x[j][i] * key.x[j][i];
#pragma unroll
      for (int d = 1; d < kKeyLanes; d *= 2) product += __shfl_xor_sync(~0u, product, d);
      if (!real) continue;
      State& s = states[g];
      const float score = score_of(a, product), max = fmaxf(s.max, score), factor = expf(s.max - max), weight = expf(score - max);
      s = {max, s.sum * factor + weight};
#pragma unroll
      for (int j = 0; j < D; j++)
#pragma unroll
        for (int i = 0; i < 8; i++) out[g].x[j][i] = out[g].x[j][i] * factor + weight * value.x[j][i];
    }
  }
}

// Merges at most kMaxParts states with their outputs (n, dim) into `to`: normalized, with the head's sink (null: none), or as a
// partial (dim, max, sum). All threads; ends with a barrier.
template <class StateOf>
__device__ inline void merge(int n, int dim, StateOf&& state_of, const float* outs, int stride, float* to, bool normalize,
                             const float* sink) {
  __shared__ float weights[kMaxParts], total;
  if (threadIdx.x < kMaxParts) {
    const State s = int(threadIdx.x) < n ? state_of(threadIdx.x) : State{-INFINITY, 0};
    const float max = warp_max(s.max), weight = s.sum == 0 ? 0.f : expf(s.max - max), sum = warp_sum(weight * s.sum);
    weights[threadIdx.x] = weight;
    if (threadIdx.x == 0) total = sum + (sink ? expf(*sink - max) : 0.f);
    if (!normalize && threadIdx.x == 0) to[dim] = max, to[dim + 1] = sum;
  }
  __syncthreads();
  for (int d = threadIdx.x; d < dim; d += kThreads) {
    float x = 0;
#pragma unroll 8
    for (int i = 0; i < n; i++)
      if (weights[i] != 0) x += weights[i] * outs[int64_t(i) * stride + d];
    to[d] = normalize ? x / total : x;
  }
  __syncthreads();
}

// Up to N query heads of one key/value head of one row, one range of positions.
template <int D, int N, class T>
__global__ void __launch_bounds__(kThreads) rows_kernel(const __grid_constant__ AttentionView a, int splits) {
  __shared__ float outs[kGroups][64 * D];
  __shared__ State states[kGroups];
  const int split = blockIdx.x, row = blockIdx.z, dim = a.shape.head_dim, l = threadIdx.x % kKeyLanes, own = threadIdx.x / kKeyLanes;
  const int group = a.shape.n_heads / a.shape.n_kv_heads, chunks = (group + N - 1) / N, kv_head = blockIdx.y / chunks;
  const int first = blockIdx.y % chunks * N, queries = min(group - first, N);
  release_dependents();
  await_inputs();
  const int64_t end = int64_t(a.batch.positions[row]) + 1, begin = a.window > 0 ? max(end - a.window, int64_t(0)) : 0, length = end - begin;
  const int64_t index = int64_t(row) * a.shape.n_heads + kv_head * group + first;
  LaneHead<D> q[N] = {}, out[N] = {};
  State s[N];
#pragma unroll
  for (int g = 0; g < N; g++) {
    s[g] = {-INFINITY, 0};
    if (g < queries) q[g] = load_head<D>(a.q + (index + g) * dim, l, dim);
  }
  const int64_t cache = cache_row(a, row, kv_head, 0);
  attend<D, N>(a, q, static_cast<const T*>(a.k_cache) + cache, static_cast<const T*>(a.v_cache) + cache, begin + length * split / splits,
               begin + length * (split + 1) / splits, s, out);
#pragma unroll
  for (int g = 0; g < N; g++) {
    if (g >= queries) break;
    if (l == 0) states[own] = s[g];
#pragma unroll
    for (int j = 0; j < D; j++)
#pragma unroll
      for (int i = 0; i < 8; i++) outs[own][64 * j + 8 * l + i] = out[g].x[j][i];
    __syncthreads();
    float* to = splits == 1 ? a.out + (index + g) * dim : a.partials + ((index + g) * splits + split) * (dim + 2);
    merge(
        kGroups, dim, [&](int i) { return states[i]; }, &outs[0][0], 64 * D, to, splits == 1,
        a.sinks ? a.sinks + kv_head * group + first + g : nullptr);
  }
}

__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ AttentionView a, int splits) {
  const int dim = a.shape.head_dim, stride = dim + 2;
  const int64_t index = int64_t(blockIdx.y) * a.shape.n_heads + blockIdx.x;
  const float* parts = a.partials + index * splits * stride;
  release_dependents();
  await_inputs();
  const auto state_of = [&](int i) { return State{parts[i * stride + dim], parts[i * stride + dim + 1]}; };
  merge(splits, dim, state_of, parts, stride, a.out + index * dim, true, a.sinks ? a.sinks + blockIdx.x : nullptr);
}

}  // namespace

void store_keys(const AttentionView& a, cudaStream_t stream) {
  const dim3 grid(a.shape.n_heads + (a.k ? a.shape.n_kv_heads : 0), a.batch.rows);  // without keys: queries alone
  launch_dependent("store_keys", a.cache_f32 ? store_kernel<float> : store_kernel<uint16_t>, grid, kThreads, 0, stream, a);
}

namespace {

template <int D, class T>
void launch_rows(const AttentionView& a, int splits, cudaStream_t stream) {
  const bool shared = queries_at_once(a.shape) > 1;
  const dim3 grid(splits, row_blocks(a.shape), a.batch.rows);
  launch_dependent("attend_rows", shared ? rows_kernel<D, kSharedQueries, T> : rows_kernel<D, 1, T>, grid, kThreads, 0, stream, a, splits);
}

template <class T>
void launch_rows(const AttentionView& a, int splits, cudaStream_t stream) {
  switch ((a.shape.head_dim + 63) / 64) {
    case 1:
      return launch_rows<1, T>(a, splits, stream);
    case 2:
      return launch_rows<2, T>(a, splits, stream);
    case 3:
      return launch_rows<3, T>(a, splits, stream);
    case 4:
      return launch_rows<4, T>(a, splits, stream);
    default:
      return launch_rows<8, T>(a, splits, stream);
  }
}

}  // namespace

void attend_rows(const AttentionView& a, int splits, cudaStream_t stream) {
  a.cache_f32 ? launch_rows<float>(a, splits, stream) : launch_rows<uint16_t>(a, splits, stream);
  if (splits == 1) return;
  launch_dependent("attend_rows merge", merge_kernel, dim3(a.shape.n_heads, a.batch.rows), kThreads, 0, stream, a, splits);
}

}  // namespace tq::cuda
