// y = W x for a few tokens: a warp decodes 64 rows x 32 columns at a time into operands of the tensor cores, so that eight tokens cost what
// one does. The chip shares the work evenly: a launch is a list of steps (kStepTiles tiles of a strip), cut into equal runs, one a block. A
// block that owns part of a strip adds its int32 sums to a workspace (integers: the order does not matter); the block that completes a
// strip writes it.
#pragma once
#include <algorithm>
#include <atomic>

#include "device.h"
#include "epilogue.cuh"
#include "gemv_launch.h"
#include "gemv_one.cuh"
#include "mma.cuh"

namespace tq::cuda {

inline constexpr int kGemvWarps = 8;
inline constexpr int kGemvThreads = kGemvWarps * kWarp;
inline constexpr int kStepTiles = kGemvWarps * kGroupTiles;
inline constexpr int kMmaTokens = 8;

template <int K>
struct LaneCodes {
  Codes<K> tile[2];
};

// A warp's codes on their way: whole groups of tiles are copied to shared memory in the order in which they lie, a few steps ahead, and
// each lane then picks its own words. (Lanes that loaded their own words from global memory would touch a line each.)
template <int K>
class CodeStream {
 public:
  static constexpr uint32_t kSlots = 4;
  static constexpr uint32_t kTileStride = 32 * K + 16;  // the lanes that read at once meet different banks
  static constexpr uint32_t kSlotBytes = kGroupTiles * kTileStride;
  static constexpr uint32_t kBlockBytes = kGemvWarps * kSlots * kSlotBytes;

  // Starts the copies of `count` steps from `step` on; `ring`: the block's part of shared memory.
  __device__ CodeStream(const PackedView& w, int strip, int step, int count, uint32_t ring) : left_(count) {
    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    from_ = w.group(strip, step * kStepTiles + warp * kGroupTiles) + lane * 16;
    ring += warp * (kSlots * kSlotBytes);
    read_ = ring + lane % 4 * (2 * kTileStride) + lane / 4 * 4;
#pragma unroll
    for (uint32_t i = 0; i < kCopies; i++) {
      constexpr uint32_t halves = 2 * kGroupTiles;  // of a plane of all tiles: chunks
      const uint32_t chunk = i * kWarp + lane, half = chunk % halves;
      write_[i] = ring + half / 2 * kTileStride + chunk / halves * tqn::kTileLanes + half % 2 * 16;
    }
#pragma unroll
    for (uint32_t i = 0; i < kSlots - 1; i++) copy(i * kSlotBytes);
  }

  // The next step's words of this lane.
  __device__ void next(LaneCodes<K>& codes) {
    wait_copies<kSlots - 2>();
    __syncwarp();
    load_shared_codes<K>(read_ + slot_, codes.tile[0]), load_shared_codes<K>(read_ + slot_ + kTileStride, codes.tile[1]);
    copy(slot_ == 0 ? (kSlots - 1) * kSlotBytes : slot_ - kSlotBytes);  // over the slot that all lanes read one step ago
    slot_ = slot_ == (kSlots - 1) * kSlotBytes ? 0 : slot_ + kSlotBytes;
    share_codes<K>(codes.tile[0]), share_codes<K>(codes.tile[1]);
  }

 private:
  static constexpr uint32_t kChunks = kGroupTiles * 2 * K;  // of 16 bytes, in a group
  static constexpr uint32_t kCopies = (kChunks + kWarp - 1) / kWarp;

  __device__ void copy(uint32_t slot) {
    if (left_ > 0) {
#pragma unroll
      for (uint32_t i = 0; i < kCopies; i++)
        if (kChunks % kWarp == 0 || i * kWarp + threadIdx.x % kWarp < kChunks) copy_async(write_[i] + slot, from_ + i * (kWarp * 16));
    }
    commit_copies();
    left_--, from_ += kStepTiles * tqn::tile_bytes(K);
  }

  const uint8_t* from_;
  uint32_t read_, write_[kCopies];  // addresses of this lane in slot 0
  uint32_t slot_ = 0;
  int left_;
};

// Column C of two rows of both tiles, each value in the lowest byte of a word of its own, which meets that column of the tokens: cheaper
// than joining four of them where a mma serves one lane's tokens.
template <int C>
__device__ inline void multiply_column(const uint32_t (&entries)[4], uint32_t table, uint2 b, int (&sums)[4]) {
  mma_int8(sums, look_up<C>(table, entries[0]), look_up<C>(table, entries[1]), look_up<C>(table, entries[2]), look_up<C>(table, entries[3]),
           b.x >> (8 * C), b.y >> (8 * C));
}

// Steps 2M and 2M + 1 of a lane's two groups times NB groups of eight tokens.
template <int K, int NB, int M>
__device__ inline void multiply_rows(const LaneCodes<K>& codes, const Nibbles<K> (&nibbles)[2], uint32_t table, const uint2 (&b)[NB],
                                     int (&sums)[NB][4]) {
  const auto &first = codes.tile[0], &second = codes.tile[1];
  if constexpr (NB == 1 && K != 8) {
    const uint32_t entries[4] = {entries_of<2 * M>(first, nibbles[0]), entries_of<2 * M + 1>(first, nibbles[0]),
                                 entries_of<2 * M>(second, nibbles[1]), entries_of<2 * M + 1>(second, nibbles[1])};
    multiply_column<0>(entries, table, b[0], sums[0]);
    multiply_column<1>(entries, table, b[0], sums[0]);
    multiply_column<2>(entries, table, b[0], sums[0]);
    multiply_column<3>(entries, table, b[0], sums[0]);
  } else {
    const uint32_t a0 = decode_row<K, 2 * M>(first, nibbles[0], table), a1 = decode_row<K, 2 * M + 1>(first, nibbles[0], table);
    const uint32_t a2 = decode_row<K, 2 * M>(second, nibbles[1], table), a3 = decode_row<K, 2 * M + 1>(second, nibbles[1], table);
#pragma unroll
    for (int n = 0; n < NB; n++) mma_int8(sums[n], a0, a1, a2, a3, b[n].x, b[n].y);
  }
}

// A warp's int32 sums over its tiles of `count` steps from step `from`: sums[m][n][i] is row 16m + 8 * (i / 2) + g, token 8n + 2t + i % 2
// of lane 4g + t.
template <int K, int NB>
__device__ inline void sum_steps(CodeStream<K>& stream, const InputView& in, int from, int count, uint32_t table, int (&sums)[4][NB][4]) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, tile = from * kStepTiles + threadIdx.x / kWarp * kGroupTiles + 2 * (lane % 4);
  const int64_t stride = in.quantized_stride();
  const int8_t* x = in.quantized + g * stride + tile * tqn::kTileCols;
  uint2 b[NB] = {};  // zeros stay in the lanes of tokens that are not there: fewer lines to read
#pragma unroll 1
  for (int left = count; left > 0; left--, x += kStepTiles * tqn::kTileCols) {
#pragma unroll
    for (int n = 0; n < NB; n++)
      if (n * kMmaTokens + g < in.rows) b[n] = *reinterpret_cast<const uint2*>(x + n * kMmaTokens * stride);
    LaneCodes<K> codes;
    stream.next(codes);
    const Nibbles<K> nibbles[2] = {Nibbles<K>(codes.tile[0]), Nibbles<K>(codes.tile[1])};
    multiply_rows<K, NB, 0>(codes, nibbles, table, b, sums[0]);
    multiply_rows<K, NB, 1>(codes, nibbles, table, b, sums[1]);
    multiply_rows<K, NB, 2>(codes, nibbles, table, b, sums[2]);
    multiply_rows<K, NB, 3>(codes, nibbles, table, b, sums[3]);
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
        if (token < tokens) atomicAdd(&block_sums[token * tqn::kTileRows + 16 * m + 8 * (i / 2) + g], sums[m][n][i]);
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
__device__ inline void write_strip(const PackedView& w, const InputView& in, const OutputView& out, int strip, const int* block_sums,
                                   float* extra) {
  const int first = strip * tqn::kTileRows, rows = min(tqn::kTileRows, w.n_out - first);
  if (w.outliers.ptr) sum_outliers(w, in, first, rows, extra);
  for (int i = threadIdx.x; i < in.rows * tqn::kTileRows; i += kGemvThreads) {
    const int token = i / tqn::kTileRows, r = i % tqn::kTileRows;
    if (r >= rows) continue;
    const float product = w.scale * half_value(w.row_scale[first + r]) * in.scale[token] * float(block_sums[i]);
    write_output(out, token, first + r, w.outliers.ptr ? product + extra[i] : product);
  }
}

// The table in shared memory and the codebook that it holds.
struct LoadedTable {
  const int8_t* codebook = nullptr;
  uint32_t lane = 0;  // lane_table()
};

// A block's part of a strip: the steps [from, from + count) of `steps`.
struct StripPart {
  int strip, from, count, steps;
};

// Sums a part of a strip of w; the block that completes the strip writes its rows. sums (tokens, 64) and arrived: the strip's own in the
// workspace.
template <int K, int NB>
__device__ inline void multiply_strip(const PackedView& w, const InputView& in, const OutputView& out, const StripPart& part,
                                      int32_t* split_sums, uint32_t* arrived, LoadedTable& table) {
  extern __shared__ __align__(16) char shared[];
  __shared__ int block_sums[NB * kMmaTokens * tqn::kTileRows];
  __shared__ float outlier_sums[NB * kMmaTokens * tqn::kTileRows];
  CodeStream<K> stream(w, part.strip, part.from, part.count, shared_address(shared) + table_bytes(K));
  if (K != 8 && w.codebook != table.codebook) {
    fill_table<K, false>(shared, w.codebook);
    __syncthreads();
    table.lane = lane_table(shared_address(shared)), table.codebook = w.codebook;
  }
  int sums[4][NB][4] = {};
  sum_steps<K, NB>(stream, in, part.from, part.count, table.lane, sums);
  add_warps<NB>(sums, in.rows, block_sums);
  const bool complete = part.count == part.steps || complete_strip(split_sums, arrived, part.count, part.steps, in.rows, block_sums);
  __syncthreads();
  if (complete) write_strip(w, in, out, part.strip, block_sums, outlier_sums);
  __syncthreads();
}

// The steps [first, last) of a list of strips that a block does: a piece of one strip where there are `pieces` blocks for each, else
// (pieces 0) an equal share.
__device__ inline void block_share(int64_t strips, int steps, int pieces, int64_t& first, int64_t& last) {
  if (pieces > 0) {
    const int64_t strip = blockIdx.x / pieces, piece = blockIdx.x % pieces;
    first = strip * steps + steps * piece / pieces, last = strip * steps + steps * (piece + 1) / pieces;
    if (strip >= strips) first = last;
  } else {
    const int64_t total = strips * steps;
    first = total * blockIdx.x / gridDim.x, last = total * (blockIdx.x + 1) / gridDim.x;
  }
}

// The part of its strip with which the steps [step, end) begin.
__device__ inline StripPart first_part(int64_t step, int64_t end, int steps) {
  const int from = int(step % steps);
  return {int(step / steps), from, int(min(int64_t(steps - from), end - step)), steps};
}

__host__ __device__ inline int steps_of(const PackedView& w) { return (w.tiles + kStepTiles - 1) / kStepTiles; }

template <int K>
constexpr int gemv_shared_bytes() {
  return int(table_bytes(K) + CodeStream<K>::kBlockBytes);
}

template <int K, int NB>
__global__ void __launch_bounds__(kGemvThreads, NB == 1 ? 3 : 2) gemv_kernel(const __grid_constant__ GemvLaunch launch) {
  const PackedProduct& product = launch.product;
  const int steps = steps_of(product.matrix[0]);
  int64_t step, end;
  block_share(launch.strips(), steps, launch.blocks_a_strip, step, end);
  LoadedTable table;
  while (step < end) {
    StripPart part = first_part(step, end, steps);
    const int strip = part.strip;
    int m = 0;
    while (strip >= launch.first_strip[m + 1]) m++;
    part.strip -= launch.first_strip[m];
    multiply_strip<K, NB>(product.matrix[m], product.in, product.out[m], part,
                          launch.split.sums + int64_t(strip) * kGemvTokens * tqn::kTileRows, launch.split.arrived + strip, table);
    step += part.count;
  }
}

// Blocks of a kernel that run at once on the current device; lets it use its shared memory.
template <auto Kernel>
int resident_blocks(int shared_bytes) {
  static std::atomic<int> known[kMaxDevices] = {};
  int device = 0, blocks = 0;
  check(cudaGetDevice(&device), "current device");
  if (const int n = known[device]) return n;
  allow_shared(Kernel, shared_bytes);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, Kernel, kGemvThreads, size_t(shared_bytes)), "occupancy of gemv");
  return known[device] = blocks * device_limits().processors;
}

template <int K, int NB>
void launch_gemv(GemvLaunch launch, cudaStream_t stream) {
  const int strips = launch.strips(), resident = resident_blocks<gemv_kernel<K, NB>>(gemv_shared_bytes<K>());
  launch.blocks_a_strip = std::min(steps_of(launch.product.matrix[0]), resident / strips);
  const int64_t blocks = launch.blocks_a_strip > 0 ? int64_t(strips) * launch.blocks_a_strip : resident;
  gemv_kernel<K, NB><<<unsigned(blocks), kGemvThreads, gemv_shared_bytes<K>(), stream>>>(launch);
  check_launch("gemv");
}

template <int K>
void launch_gemv_format(const GemvLaunch& launch, cudaStream_t stream) {
  const int rows = launch.product.in.rows;
  if constexpr (tqn::has_codebook(K)) {
    if (rows == 1) return launch_gemv_one<K>(launch.product, launch.split, stream);
  }
  if (rows <= 8)
    launch_gemv<K, 1>(launch, stream);
  else if (rows <= 16)
    launch_gemv<K, 2>(launch, stream);
  else
    launch_gemv<K, 4>(launch, stream);
}

}  // namespace tq::cuda
