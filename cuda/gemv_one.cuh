// y = W x for one token, by integer multiply-adds of single values: they and the look-ups' addresses (dp4a) use other pipes than the
// shifts and masks that form the indices. (A mma costs as much issue time as the four products that it does for one token.)
//
// The work is a list of steps: kSingleTokenTiles tiles of a strip, for each strip of each matrix. Blocks take equal runs of the list, one
// block a processor, and a block's warps equal runs of the block's. A strip that lies in several blocks is summed in the workspace.
#pragma once
#include <algorithm>
#include <utility>

#include "decode.cuh"
#include "dependent.h"
#include "epilogue.cuh"

namespace tq::cuda {

// Warps of a block: fewer have more registers to decode ahead in (96 with 20), which formats with a trellis repay.
constexpr int one_warps(int k) { return tqn::is_trellis(k) ? 20 : 24; }
inline constexpr int kTurn = 4;              // steps of a turn of the loop: an even number, so that what was fetched ahead need not move
inline constexpr int kSingleTokenRows = 16;  // rows of a tile that a lane owns: two groups
inline constexpr int kSingleTokenLanes = tqn::kTileRows / kSingleTokenRows;  // lanes of a tile
inline constexpr int kSingleTokenTiles = kWarp / kSingleTokenLanes;          // tiles of a step

// Tables of a codebook that a lane looks in. With three, whose values stand in different bytes, the first three values of a row are one
// word after one operation, and the products of a row are two instructions.
inline constexpr int kManyTables = 3;
// Steps of a block from which on filling them is repaid. At 4 bits loads take the time, not instructions.
inline constexpr int kManyTablesSteps = 600;
constexpr bool has_many_tables(int k) { return k < 4; }

struct GemvOneLaunch {
  PackedProduct product;
  SplitSums split;
  int first_strip[kMaxOutputs + 1];                 // of each matrix in the list of strips
  int share, rest;                                  // every block takes `share` steps, the first `rest` blocks one more
  int block_strips;                                 // that a block touches at most
  int n_books;                                      // matrices with a codebook of their own: equal ones share tables
  int book_of[kMaxOutputs], first_of[kMaxOutputs];  // of each matrix; of each codebook a matrix
  __host__ __device__ int steps() const { return (product.matrix[0].tiles + kSingleTokenTiles - 1) / kSingleTokenTiles; }  // of a strip
};

struct Run {
  int first, last;
  // Part i of N that differ by one step at most.
  template <int N>
  __device__ Run part(int i) const {
    const int share = (last - first) / N, rest = (last - first) % N, begin = first + share * i + min(i, rest);
    return {begin, begin + share + (i < rest)};
  }
};

// How a lane loads its activations: `coherent` by ld.global, else by ld.global.nc; `ordered`: the compiler leaves the load where the loop
// has it, between products. Chosen for each format by measurement (docs/cuda.md): what the compiler makes of the loop differs by up to 7 %.
struct InputLoad {
  bool coherent, ordered;
};
constexpr InputLoad input_load(int k) { return {!tqn::is_trellis(k), k != 2}; }

// A tile's four activations, as bytes and as integers.
struct OneInput {
  int four, x[tqn::kTileCols];
  __device__ explicit OneInput(int four) : four(four), x{widened<0x8880>(four), widened<0x9991>(four), widened<0xAAA2>(four), four >> 24} {}

 private:
  template <uint32_t Bytes>  // of a permutation: 8 + i is byte i's sign
  __device__ static int widened(int four) {
    int one;
    asm("prmt.b32 %0, %1, %1, %2;" : "=r"(one) : "r"(four), "n"(Bytes));
    return one;
  }
};

// Row 8 * Step of a group.
template <int Step, int Tables, int K>
__device__ inline int add_row(const Codes<K>& codes, const Nibbles<K>& nibbles, uint32_t table, const OneInput& in, int sum) {
  const uint32_t entries = entries_of<Step>(codes, nibbles);
  if constexpr (Tables == kManyTables) {
    constexpr int kNext = int(table_bytes(K));
    const uint32_t three = look_up<0>(table, entries) | look_up<1, kNext>(table, entries) | look_up<2, 2 * kNext>(table, entries);
    return __dp4a(int(look_up<3>(table, entries)), in.x[3], __dp4a(int(three), in.four, sum));
  }
  sum += int(look_up<0>(table, entries)) * in.x[0], sum += int(look_up<1>(table, entries)) * in.x[1];
  sum += int(look_up<2>(table, entries)) * in.x[2], sum += int(look_up<3>(table, entries)) * in.x[3];
  return sum;
}

// sums: of the rows 8r + 2q + e of lane q of a tile at 2r + e.
template <int Tables, int K, int... Steps>
__device__ inline void add_rows(const Codes<K> (&codes)[2], uint32_t table, int x, int (&sums)[kSingleTokenRows],
                                std::integer_sequence<int, Steps...>) {
  const OneInput in(x);
  const Nibbles<K> second(codes[1]), first(codes[0], second);
  ((sums[2 * Steps] = add_row<Steps, Tables>(codes[0], first, table, in, sums[2 * Steps])), ...);
  ((sums[2 * Steps + 1] = add_row<Steps, Tables>(codes[1], second, table, in, sums[2 * Steps + 1])), ...);
}

// Where a lane's part of a step lies; the strip's other steps follow it.
template <int K>
struct LanePart {
  const uint8_t* codes;
  const int8_t* x;
  __device__ LanePart(const PackedView& w, const int8_t* input, int strip, int step) {
    const int lane = threadIdx.x % kWarp, tile = step * kSingleTokenTiles + lane / kSingleTokenLanes;
    codes = w.group(strip, step * kSingleTokenTiles) + lane * 8;
    x = input + tile * tqn::kTileCols;
  }
  __device__ void advance(int steps) {
    codes += steps * kSingleTokenTiles * tqn::tile_bytes(K), x += steps * kSingleTokenTiles * tqn::kTileCols;
  }
};

// What it holds.
template <int K>
struct Fetched {
  Codes<K> codes[2];
  int x;
  __device__ void fetch_codes(const LanePart<K>& part) { load_codes(part.codes, codes); }
  __device__ void fetch_x(const LanePart<K>& part) {
    if constexpr (input_load(K).coherent)
      asm volatile("ld.global.u32 %0, [%1];" : "=r"(x) : "l"(part.x));
    else if constexpr (input_load(K).ordered)
      asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(x) : "l"(part.x));
    else
      asm("ld.global.nc.u32 %0, [%1];" : "=r"(x) : "l"(part.x));
  }
  __device__ void fetch(LanePart<K> part, int steps_on) { part.advance(steps_on), fetch_codes(part), fetch_x(part); }
  // Adds W x of the part to the lane's sums (all lanes of the warp).
  template <int Tables>
  __device__ void multiply(uint32_t table, int (&sums)[kSingleTokenRows]) {
    const int lane = threadIdx.x % kWarp, after = lane / kSingleTokenLanes * kSingleTokenLanes + (lane + 1) % kSingleTokenLanes;
    share_codes<K>(codes[1], codes[0], after);
    if constexpr (tqn::is_trellis(K)) {
      uint32_t next[Codes<K>::kShared];
#pragma unroll
      for (int i = 0; i < Codes<K>::kShared; i++) next[i] = codes[1].word[i];
      codes[0].reach(next);
    }
    add_rows<Tables>(codes, table, x, sums, std::make_integer_sequence<int, kLaneRows>());
  }
};

// The parts of a lane in a warp's run, each fetched one step ahead; one step behind a run is readable too (kCodesPadding).
template <int K>
class OneStream {
 public:
  __device__ explicit OneStream(const LanePart<K>& first) : at_(first) { now_.fetch_codes(at_); }
  __device__ void fetch_first_x(const int8_t* x) { at_.x = x, now_.fetch_x(at_); }
  // The lane's sums over `count` consecutive steps of a strip.
  template <int Tables>
  __device__ void add(int count, uint32_t table, int (&sums)[kSingleTokenRows]) {
#pragma unroll 1
    for (; count >= kTurn; count -= kTurn) {
#pragma unroll
      for (int i = 0; i < kTurn; i += 2) {
        Fetched<K> second;
        second.fetch(at_, i + 1);
        now_.template multiply<Tables>(table, sums);
        __syncwarp();  // else the next loads come first, and need registers of their own
        now_.fetch(at_, i + 2);
        second.template multiply<Tables>(table, sums);
        if (i + 2 < kTurn) __syncwarp();
      }
      at_.advance(kTurn);
    }
#pragma unroll 1
    for (; count > 0; count--) {
      Fetched<K> last = now_;
      at_.advance(1);
      now_.fetch(at_, 0);
      last.template multiply<Tables>(table, sums);
    }
  }
  // Goes on with another strip; its codes mostly follow, and are there.
  __device__ void seek(const LanePart<K>& part) {
    if (part.codes != at_.codes) now_.fetch_codes(part);
    at_ = part;
    now_.fetch_x(at_);
  }

 private:
  LanePart<K> at_;
  Fetched<K> now_;
};

// Adds N rows over the two halves of the lanes that differ in `bit`: the upper half keeps the upper rows.
template <int N>
__device__ inline void fold(int (&sums)[kSingleTokenRows], int bit) {
  const bool upper = threadIdx.x & bit;
#pragma unroll
  for (int i = 0; i < N / 2; i++) {
    const int give = upper ? sums[i] : sums[i + N / 2], keep = upper ? sums[i + N / 2] : sums[i];
    sums[i] = keep + __shfl_xor_sync(~0u, give, bit);
  }
}

// A warp's sums into the strip's, (64) in shared memory.
__device__ inline void add_warp(int (&sums)[kSingleTokenRows], int* strip_sums) {
  static_assert(kSingleTokenRows == 16 && kSingleTokenLanes == 4, "three folds leave two rows a lane");
  fold<16>(sums, 16), fold<8>(sums, 8), fold<4>(sums, 4);
  const int lane = threadIdx.x % kWarp;
  const int first = (lane & 16) / 2 + (lane & 8) / 2 + (lane & 4) / 2;  // of sums: an even number
  int* to = strip_sums + 4 * first + 2 * (lane % kSingleTokenLanes);
  atomicAdd(to, sums[0]), atomicAdd(to + 1, sums[1]);
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
  __device__ OneBlock(const GemvOneLaunch& l, int steps) {
    const int block = int(blockIdx.x);
    run.first = l.share * block + min(block, l.rest), run.last = run.first + l.share + (block < l.rest);
    first_strip = run.first / steps;
    strips = run.first < run.last ? (run.last - 1) / steps - first_strip + 1 : 0;
  }
  __device__ int rows() const { return strips * tqn::kTileRows; }
};

__device__ inline int matrix_of(const GemvOneLaunch& l, int strip) {
  int m = 0;
  while (strip >= l.first_strip[m + 1]) m++;
  return m;
}

// Into the second-level cache: nothing waits for them before the end.
__device__ inline void fetch_row_scales(const GemvOneLaunch& l, int strip) {
  const int m = matrix_of(l, strip);
  const uint16_t* scales = l.product.matrix[m].row_scale + (strip - l.first_strip[m]) * tqn::kTileRows;
  asm volatile("prefetch.global.L2 [%0];" ::"l"(scales));
}

// S x of the rows of strips that begin in this block, kOutlierLanes lanes a row.
inline constexpr int kOutlierLanes = 4;
__device__ inline void sum_block_outliers(const GemvOneLaunch& l, const OneBlock& block, int steps, float* extra) {
  static_assert(tqn::kTileRows % (kWarp / kOutlierLanes) == 0, "a warp's rows lie in one strip");
  const int lane = threadIdx.x % kOutlierLanes;
  for (int i = threadIdx.x / kOutlierLanes; i < block.rows(); i += blockDim.x / kOutlierLanes) {
    const int strip = block.first_strip + i / tqn::kTileRows, m = matrix_of(l, strip);
    const PackedView& w = l.product.matrix[m];
    if (!w.outliers.ptr || strip * steps < block.run.first) continue;
    const int row = (strip - l.first_strip[m]) * tqn::kTileRows + i % tqn::kTileRows;
    float sum = row < w.n_out ? outlier_part(w.outliers, row, l.product.in.plain, lane, kOutlierLanes) : 0.f;
#pragma unroll
    for (int d = kOutlierLanes / 2; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (lane == 0) extra[i] = sum;
  }
}

// Scales the block's sums and writes the rows that are complete.
__device__ inline void write_rows(const GemvOneLaunch& l, const OneBlock& block, int steps, const int* sums, const float* extras) {
  for (int i = threadIdx.x; i < block.rows(); i += blockDim.x) {
    const int strip = block.first_strip + i / tqn::kTileRows, r = i % tqn::kTileRows;
    const int m = matrix_of(l, strip), row = (strip - l.first_strip[m]) * tqn::kTileRows + r;
    const PackedView& w = l.product.matrix[m];
    if (row >= w.n_out) continue;
    const int begin = strip * steps, here = min(block.run.last, begin + steps) - max(block.run.first, begin);
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

// Tables for each codebook, and two values a row.
inline int64_t gemv_one_shared_bytes(const GemvOneLaunch& l, int k, int tables) {
  return int64_t(l.n_books) * tables * table_bytes(k) + int64_t(l.block_strips) * tqn::kTileRows * 8;
}

template <int K, int Tables>
__global__ void __launch_bounds__(one_warps(K) * kWarp, 1) gemv_one_kernel(const __grid_constant__ GemvOneLaunch l) {
  extern __shared__ __align__(16) char shared[];
  constexpr int kBookBytes = Tables * int(table_bytes(K));
  const int steps = l.steps(), warp = threadIdx.x / kWarp, total = l.first_strip[l.product.count] * steps;
  const OneBlock block(l, steps);
  const Run own = block.run.part<one_warps(K)>(warp);
  int* sums = reinterpret_cast<int*>(shared + l.n_books * kBookBytes);
  float* extra = reinterpret_cast<float*>(sums + block.rows());

  int step = own.first, strip = min(step, total - 1) / steps, m = matrix_of(l, strip);  // a run without steps may begin at the end
  const int8_t* input = l.product.in.quantized;
  const auto part = [&](int from) { return LanePart<K>(l.product.matrix[m], input, strip - l.first_strip[m], from); };
  OneStream<K> stream(part(min(step, total - 1) - strip * steps));
  for (int b = 0; b < l.n_books; b++)
    fill_table<K, Tables == 1, Tables>(shared + b * kBookBytes, l.product.matrix[l.first_of[b]].book.value);
  for (int i = threadIdx.x; i < block.rows(); i += blockDim.x) sums[i] = 0;
  for (int i = threadIdx.x; i < block.strips; i += blockDim.x) fetch_row_scales(l, block.first_strip + i);
  release_dependents();
  await_inputs();
  // The compiler could move such loads before the wait if it knew their address there: it gets to know it here.
  if constexpr (!input_load(K).coherent) asm volatile("" : "+l"(input)::"memory");
  stream.fetch_first_x(part(min(step, total - 1) - strip * steps).x);
  __syncthreads();
  if (warp % 2 == 0) sum_block_outliers(l, block, steps, extra);  // while the other warps multiply
  while (step < own.last) {
    const int count = min((strip + 1) * steps, own.last) - step;
    int* strip_sums = sums + (strip - block.first_strip) * tqn::kTileRows;
    const uint32_t table = lane_table(shared_address(shared) + l.book_of[m] * kBookBytes);
    int lane_sums[kSingleTokenRows] = {};
    stream.template add<Tables>(count, table, lane_sums);
    step += count;
    if (step < own.last) {
      strip++, m = matrix_of(l, strip);
      stream.seek(part(0));
    }
    add_warp(lane_sums, strip_sums);
  }
  if (warp % 2 == 1) sum_block_outliers(l, block, steps, extra);
  __syncthreads();
  write_rows(l, block, steps, sums, extra);
}

inline void share_tables(GemvOneLaunch& l) {
  for (int m = 0; m < l.product.count; m++) {
    int b = 0;
    while (b < l.n_books && l.product.matrix[l.first_of[b]].book != l.product.matrix[m].book) b++;
    if (b == l.n_books) l.first_of[l.n_books++] = m;
    l.book_of[m] = b;
  }
}

template <int K>
void launch_gemv_one(const PackedProduct& product, const SplitSums& split, cudaStream_t stream) {
  GemvOneLaunch launch{product, split, {}, 0, 0, 0, 0, {}, {}};
  share_tables(launch);
  for (int m = 0; m < product.count; m++) launch.first_strip[m + 1] = launch.first_strip[m] + product.matrix[m].strips;
  const int64_t strips = launch.first_strip[launch.product.count], steps = strips * launch.steps();
  constexpr int64_t kMostStrips = 32;  // of a block: their sums stand in shared memory
  const int64_t blocks = std::max<int64_t>(device_limits().processors, (strips + kMostStrips - 1) / kMostStrips);
  launch.share = int(steps / blocks), launch.rest = int(steps % blocks);
  launch.block_strips = int(((steps + blocks - 1) / blocks + launch.steps() - 2) / launch.steps() + 1);
  const int64_t few = gemv_one_shared_bytes(launch, K, 1), many = gemv_one_shared_bytes(launch, K, kManyTables);
  if (few > device_limits().shared_bytes && product.count > 1) {  // too many tables for this device at once
    for (int m = 0; m < product.count; m++) {
      PackedProduct one = product;
      one.count = 1, one.matrix[0] = product.matrix[m], one.out[0] = product.out[m];
      launch_gemv_one<K>(one, split, stream);
    }
    return;
  }
  auto kernel = gemv_one_kernel<K, 1>;
  int64_t bytes = few;
  if constexpr (has_many_tables(K))
    if (launch.share >= kManyTablesSteps && many <= device_limits().shared_bytes) kernel = gemv_one_kernel<K, kManyTables>, bytes = many;
  allow_shared(kernel, bytes);
  launch_dependent("gemv", kernel, dim3(unsigned(blocks)), one_warps(K) * kWarp, bytes, stream, launch);
}

}  // namespace tq::cuda
