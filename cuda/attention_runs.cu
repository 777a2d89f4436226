// Attention of prompts: a block takes up to 64 consecutive rows of one slot and one or more heads of a group, and walks the cached keys 64
// at a time with an online softmax. Scores and values go through the tensor cores in half precision with float sums; a warp holds 16
// queries, four warps a head. Caches in codes (format/cache.h) are expanded a tile at a time, once for all heads of the block, and leave
// softmax states that finish_coded() adds each row's own position to.
#include <cmath>

#include "cache_codes.cuh"
#include "device.h"
#include "epilogue.cuh"
#include "mma.cuh"

namespace tq::cuda {
namespace {

constexpr int kHeadThreads = 128;
constexpr int kHeadWarps = kHeadThreads / kWarp;
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
  for (int i = threadIdx.x; i < kKeyTile * D / 8; i += int(blockDim.x)) {
    const int row = i / (D / 8), chunk = i % (D / 8);
    const bool real = first + row < end && chunk * 8 < dim;
    copy_async(to + chunk_at<D>(row, chunk), real ? rows + (first + row) * dim + chunk * 8 : rows, real);
  }
  commit_copies();
}

__device__ inline void store_chunk(uint32_t to, const uint32_t (&words)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

// Scales of positions of a tile; those that are not there count nothing, whatever is stored.
__device__ inline __half2 tile_scale(const uint8_t* tile, int64_t code_bytes, int row, bool real) {
  return __half2half2(__ushort_as_half(real ? cached_scale(tile, code_bytes, row) : uint16_t(0)));
}

template <int D>
__device__ inline void expand_keys(uint32_t to, const uint8_t* tile, int bits, int count, int dim) {
  const int chunks = int(tqn::cache::padded(dim)) / 8;
  const int64_t code_bytes = tqn::cache::code_bytes(bits, dim);
  const auto* words = reinterpret_cast<const uint32_t*>(tile);
  for (int i = threadIdx.x; i < kKeyTile * D / 8; i += int(blockDim.x)) {
    const int row = i % kKeyTile, chunk = i / kKeyTile;
    uint32_t values[2] = {}, halves[4];
    if (chunk < chunks) {
      const uint32_t first = words[(bits == 8 ? 2 * chunk : chunk) * kKeyTile + row];
      values[0] = bits == 8 ? first : half_levels(first, 0);
      values[1] = bits == 8 ? words[(2 * chunk + 1) * kKeyTile + row] : half_levels(first, 1);
    }
    const __half2 scale = tile_scale(tile, code_bytes, row, chunk < chunks && row < count);
#pragma unroll
    for (int w = 0; w < 4; w++) halves[w] = scaled_halves(values[w / 2], w % 2, scale);
    store_chunk(to + chunk_at<D>(row, chunk), halves);
  }
}

template <int D>
__device__ inline void expand_values(uint32_t to, const uint8_t* tile, int bits, int count, int dim) {
  const int chunks = int(tqn::cache::padded(dim)) / 8;
  const int64_t code_bytes = tqn::cache::code_bytes(bits, dim);
  for (int i = threadIdx.x; i < kKeyTile / 2 * D / 8; i += int(blockDim.x)) {
    const int pair = i % (kKeyTile / 2), chunk = i / (kKeyTile / 2);
    uint4 codes = {};
    if (chunk < chunks) codes = reinterpret_cast<const uint4*>(tile)[(bits == 8 ? chunk : chunk / 2) * (kKeyTile / 2) + pair];
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
    uint32_t values[4];  // two channels of the pair's first position, then of its second
#pragma unroll
    for (int w = 0; w < 4; w++) values[w] = __byte_perm(bits == 8 ? words[w] : half_levels(words[w], chunk % 2), 0, 0x3120);
#pragma unroll
    for (int p = 0; p < 2; p++) {
      const int row = 2 * pair + p;
      const __half2 scale = tile_scale(tile, code_bytes, row, chunk < chunks && row < count);
      uint32_t halves[4];
#pragma unroll
      for (int w = 0; w < 4; w++) halves[w] = scaled_halves(values[w], p, scale);
      store_chunk(to + chunk_at<D>(row, chunk), halves);
    }
  }
}

// One slot's keys or values of one head in the cache, as numbers or as tiles of codes.
struct CacheSide {
  const void* data;
  int bits;
};

template <int D, bool Coded>
__device__ inline void load_side(uint32_t to, CacheSide side, bool keys, int64_t first, int64_t end, int dim) {
  if constexpr (!Coded) {
    load_cache<D>(to, static_cast<const uint16_t*>(side.data), first, end, dim);
  } else {
    if (first >= end) return;
    const uint8_t* tile = static_cast<const uint8_t*>(side.data) + first / kKeyTile * tqn::cache::tile_bytes(side.bits, dim);
    const int count = int(min(end - first, int64_t(kKeyTile)));
    keys ? expand_keys<D>(to, tile, side.bits, count, dim) : expand_values<D>(to, tile, side.bits, count, dim);
  }
}

__device__ inline uint32_t pack(float a, float b) {
  const __half2 h = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&h);
}

// Each head's threads load its queries.
template <int D>
__device__ inline void load_queries(char* to, const AttentionView& a, int head, QueryRun run) {
  const int dim = a.shape.head_dim;
  for (int i = threadIdx.x % kHeadThreads; i < kQueryTile * D / 2; i += kHeadThreads) {
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
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp % kHeadWarps;
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

// Scores in units of log2, -inf where a query must not look: behind itself, of codes also at itself.
template <bool Coded>
__device__ inline void mask_tile(const AttentionView& a, float (&s)[8][4], int64_t first_key, int64_t first_query) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t key = first_key + n * 8 + lane % 4 * 2 + i % 2, query = first_query + lane / 4 + i / 2 * 8;
      float x = s[n][i] * a.shape.scale;
      if (a.shape.soft_cap > 0) x = a.shape.soft_cap * tanhf(x / a.shape.soft_cap);
      s[n][i] = key <= query - Coded && (a.window == 0 || key > query - a.window) ? x * kLog2e : -INFINITY;
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

template <int D, bool Coded>
__device__ inline void write_rows(const AttentionView& a, int head, QueryRun run, Rows<D>& rows) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp % kHeadWarps, dim = a.shape.head_dim;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = rows.sum[h];
    sum += __shfl_xor_sync(~0u, sum, 1), sum += __shfl_xor_sync(~0u, sum, 2);
    if (a.sinks) sum += exp2f(a.sinks[head] * kLog2e - rows.max[h]);
    const int query = warp * 16 + lane / 4 + h * 8;
    if (query >= run.count) continue;
    const int64_t index = int64_t(run.first_row + query) * a.shape.n_heads + head;
    float* out = Coded ? a.partials + index * (dim + 2) : a.out + index * dim;
    const float divisor = Coded ? 1.f : sum;
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
      const int column = d * 8 + lane % 4 * 2;
      if (column < dim)
        *reinterpret_cast<float2*>(out + column) = make_float2(rows.out[d][2 * h] / divisor, rows.out[d][2 * h + 1] / divisor);
    }
    if (Coded && lane % 4 == 0) out[dim] = rows.max[h] / kLog2e, out[dim + 1] = sum;
  }
}

struct Launch {
  AttentionView a;
  const QueryRun* runs;
  int k_bits, v_bits;
};

// `Heads` heads of a group a block, side by side in its threads.
template <int D, bool Coded, int Heads>
__global__ void __launch_bounds__(Heads* kHeadThreads) runs_kernel(const __grid_constant__ Launch l) {
  extern __shared__ __align__(128) char shared[];
  constexpr uint32_t tile = kKeyTile * D * 2;
  const uint32_t side = threadIdx.x / kHeadThreads * tile, k = shared_address(shared), v = k + tile, q = v + tile + side;
  const AttentionView& a = l.a;
  const QueryRun run = l.runs[blockIdx.y];
  const int head = int(blockIdx.x) * Heads + int(threadIdx.x) / kHeadThreads, dim = a.shape.head_dim,
            kv_head = head / (a.shape.n_heads / a.shape.n_kv_heads);
  const int64_t position = a.batch.positions[run.first_row], end = position + run.count;
  const int64_t cached_head = int64_t(a.batch.slots[run.first_row]) * a.shape.n_kv_heads + kv_head;
  const auto side_of = [&](const void* cache, int bits) {
    const int64_t bytes = Coded ? tqn::cache::tiles(a.capacity) * tqn::cache::tile_bytes(bits, dim) : a.capacity * dim * 2;
    return CacheSide{static_cast<const char*>(cache) + cached_head * bytes, bits};
  };
  const CacheSide keys = side_of(a.k_cache, l.k_bits), values = side_of(a.v_cache, l.v_bits);
  int64_t first = a.window > 0 ? max(position + 1 - a.window, int64_t(0)) / kKeyTile * kKeyTile : 0;
  load_side<D, Coded>(k, keys, true, first, end, dim);
  load_side<D, Coded>(v, values, false, first, end, dim);
  load_queries<D>(shared + 2 * tile + side, a, head, run);
  Rows<D> rows = {};
  rows.max[0] = rows.max[1] = -INFINITY;
  for (; first < end; first += kKeyTile) {
    wait_copies<1>();
    __syncthreads();
    float s[8][4] = {};
    score_tile<D>(q, k, s);
    __syncthreads();
    load_side<D, Coded>(k, keys, true, first + kKeyTile, end, dim);
    mask_tile<Coded>(a, s, first, position + threadIdx.x / kWarp % kHeadWarps * 16);
    softmax_tile<D>(s, rows);
    wait_copies<1>();
    __syncthreads();
    add_values<D>(s, v, rows);
    __syncthreads();
    load_side<D, Coded>(v, values, false, first + kKeyTile, end, dim);
  }
  wait_copies<0>();
  write_rows<D, Coded>(a, head, run, rows);
}

constexpr int64_t shared_bytes(int d, int heads) { return int64_t(2 + heads) * kKeyTile * d * 2; }

template <int D, bool Coded, int Heads>
void launch(const Launch& l, int n_runs, cudaStream_t stream) {
  constexpr int64_t bytes = shared_bytes(D, Heads);
  allow_shared(runs_kernel<D, Coded, Heads>, bytes);
  runs_kernel<D, Coded, Heads><<<dim3(l.a.shape.n_heads / Heads, n_runs), Heads * kHeadThreads, bytes, stream>>>(l);
  check_launch("attend_runs");
}

// Heads share the expansion of a tile of codes where the group and the device allow it. More than these would leave a thread too few
// registers.
template <int D, bool Coded>
void launch(const Launch& l, int n_runs, cudaStream_t stream) {
  constexpr int kHeads = Coded ? D <= 64 ? 4 : 2 : 1;
  const int group = l.a.shape.n_heads / l.a.shape.n_kv_heads;
  const auto fits = [&](int heads) { return group % heads == 0 && shared_bytes(D, heads) <= device_limits().shared_bytes; };
  if (kHeads > 1 && fits(kHeads)) return launch<D, Coded, kHeads>(l, n_runs, stream);
  if constexpr (kHeads > 2)
    if (fits(2)) return launch<D, Coded, 2>(l, n_runs, stream);
  launch<D, Coded, 1>(l, n_runs, stream);
}

template <bool Coded>
void launch(const Launch& l, int n_runs, cudaStream_t stream) {
  switch ((l.a.shape.head_dim + 63) / 64) {
    case 1:
      return launch<64, Coded>(l, n_runs, stream);
    case 2:
      return launch<128, Coded>(l, n_runs, stream);
    case 3:
      return launch<192, Coded>(l, n_runs, stream);
    default:
      return launch<256, Coded>(l, n_runs, stream);
  }
}

}  // namespace

void attend_runs(const AttentionView& a, const QueryRun* runs, int n_runs, cudaStream_t stream) {
  launch<false>({a, runs, 0, 0}, n_runs, stream);
}

void attend_coded_runs(const CodedView& c, const QueryRun* runs, int n_runs, cudaStream_t stream) {
  launch<true>({c.a, runs, c.k_bits, c.v_bits}, n_runs, stream);
  finish_coded(c, stream);
}

}  // namespace tq::cuda
