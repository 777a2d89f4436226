// y = W x for many tokens and packed W: 64 rows x 32 tokens a thread-group. Weights are decoded once for all tokens into threadgroup memory
// as halves, which hold every int8, and multiplied by simdgroup matrices with float sums. These are whole numbers and stay below 2^24, so
// that they are exact: before they could reach it, they move to int32.
#include "arguments.h"
#include "decode.h"
#include "epilogue.h"

namespace tq {

TQ_CONSTANT uint kGemmDepth = 64;                                      // columns at once
TQ_CONSTANT uint kGemmPitch = kGemmDepth + 8;                          // halves of a row in threadgroup memory
TQ_CONSTANT uint kGemmItems = kGemmRows * kGemmTokens / kGemmThreads;  // outputs of a thread
static_assert(kGemmDepth / tqn::kTileCols * 8 == kGemmThreads, "each thread decodes eight rows of a tile");

// Columns whose products sum up to less than 2^24: values are at most 15, 31 or 128.
TQN_FN uint exact_columns(int k) { return k <= 3 ? 8192 : k == 4 ? 4096 : 1024; }

// Rows g, 8 + g .. 56 + g of a tile's four columns.
template <int K, int Step>
struct StoreRows {
  static void to(threadgroup half* weights, thread const Codes<K>& codes, threadgroup const half* table, float real) {
    StoreRows<K, Step - 1>::to(weights, codes, table, real);
    const float4 values = Table<K>::template row<Step>(codes, table);
    threadgroup half* row = weights + 8 * Step * kGemmPitch;
    row[0] = half(values.x * real), row[1] = half(values.y * real), row[2] = half(values.z * real), row[3] = half(values.w * real);
  }
};
template <int K>
struct StoreRows<K, -1> {
  static void to(threadgroup half*, thread const Codes<K>&, threadgroup const half*, float) {}
};

// A lane's group g = lane % 8 of a tile; the eight lanes of a tile stand side by side.
template <int K>
inline void load_group(thread Codes<K>& codes, device const uchar* tile, uint lane) {
  TQ_UNROLL
  for (int p = 0; p < K; p++) codes.word[p] = *(device const uint*)(tile + p * tqn::kTileLanes + lane % 8 * 4);
  uint next[Codes<K>::kShared > 0 ? int(Codes<K>::kShared) : 1];
  TQ_UNROLL
  for (int i = 0; i < int(Codes<K>::kShared); i++) next[i] = simd_shuffle(codes.word[i], ushort((lane & ~7u) | ((lane + 1) & 7u)));
  reach_into<K>(codes, next);
}

// kGemmDepth columns of the tokens as halves.
inline void load_tokens(threadgroup half* to, constant LinearArgs& a, device const uchar* x, uint first, uint column, uint tid) {
  for (uint i = tid; i < kGemmTokens * kGemmDepth / 4; i += kGemmThreads) {
    const uint t = i / (kGemmDepth / 4), c = i % (kGemmDepth / 4) * 4;
    float4 value = float4(0.0f);
    if (first + t < a.rows && column + c < a.n_in) value = float4(*(device const char4*)(x + ulong(first + t) * a.x_stride + column + c));
    threadgroup half* at = to + t * kGemmPitch + c;
    at[0] = half(value.x), at[1] = half(value.y), at[2] = half(value.z), at[3] = half(value.w);
  }
}

}  // namespace tq

using namespace tq;

template <int K>
kernel void gemm(TQ_PACKED_BUFFERS, TQ_IDS) {
  TQ_SHARED(half, table, table_halves(K));
  TQ_SHARED(float, stage, (kGemmRows + kGemmTokens) * kGemmPitch / 2);  // weights and tokens, or sums (tokens, rows)
  threadgroup half* const weights = (threadgroup half*)stage;
  threadgroup half* const tokens = weights + kGemmRows * kGemmPitch;
  Table<K>::fill(table, codebook, tid, kGemmThreads);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint first_row = group.x * kGemmRows, first_token = group.y * kGemmTokens, tiles = a.n_in / tqn::kTileCols;
  const uint row = sg % 2 * 32, token = sg / 2 * 16;  // of a simdgroup's 32 x 16 outputs
  device const uchar* strip = codes + ulong(group.x) * tiles * tqn::tile_bytes(K);
  int sums[kGemmItems];
  TQ_UNROLL
  for (uint i = 0; i < kGemmItems; i++) sums[i] = 0;
  simdgroup_float8x8 acc[8];
  TQ_UNROLL
  for (int i = 0; i < 8; i++) acc[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (uint column = 0; column < a.n_in; column += kGemmDepth) {
    const uint wanted = column / tqn::kTileCols + tid / 8;
    Codes<K> mine;
    load_group<K>(mine, strip + ulong(min(wanted, tiles - 1)) * tqn::tile_bytes(K), lane);
    StoreRows<K, tqn::kLaneSteps - 1>::to(weights + lane % 8 * kGemmPitch + tid / 8 * tqn::kTileCols, mine, table + lane % kReplicas,
                                          wanted < tiles ? 1.0f : 0.0f);
    load_tokens(tokens, a, x, first_token, column, tid);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < kGemmDepth; k += 8) {
      simdgroup_half8x8 x_part[2], w_part[4];
      TQ_UNROLL
      for (int t = 0; t < 2; t++) simdgroup_load(x_part[t], tokens + (token + 8 * uint(t)) * kGemmPitch + k, kGemmPitch);
      TQ_UNROLL
      for (int r = 0; r < 4; r++) simdgroup_load(w_part[r], weights + (row + 8 * uint(r)) * kGemmPitch + k, kGemmPitch, 0, true);
      TQ_UNROLL
      for (int i = 0; i < 8; i++) simdgroup_multiply_accumulate(acc[i], x_part[i / 4], w_part[i % 4], acc[i]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if ((column + kGemmDepth) % exact_columns(K) != 0 && column + kGemmDepth < a.n_in) continue;
    TQ_UNROLL
    for (int i = 0; i < 8; i++) {
      simdgroup_store(acc[i], stage + (token + 8 * uint(i / 4)) * kGemmRows + row + 8 * uint(i % 4), kGemmRows);
      acc[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    TQ_UNROLL
    for (uint i = 0; i < kGemmItems; i++) sums[i] += int(stage[tid + i * kGemmThreads]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  TQ_UNROLL
  for (uint i = 0; i < kGemmItems; i++) {
    const uint item = tid + i * kGemmThreads, t = first_token + item / kGemmRows, r = first_row + item % kGemmRows;
    if (t >= a.rows || r >= a.n_out) continue;
    float product = a.scale * float(row_scale[r]) * x_scale[t] * float(sums[i]);
    if (a.flags & kOutliers)
      product += outlier_part(out_ptr, out_col, out_val, (a.flags & kWideColumns) != 0, r, plain + ulong(t) * a.n_in, 0, 1);
    write_output(a, y, bias, t, r, product);
  }
}
TQ_INSTANCE(gemm_k1, gemm, 1)
TQ_INSTANCE(gemm_k2, gemm, 2)
TQ_INSTANCE(gemm_k3, gemm, 3)
TQ_INSTANCE(gemm_k4, gemm, 4)
TQ_INSTANCE(gemm_k6, gemm, 6)
TQ_INSTANCE(gemm_k8, gemm, 8)
