// y = W x for a few tokens: a warp decodes 64 rows x 32 columns at a time into operands of the tensor cores, so that eight tokens cost what
// one does. The chip shares the work evenly: a launch is a list of steps (kStepTiles tiles of a strip), cut into equal runs, one a block. A
// block that owns part of a strip adds its int32 sums to a workspace (integers: the order does not matter); the block that completes a
// strip writes it.
#pragma once
#include <algorithm>
#include <atomic>

#include "decode.cuh"
#include "device.h"
#include "epilogue.cuh"

namespace tq::cuda {

inline constexpr int kGemvWarps = 8;
inline constexpr int kGemvThreads = kGemvWarps * kWarp;
inline constexpr int kStepTiles = kGemvWarps * kGroupTiles;
inline constexpr int kMmaTokens = 8;

template <int K>
struct LaneCodes {
  Codes<K> tile[2];
};

// `p`: this lane's part of the first of its two tiles.
template <int K>
__device__ inline void load_tiles(const uint8_t* p, LaneCodes<K>& codes) {
  load_codes<K>(p, codes.tile[0]);
  load_codes<K>(p + tqn::tile_bytes(K), codes.tile[1]);
}

// Column C of rows 2M and 2M + 1 of both tiles, each value a word of its own: cheaper than joining four of them where a mma serves one
// lane's tokens.
template <int K, int M, int C>
__device__ inline void multiply_column(const LaneCodes<K>& codes, uint32_t table, uint2 b, int (&sums)[4]) {
  constexpr int s0 = tqn::step_of(2 * M, C), s1 = tqn::step_of(2 * M + 1, C);
  mma_int8(sums, look_up<C>(table, index_bits<K, s0>(codes.tile[0])), look_up<C>(table, index_bits<K, s1>(codes.tile[0])),
           look_up<C>(table, index_bits<K, s0>(codes.tile[1])), look_up<C>(table, index_bits<K, s1>(codes.tile[1])), b.x, b.y);
}

// Rows 2M and 2M + 1 of a lane's two tiles times NB groups of eight tokens.
template <int K, int NB, int M>
__device__ inline void multiply_rows(const LaneCodes<K>& codes, uint32_t table, const uint2 (&b)[NB], int (&sums)[NB][4]) {
  if constexpr (NB == 1 && K != 8) {
    multiply_column<K, M, 0>(codes, table, b[0], sums[0]);
    multiply_column<K, M, 1>(codes, table, b[0], sums[0]);
    multiply_column<K, M, 2>(codes, table, b[0], sums[0]);
    multiply_column<K, M, 3>(codes, table, b[0], sums[0]);
  } else {
    const uint32_t a0 = decode_row<K, 2 * M>(codes.tile[0], table), a1 = decode_row<K, 2 * M + 1>(codes.tile[0], table);
    const uint32_t a2 = decode_row<K, 2 * M>(codes.tile[1], table), a3 = decode_row<K, 2 * M + 1>(codes.tile[1], table);
#pragma unroll
    for (int n = 0; n < NB; n++) mma_int8(sums[n], a0, a1, a2, a3, b[n].x, b[n].y);
  }
}

// A warp's int32 sums over its tiles of `count` steps from step `from`: sums[m][n][i] is row 8g + 2m + i / 2, token 8n + 2t + i % 2 of lane
// 4g + t.
template <int K, int NB>
__device__ inline void sum_steps(const PackedView& w, const InputView& in, int strip, int from, int count, uint32_t table,
                                 int (&sums)[4][NB][4]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, tile = from * kStepTiles + threadIdx.x / kWarp * kGroupTiles + 2 * (lane % 4);
  const int64_t stride = in.quantized_stride();
  const uint8_t* p = w.codes + (int64_t(strip) * w.tiles + tile) * tqn::tile_bytes(K) + g * (4 * K);
  const int8_t* x = in.quantized + g * stride + tile * tqn::kTileCols;
  uint2 b[NB] = {};  // zeros stay in the lanes of tokens that are not there: fewer lines to read
  LaneCodes<K> next;
  load_tiles<K>(p, next);
#pragma unroll 1
  for (int left = count; left > 0; left--) {
    LaneCodes<K> codes = next;
#pragma unroll
    for (int n = 0; n < NB; n++)
      if (n * kMmaTokens + g < in.rows) b[n] = *reinterpret_cast<const uint2*>(x + n * kMmaTokens * stride);
    p += kStepTiles * tqn::tile_bytes(K), x += kStepTiles * tqn::kTileCols;
    if (left > 1) load_tiles<K>(p, next);
    share_codes<K>(codes.tile[0]), share_codes<K>(codes.tile[1]);
    multiply_rows<K, NB, 0>(codes, table, b, sums[0]);
    multiply_rows<K, NB, 1>(codes, table, b, sums[1]);
    multiply_rows<K, NB, 2>(codes, table, b, sums[2]);
    multiply_rows<K, NB, 3>(codes, table, b, sums[3]);
  }
}

// Adds the warps' sums into shared memory, (tokens, 64).
template <int NB>
__device__ inline void add_warps(const int (&sums)[4][NB][4], int tokens, int* block_sums) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  for (int i = threadIdx.x; i < tokens * tqn::kTileRows; i += kGemvThreads) block_sums[i] = 0;
  __syncthreads();
#pragma unroll
  for (int m = 0; m < 4; m++)
#pragma unroll
    for (int n = 0; n < NB; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int token = n * kMmaTokens + 2 * t + i % 2;
        if (token < tokens) atomicAdd(&block_sums[token * tqn::kTileRows + kLaneRows * g + 2 * m + i / 2], sums[m][n][i]);
      }
  __syncthreads();
}

// Hands part of a strip's sums to the workspace. True for the block that completes the strip: block_sums then holds all, and the workspace
// is zero again.
__device__ inline bool complete_strip(int* sums, uint32_t* arrived, int steps, int all_steps, int tokens, int* block_sums) {
  __shared__ bool last;
  const int count = tokens * tqn::kTileRows;
  for (int i = threadIdx.x; i < count; i += kGemvThreads) atomicAdd(sums + i, block_sums[i]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived, uint32_t(steps)) + uint32_t(steps) == uint32_t(all_steps);
  __syncthreads();
  if (!last) return false;
  __threadfence();
  for (int i = threadIdx.x; i < count; i += kGemvThreads) block_sums[i] = __ldcg(sums + i), sums[i] = 0;
  if (threadIdx.x == 0) *arrived = 0;
  return true;
}

// S x of a strip's rows into shared memory, (tokens, 64); a warp a row.
__device__ inline void sum_outliers(const PackedView& w, const InputView& in, int first, int rows, float* sums) {
  const int lane = threadIdx.x % kWarp;
  for (int r = threadIdx.x / kWarp; r < rows; r += kGemvWarps)
    for (int token = 0; token < in.rows; token++) {
      const float sum = warp_sum(outlier_part(w.outliers, first + r, in.plain + int64_t(token) * in.n_in, lane));
      if (lane == 0) sums[token * tqn::kTileRows + r] = sum;
    }
  __syncthreads();
}

// Scales the sums of a strip and writes its rows. `extra`: shared memory for the outliers' sums.
__device__ inline void write_strip(const PackedView& w, const InputView& in, const OutputView& out, int strip, const int* block_sums, float* extra) {
  const int first = strip * tqn::kTileRows, rows = min(tqn::kTileRows, w.n_out - first);
  if (w.outliers.ptr) sum_outliers(w, in, first, rows, extra);
  for (int i = threadIdx.x; i < in.rows * tqn::kTileRows; i += kGemvThreads) {
    const int token = i / tqn::kTileRows, r = i % tqn::kTileRows;
    if (r >= rows) continue;
    const float product = w.scale * half_value(w.row_scale[first + r]) * in.scale[token] * float(block_sums[i]);
    write_output(out, token, first + r, w.outliers.ptr ? product + extra[i] : product);
  }
}

struct GemvLaunch {
  PackedProduct product;
  SplitSums split;
  int first_strip[kMaxOutputs + 1];  // of each matrix in the launch's list of strips
};

template <int K, int NB>
__global__ void __launch_bounds__(kGemvThreads, NB == 1 ? 3 : 2) gemv_kernel(const __grid_constant__ GemvLaunch launch) {
  extern __shared__ char shared[];
  __shared__ int block_sums[NB * kMmaTokens * tqn::kTileRows];
  __shared__ float outlier_sums[NB * kMmaTokens * tqn::kTileRows];
  const PackedProduct& product = launch.product;
  const InputView& in = product.in;
  const int steps = (product.matrix[0].tiles + kStepTiles - 1) / kStepTiles;
  const int64_t total = int64_t(launch.first_strip[product.count]) * steps;
  int64_t step = total * blockIdx.x / gridDim.x;
  const int64_t end = total * (blockIdx.x + 1) / gridDim.x;
  int loaded = -1;
  uint32_t table = 0;
  while (step < end) {
    const int strip = int(step / steps), from = int(step % steps), count = int(min(int64_t(steps - from), end - step));
    int m = 0;
    while (strip >= launch.first_strip[m + 1]) m++;
    const PackedView& w = product.matrix[m];
    if (K != 8 && m != loaded) {
      __syncthreads();
      const uint32_t base = fill_table(shared, w.codebook);
      __syncthreads();
      table = lane_table(base), loaded = m;
    }
    const int own = strip - launch.first_strip[m];
    int sums[4][NB][4] = {};
    sum_steps<K, NB>(w, in, own, from, count, table, sums);
    add_warps<NB>(sums, in.rows, block_sums);
    const bool complete = count == steps || complete_strip(launch.split.sums + int64_t(strip) * kGemvTokens * tqn::kTileRows,
                                                           launch.split.arrived + strip, count, steps, in.rows, block_sums);
    __syncthreads();
    if (complete) write_strip(w, in, product.out[m], own, block_sums, outlier_sums);
    __syncthreads();
    step += count;
  }
}

// Blocks of the kernel that run at once on the current device.
template <int K, int NB>
int resident_blocks() {
  static std::atomic<int> known[kMaxDevices] = {};
  int device = 0, blocks = 0;
  check(cudaGetDevice(&device), "current device");
  if (const int n = known[device]) return n;
  allow_shared(gemv_kernel<K, NB>, kTableSharedBytes);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, gemv_kernel<K, NB>, kGemvThreads, kTableSharedBytes), "occupancy of gemv");
  return known[device] = blocks * device_limits().processors;
}

template <int K, int NB>
void launch_gemv(const GemvLaunch& launch, cudaStream_t stream) {
  const int64_t steps =
      int64_t(launch.first_strip[launch.product.count]) * ((launch.product.matrix[0].tiles + kStepTiles - 1) / kStepTiles);
  const int64_t blocks = std::min<int64_t>(steps, resident_blocks<K, NB>());
  gemv_kernel<K, NB><<<unsigned(blocks), kGemvThreads, kTableSharedBytes, stream>>>(launch);
  check_launch("gemv");
}

template <int K>
void launch_gemv_format(const GemvLaunch& launch, cudaStream_t stream) {
  const int rows = launch.product.in.rows;
  if (rows <= 8)
    launch_gemv<K, 1>(launch, stream);
  else if (rows <= 16)
    launch_gemv<K, 2>(launch, stream);
  else
    launch_gemv<K, 4>(launch, stream);
}

}  // namespace tq::cuda
