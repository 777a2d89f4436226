// y = W x for few tokens and packed W. A thread-group multiplies a strip of 64 rows, or one of `splits` parts of its columns, by M tokens:
// a simdgroup takes eight tiles (32 columns) at a time, four lanes a tile, each lane 16 rows. Products are exact in float: a lane adds at
// most 1024 of them, each below 2^14.
#include "arguments.h"
#include "decode.h"
#include "epilogue.h"

namespace tq {

TQ_CONSTANT uint kTileQuads = 4;                           // lanes of a tile
TQ_CONSTANT uint kLaneRows = tqn::kTileRows / kTileQuads;  // rows of a lane
TQ_CONSTANT uint kSimdTiles = 32 / kTileQuads;             // tiles of a simdgroup
TQ_CONSTANT uint kGemvSimds = kGemvThreads / 32;
TQ_CONSTANT uint kStepTiles = kGemvSimds * kSimdTiles;
static_assert(kStepTiles * tqn::kTileCols == kGemvStepColumns, "a step of a thread-group");
static_assert(tqn::kMaxInputs / kGemvStepColumns * tqn::kTileCols * 127 * 128 < (1 << 24), "sums of a lane are exact in float");

// Whole: int8 activations and int32 sums; else floats.
template <bool Whole>
struct Inputs;
template <>
struct Inputs<true> {
  typedef int Sum;
  static float4 load(device const uchar* x, uint stride, uint row, uint column) {
    return float4(*(device const char4*)(x + ulong(row) * stride + column));
  }
  static float scale(device const float* x_scale, uint row) { return x_scale[row]; }
  static int pack(int sum) { return sum; }
  static int unpack(int bits) { return bits; }
};
template <>
struct Inputs<false> {
  typedef float Sum;
  static float4 load(device const uchar* x, uint stride, uint row, uint column) {
    return *(device const float4*)(x + (ulong(row) * stride + column) * 4);
  }
  static float scale(device const float*, uint) { return 1; }
  static int pack(float sum) { return as_type<int>(sum); }
  static float unpack(int bits) { return as_type<float>(bits); }
};

// One row of both groups of a lane times M tokens.
template <int K, int M, int Step>
struct Rows {
  static void add(thread const Pair<K>& codes, threadgroup const half* table, thread const float4* x, thread float* sums) {
    Rows<K, M, Step - 1>::add(codes, table, x, sums);
    const float4 even = Table<K>::template row<Step>(codes.even, table), odd = Table<K>::template row<Step>(codes.odd, table);
    TQ_UNROLL
    for (int m = 0; m < M; m++) {
      thread float* to = sums + m * kLaneRows + 2 * Step;
      to[0] += even.x * x[m].x + even.y * x[m].y + even.z * x[m].z + even.w * x[m].w;
      to[1] += odd.x * x[m].x + odd.y * x[m].y + odd.z * x[m].z + odd.w * x[m].w;
    }
  }
};
template <int K, int M>
struct Rows<K, M, -1> {
  static void add(thread const Pair<K>&, threadgroup const half*, thread const float4*, thread float*) {}
};

// Adds N rows over the two halves of the lanes that differ in `bit`: the upper half keeps the upper rows.
template <int N, class T>
inline void fold(thread T* sums, uint lane, uint bit) {
  const bool upper = (lane & bit) != 0;
  TQ_UNROLL
  for (int i = 0; i < N / 2; i++) {
    const T give = upper ? sums[i] : sums[i + N / 2], keep = upper ? sums[i + N / 2] : sums[i];
    sums[i] = keep + simd_shuffle_xor(give, ushort(bit));
  }
}

// The sums of steps [first, last) of a strip into shared memory: (simdgroups, M, 64).
template <int K, int M, bool Whole>
inline void multiply_strip(device const uchar* strip, uint tiles, device const uchar* x, uint x_stride, uint row, uint rows, uint first,
                           uint last, threadgroup const half* table, uint lane, uint sg, threadgroup typename Inputs<Whole>::Sum* to) {
  typedef typename Inputs<Whole>::Sum Sum;
  float sums[M * kLaneRows];
  TQ_UNROLL
  for (int i = 0; i < M * int(kLaneRows); i++) sums[i] = 0;
  for (uint step = first; step < last; step++) {
    const uint wanted = step * kStepTiles + sg * kSimdTiles + lane / kTileQuads, tile = min(wanted, tiles - 1);
    Pair<K> codes;
    load_pair<K>(codes, strip + ulong(tile) * tqn::tile_bytes(K), lane);
    float4 in[M];
    TQ_UNROLL
    for (int m = 0; m < M; m++)
      in[m] = wanted < tiles ? Inputs<Whole>::load(x, x_stride, min(row + uint(m), rows - 1), tile * tqn::kTileCols) : float4(0.0f);
    Rows<K, M, tqn::kLaneSteps - 1>::add(codes, table + lane % kReplicas, in, sums);
  }
  TQ_UNROLL
  for (int m = 0; m < M; m++) {
    Sum whole[kLaneRows];
    TQ_UNROLL
    for (int i = 0; i < int(kLaneRows); i++) whole[i] = Sum(sums[m * kLaneRows + i]);
    fold<16>(whole, lane, 16), fold<8>(whole, lane, 8), fold<4>(whole, lane, 4);
    const uint at = (lane & 16) / 2 + (lane & 8) / 2 + (lane & 4) / 2;  // of the lane's rows: an even number
    threadgroup Sum* mine = to + (sg * M + m) * tqn::kTileRows + 4 * at + 2 * (lane % kTileQuads);
    mine[0] = whole[0], mine[1] = whole[1];
  }
}

// The sum of one row and token over the thread-group's simdgroups, for each of the four lanes that ask together.
template <int M, class Sum>
inline Sum sum_simds(threadgroup const Sum* sums, uint item, uint part) {
  Sum sum = 0;
  for (uint s = part; s < kGemvSimds; s += kTileQuads) sum += sums[s * M * tqn::kTileRows + item];
  sum += simd_shuffle_xor(sum, 1);
  return sum + simd_shuffle_xor(sum, 2);
}

inline float sum_quad(float x) {
  x += simd_shuffle_xor(x, 1);
  return x + simd_shuffle_xor(x, 2);
}

// Finishes row i of a strip for one token; four lanes do it together.
template <bool Whole>
inline void finish_row(constant LinearArgs& a, uint row, uint r, typename Inputs<Whole>::Sum sum, uint part, device const half* row_scale,
                       device const float* x_scale, device float* y, device const float* bias, device const int* out_ptr,
                       device const uchar* out_col, device const half* out_val, device const float* plain) {
  const bool real = r < a.n_out && row < a.rows;
  float extra = 0;
  if (a.flags & kOutliers) {
    if (real)
      extra = outlier_part(out_ptr, out_col, out_val, (a.flags & kWideColumns) != 0, r, plain + ulong(row) * a.n_in, part, kTileQuads);
    extra = sum_quad(extra);
  }
  if (!real || part != 0) return;
  const float product = a.scale * float(row_scale[r]) * Inputs<Whole>::scale(x_scale, row) * float(sum);
  write_output(a, y, bias, row, r, product + extra);
}

}  // namespace tq

using namespace tq;

template <int K, int M, bool Whole>
kernel void gemv(TQ_PACKED_BUFFERS, TQ_IDS) {
  typedef typename Inputs<Whole>::Sum Sum;
  TQ_SHARED(half, table, table_halves(K));
  TQ_SHARED(Sum, sums, kGemvSimds * M * tqn::kTileRows);
  Table<K>::fill(table, codebook, tid, kGemvThreads);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint strip = group.x, tiles = a.n_in / tqn::kTileCols, steps = (tiles + kStepTiles - 1) / kStepTiles, row = group.z * M;
  const uint first = steps * group.y / a.splits, last = steps * (group.y + 1) / a.splits;
  multiply_strip<K, M, Whole>(codes + ulong(strip) * tiles * tqn::tile_bytes(K), tiles, x, a.x_stride, row, a.rows, first, last, table,
                              lane, sg, sums);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint part = tid % kTileQuads;
  for (uint item = tid / kTileQuads; item < M * tqn::kTileRows; item += kGemvThreads / kTileQuads) {
    const Sum sum = sum_simds<M>(sums, item, part);
    const uint token = row + item / tqn::kTileRows, r = strip * tqn::kTileRows + item % tqn::kTileRows;
    if (a.splits == 1)
      finish_row<Whole>(a, token, r, sum, part, row_scale, x_scale, y, bias, out_ptr, out_col, out_val, plain);
    else if (part == 0 && token < a.rows)
      partials[(ulong(group.y) * a.rows + token) * groups.x * tqn::kTileRows + r] = Inputs<Whole>::pack(sum);
  }
}

// Adds the parts of split rows.
template <bool Whole>
kernel void finish(TQ_PACKED_BUFFERS, TQ_IDS) {
  typedef typename Inputs<Whole>::Sum Sum;
  const uint part = tid % kTileQuads, r = group.x * tqn::kTileRows + tid / kTileQuads, row = group.z;
  Sum sum = 0;
  for (uint s = part; s < a.splits; s += kTileQuads)
    sum += Inputs<Whole>::unpack(partials[(ulong(s) * a.rows + row) * groups.x * tqn::kTileRows + r]);
  sum += simd_shuffle_xor(sum, 1);
  sum += simd_shuffle_xor(sum, 2);
  finish_row<Whole>(a, row, r, sum, part, row_scale, x_scale, y, bias, out_ptr, out_col, out_val, plain);
}
TQ_INSTANCE(gemv_finish, finish, true)
TQ_INSTANCE(gemvf_finish, finish, false)

#define TQ_GEMV(k)                                \
  TQ_INSTANCE(gemv_k##k##_m1, gemv, k, 1, true)   \
  TQ_INSTANCE(gemv_k##k##_m2, gemv, k, 2, true)   \
  TQ_INSTANCE(gemv_k##k##_m4, gemv, k, 4, true)   \
  TQ_INSTANCE(gemvf_k##k##_m1, gemv, k, 1, false) \
  TQ_INSTANCE(gemvf_k##k##_m4, gemv, k, 4, false)
TQ_GEMV(1)
TQ_GEMV(2)
TQ_GEMV(3)
TQ_GEMV(4)
TQ_GEMV(6)
TQ_GEMV(8)

// The same where the device chose the matrix: groups of up to kGroupRows rows that go to one expert. Experts of another format are left to
// another launch.
template <int K>
kernel void experts(constant LinearArgs& a [[buffer(0)]], device const uchar* weights [[buffer(1)]],
                    device const ExpertMatrix* matrices [[buffer(2)]], device const uchar* x [[buffer(3)]],
                    device const float* x_scale [[buffer(4)]], device float* y [[buffer(5)]], device const float* plain [[buffer(6)]],
                    device const ExpertGroup* list [[buffer(7)]], device const uint* count [[buffer(8)]], TQ_IDS) {
  TQ_SHARED(half, table, table_halves(K));
  TQ_SHARED(int, sums, kGemvSimds * kGroupRows * tqn::kTileRows);
  if (group.z >= *count) return;
  device const ExpertGroup& work = list[group.z];
  device const ExpertMatrix& w = matrices[work.expert];
  if (w.k != K) return;
  Table<K>::fill(table, (device const int8_t*)(weights + w.codebook), tid, kGemvThreads);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint strip = group.x, tiles = a.n_in / tqn::kTileCols, end = work.first + work.count;
  multiply_strip<K, kGroupRows, true>(weights + w.codes + ulong(strip) * tiles * tqn::tile_bytes(K), tiles, x, a.x_stride, work.first, end,
                                      0, (tiles + kStepTiles - 1) / kStepTiles, table, lane, sg, sums);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint part = tid % kTileQuads;
  for (uint item = tid / kTileQuads; item < kGroupRows * tqn::kTileRows; item += kGemvThreads / kTileQuads) {
    const int sum = sum_simds<kGroupRows>(sums, item, part);
    const uint row = work.first + item / tqn::kTileRows, r = strip * tqn::kTileRows + item % tqn::kTileRows;
    const bool real = row < end && r < a.n_out;
    float extra = 0;
    if (real && (w.flags & kOutliers))
      extra = outlier_part((device const int*)(weights + w.out_ptr), weights + w.out_col, (device const half*)(weights + w.out_val),
                           (w.flags & kWideColumns) != 0, r, plain + ulong(row) * a.n_in, part, kTileQuads);
    extra = sum_quad(extra);
    if (!real || part != 0) continue;
    const float scale = w.scale * float(((device const half*)(weights + w.row_scale))[r]) * x_scale[row];
    y[ulong(row) * a.y_stride + r] = scale * float(sum) + extra;
  }
}
TQ_INSTANCE(experts_k1, experts, 1)
TQ_INSTANCE(experts_k2, experts, 2)
TQ_INSTANCE(experts_k3, experts, 3)
TQ_INSTANCE(experts_k4, experts, 4)
TQ_INSTANCE(experts_k6, experts, 6)
TQ_INSTANCE(experts_k8, experts, 8)
