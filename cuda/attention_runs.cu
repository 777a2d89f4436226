// Attention of prompts: a block takes up to 64 consecutive rows of one slot and one head, and walks the cached keys 64 at a time with an
// online softmax. Scores and values go through the tensor cores in half precision with float sums; four warps hold 16 queries each.
#include <cmath>

#include "device.h"
#include "epilogue.cuh"
#include "mma.cuh"

namespace tq::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kKeyTile = 64;
constexpr float kLog2e = 1.4426950408889634f;

// Byte offset of a 16-byte chunk in a tile of 64 rows of D halves; chunks are permuted so that eight rows of one column meet different
// banks.
template <int D>
__device__ inline uint32_t chunk_at(int row, int chunk) {
  return uint32_t(row * (2 * D) + (((chunk & 7) ^ (row & 7)) | (chunk & ~7)) * 16);
}

template <int D>
__device__ inline void load_cache(uint32_t to, const uint16_t* rows, int64_t first, int64_t end, int dim) {
  for (int i = threadIdx.x; i < kKeyTile * D / 8; i += kThreads) {
    const int row = i / (D / 8), chunk = i % (D / 8);
    const bool real = first + row < end && chunk * 8 < dim;
    copy_async(to + chunk_at<D>(row, chunk), real ? rows + (first + row) * dim + chunk * 8 : rows, real);
  }
  commit_copies();
}

__device__ inline uint32_t pack(float a, float b) {
  const __half2 h = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&h);
}

template <int D>
__device__ inline void load_queries(char* to, const AttentionView& a, int head, QueryRun run) {
  const int dim = a.shape.head_dim;
  for (int i = threadIdx.x; i < kQueryTile * D / 2; i += kThreads) {
    const int row = i / (D / 2), d = i % (D / 2) * 2;
    const bool real = row < run.count && d < dim;
    const float* q = a.q + (int64_t(run.first_row + row) * a.shape.n_heads + head) * dim + d;
    *reinterpret_cast<uint32_t*>(to + chunk_at<D>(row, d / 8) + d % 8 * 2) = real ? pack(q[0], q[1]) : 0;
  }
}

// One warp's 16 queries: what the online softmax carries. Lane 4g + t holds queries g and g + 8.
template <int D>
struct Rows {
  float out[D / 8][4];
  float max[2], sum[2];
};

template <int D>
__device__ inline void score_tile(uint32_t q, uint32_t k, float (&s)[8][4]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int c = 0; c < D / 16; c++) {
    uint32_t a[4];
    load_matrices(a, q + chunk_at<D>(warp * 16 + lane % 16, 2 * c + lane / 16));
#pragma unroll
    for (int n = 0; n < 4; n++) {
      uint32_t b[4];
      load_matrices(b, k + chunk_at<D>(n * 16 + lane % 8 + lane / 16 * 8, 2 * c + lane / 8 % 2));
      mma_f16(s[2 * n], a, b[0], b[1]), mma_f16(s[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// Scores in units of log2, -inf where a query must not look.
__device__ inline void mask_tile(const AttentionView& a, float (&s)[8][4], int64_t first_key, int64_t first_query) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t key = first_key + n * 8 + lane % 4 * 2 + i % 2, query = first_query + lane / 4 + i / 2 * 8;
      float x = s[n][i] * a.shape.scale;
      if (a.shape.soft_cap > 0) x = a.shape.soft_cap * tanhf(x / a.shape.soft_cap);
      s[n][i] = key <= query && (a.window == 0 || key > query - a.window) ? x * kLog2e : -INFINITY;
    }
}

template <int D>
__device__ inline void softmax_tile(float (&s)[8][4], Rows<D>& rows) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float most = rows.max[h];
#pragma unroll
    for (int n = 0; n < 8; n++) most = fmaxf(most, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    const float base = most == -INFINITY ? 0.f : most, factor = exp2f(rows.max[h] - base);
    float total = 0;
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int i = 2 * h; i < 2 * h + 2; i++) total += s[n][i] = exp2f(s[n][i] - base);
    rows.sum[h] = rows.sum[h] * factor + total, rows.max[h] = most;
#pragma unroll
    for (int d = 0; d < D / 8; d++) rows.out[d][2 * h] *= factor, rows.out[d][2 * h + 1] *= factor;
  }
}

template <int D>
__device__ inline void add_values(const float (&p)[8][4], uint32_t v, Rows<D>& rows) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int c = 0; c < kKeyTile / 16; c++) {
    const uint32_t a[4] = {pack(p[2 * c][0], p[2 * c][1]), pack(p[2 * c][2], p[2 * c][3]), pack(p[2 * c + 1][0], p[2 * c + 1][1]),
                           pack(p[2 * c + 1][2], p[2 * c + 1][3])};
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
      uint32_t b[4];
      load_matrices_transposed(b, v + chunk_at<D>(c * 16 + lane % 16, 2 * d + lane / 16));
      mma_f16(rows.out[2 * d], a, b[0], b[1]), mma_f16(rows.out[2 * d + 1], a, b[2], b[3]);
    }
  }
}

template <int D>
__device__ inline void write_rows(const AttentionView& a, int head, QueryRun run, Rows<D>& rows) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, dim = a.shape.head_dim;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = rows.sum[h];
    sum += __shfl_xor_sync(~0u, sum, 1), sum += __shfl_xor_sync(~0u, sum, 2);
    if (a.sinks) sum += exp2f(a.sinks[head] * kLog2e - rows.max[h]);
    const int query = warp * 16 + lane / 4 + h * 8;
    if (query >= run.count) continue;
    float* out = a.out + (int64_t(run.first_row + query) * a.shape.n_heads + head) * dim;
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
      const int column = d * 8 + lane % 4 * 2;
      if (column < dim) *reinterpret_cast<float2*>(out + column) = make_float2(rows.out[d][2 * h] / sum, rows.out[d][2 * h + 1] / sum);
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads) runs_kernel(const __grid_constant__ AttentionView a, const QueryRun* runs) {
  extern __shared__ __align__(128) char shared[];
  constexpr uint32_t tile = kKeyTile * D * 2;
  const uint32_t q = shared_address(shared), k = q + tile, v = k + tile;
  const QueryRun run = runs[blockIdx.y];
  const int head = blockIdx.x, dim = a.shape.head_dim, kv_head = head / (a.shape.n_heads / a.shape.n_kv_heads);
  const int64_t position = a.batch.positions[run.first_row], end = position + run.count;
  const int64_t cache = (int64_t(a.batch.slots[run.first_row]) * a.shape.n_kv_heads + kv_head) * a.capacity * dim;
  const uint16_t *keys = static_cast<const uint16_t*>(a.k_cache) + cache, *values = static_cast<const uint16_t*>(a.v_cache) + cache;
  int64_t first = a.window > 0 ? max(position + 1 - a.window, int64_t(0)) / kKeyTile * kKeyTile : 0;
  load_cache<D>(k, keys, first, end, dim);
  load_cache<D>(v, values, first, end, dim);
  load_queries<D>(shared, a, head, run);
  Rows<D> rows = {};
  rows.max[0] = rows.max[1] = -INFINITY;
  for (; first < end; first += kKeyTile) {
    wait_copies<1>();
    __syncthreads();
    float s[8][4] = {};
    score_tile<D>(q, k, s);
    __syncthreads();
    load_cache<D>(k, keys, first + kKeyTile, end, dim);
    mask_tile(a, s, first, position + threadIdx.x / kWarp * 16);
    softmax_tile<D>(s, rows);
    wait_copies<1>();
    __syncthreads();
    add_values<D>(s, v, rows);
    __syncthreads();
    load_cache<D>(v, values, first + kKeyTile, end, dim);
  }
  wait_copies<0>();
  write_rows<D>(a, head, run, rows);
}

template <int D>
void launch(const AttentionView& a, const QueryRun* runs, int n_runs, cudaStream_t stream) {
  constexpr int bytes = 3 * kKeyTile * D * 2;
  allow_shared(runs_kernel<D>, bytes);
  runs_kernel<D><<<dim3(a.shape.n_heads, n_runs), kThreads, bytes, stream>>>(a, runs);
  check_launch("attend_runs");
}

}  // namespace

void attend_runs(const AttentionView& a, const QueryRun* runs, int n_runs, cudaStream_t stream) {
  switch ((a.shape.head_dim + 63) / 64) {
    case 1:
      return launch<64>(a, runs, n_runs, stream);
    case 2:
      return launch<128>(a, runs, n_runs, stream);
    case 3:
      return launch<192>(a, runs, n_runs, stream);
    default:
      return launch<256>(a, runs, n_runs, stream);
  }
}

}  // namespace tq::cuda
