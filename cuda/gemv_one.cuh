// y = W x for one token, in float: codebook values and activations are whole numbers, so that sums below 2^24 are exact and equal those of
// the kernel for several tokens. (A mma costs as much issue time as the four products that it does for one token.)
//
// The work is a list of steps: kOneTiles tiles of a strip, for each strip of each matrix. Blocks take equal runs of the list, one block a
// processor, and a block's warps equal runs of the block's. A strip that lies in several blocks is summed in the workspace.
#pragma once
#include <algorithm>
#include <utility>

#include "decode.cuh"
#include "dependent.h"
#include "epilogue.cuh"

namespace tq::cuda {

inline constexpr int kOneWarps = 24;
inline constexpr int kOneThreads = kOneWarps * kWarp;
inline constexpr int kOneRows = 16;                                                           // rows of a tile that a lane owns
inline constexpr int kTileLanes = tqn::kTileRows / kOneRows;                                  // lanes of a tile
inline constexpr int kOneTiles = kWarp / kTileLanes;                                          // tiles of a step
inline constexpr int kExactSteps = (1 << 24) / (128 * tqn::kActivationMax * tqn::kTileCols);  // that a lane may sum in float
inline constexpr uint32_t kOneTableBytes = kColumnTable;

struct GemvOneLaunch {
  PackedProduct product;
  SplitSums split;
  int first_strip[kMaxOutputs + 1];  // of each matrix in the list of strips
  int block_strips;                  // that a block touches at most
  __host__ __device__ int steps() const { return (product.matrix[0].tiles + kOneTiles - 1) / kOneTiles; }  // of a strip
};

struct Run {
  int64_t first, last;
  // Part i of n equal ones.
  __host__ __device__ Run part(int i, int n) const { return {first + (last - first) * i / n, first + (last - first) * (i + 1) / n}; }
};

// The codebook as floats, entry e for lane l at word 32 e + l; all threads of the block.
__device__ inline void fill_float_table(float* table, const int8_t* codebook) {
  for (int i = threadIdx.x; i < tqn::kCodebookSize * kWarp; i += kOneThreads) table[i] = float(codebook[i / kWarp]);
}

__device__ inline float look_up_float(uint32_t lane_table, uint32_t index_bits) {
  float value;
  asm("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"((index_bits & kEntryMask) | lane_table));
  return value;
}

template <int Row, int K>
__device__ inline float row_product(const Codes<K, kOneRows>& codes, uint32_t table, float4 x, float sum) {
  sum = fmaf(look_up_float(table, index_bits<4 * Row>(codes)), x.x, sum);
  sum = fmaf(look_up_float(table, index_bits<4 * Row + 1>(codes)), x.y, sum);
  sum = fmaf(look_up_float(table, index_bits<4 * Row + 2>(codes)), x.z, sum);
  return fmaf(look_up_float(table, index_bits<4 * Row + 3>(codes)), x.w, sum);
}

template <int K, int... Rows>
__device__ inline void add_products(const Codes<K, kOneRows>& codes, uint32_t table, float4 x, float (&sums)[kOneRows],
                                    std::integer_sequence<int, Rows...>) {
  ((sums[Rows] = row_product<Rows>(codes, table, x, sums[Rows])), ...);
}

// A lane's part of consecutive steps of a strip.
template <int K>
class OneStream {
 public:
  __device__ OneStream(const PackedView& w, const float* x, int strip, int step) {
    const int lane = threadIdx.x % kWarp, tile = step * kOneTiles + lane / kTileLanes;
    codes_ = w.codes + (int64_t(strip) * w.tiles + tile) * tqn::tile_bytes(K) + lane % kTileLanes * (tqn::tile_bytes(K) / kTileLanes);
    x_ = x + tile * tqn::kTileCols;
    load_codes(codes_, next_);
  }
  // The lane's sums over `count` steps.
  __device__ void add(int count, uint32_t table, float (&sums)[kOneRows]) {
    const int lane = threadIdx.x % kWarp, after = lane / kTileLanes * kTileLanes + (lane + 1) % kTileLanes;
    float4 x = load_x();
#pragma unroll 1
    while (true) {
      Codes<K, kOneRows> now = next_;
      const float4 own = x;
      const bool more = --count > 0;
      if (more) {
        codes_ += kOneTiles * tqn::tile_bytes(K), x_ += kOneTiles * tqn::kTileCols;
        load_codes(codes_, next_), x = load_x();
      }
      if constexpr (tqn::is_trellis(K)) now.word[Codes<K, kOneRows>::kOwn] = __shfl_sync(~0u, now.word[0], after);
      add_products(now, table, own, sums, std::make_integer_sequence<int, kOneRows>());
      if (!more) return;
    }
  }

 private:
  __device__ float4 load_x() const { return __ldg(reinterpret_cast<const float4*>(x_)); }

  const uint8_t* codes_;
  const float* x_;
  Codes<K, kOneRows> next_;
};

// Adds N rows over the two halves of the lanes that differ in `bit`: the upper half keeps the upper rows.
template <int N>
__device__ inline void fold(int (&sums)[kOneRows], int bit) {
  const bool upper = threadIdx.x & bit;
#pragma unroll
  for (int i = 0; i < N / 2; i++) {
    const int give = upper ? sums[i] : sums[i + N / 2], keep = upper ? sums[i + N / 2] : sums[i];
    sums[i] = keep + __shfl_xor_sync(~0u, give, bit);
  }
}

// A warp's sums into the strip's, (64) in shared memory.
__device__ inline void add_warp(const float (&sums)[kOneRows], int* strip_sums) {
  int whole[kOneRows];
#pragma unroll
  for (int i = 0; i < kOneRows; i++) whole[i] = __float2int_rn(sums[i]);
  static_assert(kOneRows == 16 && kTileLanes == 4, "three folds leave two rows a lane");
  fold<16>(whole, 16), fold<8>(whole, 8), fold<4>(whole, 4);
  const int lane = threadIdx.x % kWarp;
  int* to = strip_sums + lane % kTileLanes * kOneRows + (lane & 16) / 2 + (lane & 8) / 2 + (lane & 4) / 2;
  atomicAdd(to, whole[0]), atomicAdd(to + 1, whole[1]);
}

// Adds a block's sum of one row, over `here` of a strip's `steps` steps, to the others'. True for the block that completes it: sum and
// extra (of the outliers, known to the block with the strip's first step) are then the row's, and the workspace is zero again. One 64-bit
// word carries the sum and, from bit 40, the steps that it covers.
__device__ inline bool join(int32_t* workspace, int r, int here, int steps, bool has_outliers, bool first, int& sum, float& extra) {
  constexpr int kCountBit = 40;
  auto* word = reinterpret_cast<unsigned long long*>(workspace) + r;
  auto* shared_extra = reinterpret_cast<float*>(workspace + 2 * tqn::kTileRows) + r;
  if (has_outliers && first) __stcg(shared_extra, extra), __threadfence();
  const int64_t mine = (int64_t(here) << kCountBit) + sum;
  const int64_t all = int64_t(atomicAdd(word, static_cast<unsigned long long>(mine))) + mine;
  if ((all + (int64_t(1) << (kCountBit - 1))) >> kCountBit != steps) return false;
  sum = int(all - (int64_t(steps) << kCountBit)), *word = 0;
  if (!has_outliers) return true;
  __threadfence();
  extra = __ldcg(shared_extra), *shared_extra = 0;
  return true;
}

// What a block knows of its run.
struct OneBlock {
  Run run;
  int first_strip, strips;  // touched
  __device__ OneBlock(const GemvOneLaunch& l, int steps)
      : run(Run{0, int64_t(l.first_strip[l.product.count]) * steps}.part(int(blockIdx.x), int(gridDim.x))),
        first_strip(int(run.first / steps)),
        strips(run.first < run.last ? int((run.last - 1) / steps) - first_strip + 1 : 0) {}
};

__device__ inline int matrix_of(const GemvOneLaunch& l, int strip) {
  int m = 0;
  while (strip >= l.first_strip[m + 1]) m++;
  return m;
}

// S x of the rows of strips that begin in this block, by every other warp from `warp` on; a warp a row.
__device__ inline void sum_block_outliers(const GemvOneLaunch& l, const OneBlock& block, int steps, float* extra) {
  const int lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x / kWarp; i < block.strips * tqn::kTileRows; i += kOneWarps) {
    const int strip = block.first_strip + i / tqn::kTileRows;
    const int m = matrix_of(l, strip), row = (strip - l.first_strip[m]) * tqn::kTileRows + i % tqn::kTileRows;
    const PackedView& w = l.product.matrix[m];
    if (!w.outliers.ptr || row >= w.n_out || int64_t(strip) * steps < block.run.first) continue;
    const float sum = warp_sum(outlier_part(w.outliers, row, l.product.in.plain, lane));
    if (lane == 0) extra[i] = sum;
  }
}

// Scales the block's sums and writes the rows that are complete.
__device__ inline void write_rows(const GemvOneLaunch& l, const OneBlock& block, int steps, const int* sums, const float* extras) {
  for (int i = threadIdx.x; i < block.strips * tqn::kTileRows; i += kOneThreads) {
    const int strip = block.first_strip + i / tqn::kTileRows, r = i % tqn::kTileRows;
    const int m = matrix_of(l, strip), row = (strip - l.first_strip[m]) * tqn::kTileRows + r;
    const PackedView& w = l.product.matrix[m];
    if (row >= w.n_out) continue;
    const int64_t begin = int64_t(strip) * steps;
    const int here = int(min(block.run.last, begin + steps) - max(block.run.first, begin));
    const bool has_outliers = w.outliers.ptr != nullptr, first = begin >= block.run.first;
    int sum = sums[i];
    float extra = has_outliers && first ? extras[i] : 0.f;
    const float scale = w.scale * half_value(w.row_scale[row]) * l.product.in.scale[0];
    if (here < steps &&
        !join(l.split.sums + int64_t(strip) * kGemvTokens * tqn::kTileRows, r, here, steps, has_outliers, first, sum, extra))
      continue;
    const float product = scale * float(sum);
    write_output(l.product.out[m], 0, row, has_outliers ? product + extra : product);
  }
}

inline int64_t gemv_one_shared_bytes(const GemvOneLaunch& l) {
  return int64_t(l.product.count + 1) * kOneTableBytes + int64_t(l.block_strips) * tqn::kTileRows * 8;
}

template <int K>
__global__ void __launch_bounds__(kOneThreads, 1) gemv_one_kernel(const __grid_constant__ GemvOneLaunch l) {
  extern __shared__ __align__(16) char shared[];
  const int steps = l.steps(), warp = threadIdx.x / kWarp;
  const OneBlock block(l, steps);
  const Run own = block.run.part(warp, kOneWarps);
  // The tables' base is aligned to their size, so that OR can form addresses.
  const uint32_t start = shared_address(shared), base = (start + kOneTableBytes - 1) / kOneTableBytes * kOneTableBytes;
  float* tables = reinterpret_cast<float*>(shared + (base - start));
  int* sums = reinterpret_cast<int*>(tables + l.product.count * (kOneTableBytes / sizeof(float)));
  float* extra = reinterpret_cast<float*>(sums + block.strips * tqn::kTileRows);

  int64_t step = own.first;
  int strip = int(step / steps), m = block.strips ? matrix_of(l, min(strip, l.first_strip[l.product.count] - 1)) : 0;
  OneStream<K> stream(l.product.matrix[m], l.product.in.whole, strip - l.first_strip[m], int(step % steps));
  if (block.strips) {
    const int last = matrix_of(l, block.first_strip + block.strips - 1);
    for (int t = matrix_of(l, block.first_strip); t <= last; t++)
      fill_float_table(tables + t * (kOneTableBytes / sizeof(float)), l.product.matrix[t].codebook);
  }
  for (int i = threadIdx.x; i < block.strips * tqn::kTileRows; i += kOneThreads) sums[i] = 0;
  release_dependents();
  await_inputs();
  __syncthreads();
  if (warp % 2 == 0) sum_block_outliers(l, block, steps, extra);  // while the other warps multiply
  while (step < own.last) {
    const int from = int(step % steps), count = min(int(min(int64_t(steps - from), own.last - step)), kExactSteps);
    float lane_sums[kOneRows] = {};
    stream.add(count, lane_table(base + m * kOneTableBytes), lane_sums);
    add_warp(lane_sums, sums + (strip - block.first_strip) * tqn::kTileRows);
    step += count;
    if (step >= own.last) break;
    strip = int(step / steps), m = matrix_of(l, strip);
    stream = OneStream<K>(l.product.matrix[m], l.product.in.whole, strip - l.first_strip[m], int(step % steps));
  }
  if (warp % 2 == 1) sum_block_outliers(l, block, steps, extra);
  __syncthreads();
  write_rows(l, block, steps, sums, extra);
}

template <int K>
void launch_gemv_one(const PackedProduct& product, const SplitSums& split, cudaStream_t stream) {
  GemvOneLaunch launch{product, split, {}, 0};
  for (int m = 0; m < product.count; m++) launch.first_strip[m + 1] = launch.first_strip[m] + product.matrix[m].strips;
  const int64_t strips = launch.first_strip[launch.product.count], steps = strips * launch.steps();
  constexpr int64_t kMostStrips = 128;  // of a block: their sums stand in shared memory
  const int64_t blocks = std::max<int64_t>(device_limits().processors, (strips + kMostStrips - 1) / kMostStrips);
  launch.block_strips = int(((steps + blocks - 1) / blocks + launch.steps() - 2) / launch.steps() + 1);
  const int64_t bytes = gemv_one_shared_bytes(launch);
  allow_shared(gemv_one_kernel<K>, bytes);
  launch_dependent("gemv", gemv_one_kernel<K>, dim3(unsigned(blocks)), kOneThreads, bytes, stream, launch);
}

}  // namespace tq::cuda
