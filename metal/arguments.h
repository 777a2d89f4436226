// What kernels receive beside their buffers, in the common subset of C++ and MSL: plain structs of 32-bit numbers, always at buffer 0.
// Beside each struct stand the kernels that take it, with their other buffers in order from index 1, their grid of thread-groups and the
// threads of a group. A buffer that a flag makes optional is bound nevertheless (any will do). Sizes and strides count elements.
#pragma once
#ifdef __METAL_VERSION__
#include <metal_stdlib>
#define TQ_CONSTANT static constant constexpr const
#else
#include <stdint.h>
#define TQ_CONSTANT inline constexpr
#endif

namespace tq {
namespace metal_args {

TQ_CONSTANT uint32_t kGemvThreads = 256;
TQ_CONSTANT uint32_t kGemvStepColumns = 256;  // that a thread-group multiplies at once: splits share n_in in these units
TQ_CONSTANT uint32_t kGroupRows = 4;          // rows of an ExpertGroup at most
TQ_CONSTANT uint32_t kGemmThreads = 128;
TQ_CONSTANT uint32_t kGemmRows = 64, kGemmTokens = 32;   // outputs of a thread-group
TQ_CONSTANT uint32_t kDenseRows = 32, kDenseTokens = 4;  // of gemv_dense
TQ_CONSTANT uint32_t kRowThreads = 256;
TQ_CONSTANT uint32_t kMostShared = 7680;  // floats of a vector in threadgroup memory, at most
TQ_CONSTANT uint32_t kSmallPrime = 7;     // rotations with larger odd factors take input_wide
TQ_CONSTANT uint32_t kMaxPrimes = 11;     // 3^10 < 65536 < 3^11
TQ_CONSTANT uint32_t kAttentionThreads = 128;
TQ_CONSTANT uint32_t kMaxHeadDim = 512, kMaxSplits = 32;
TQ_CONSTANT uint32_t kRunThreads = 128, kRunQueries = 32, kRunKeys = 32, kMaxRunHeadDim = 128;  // of attend_runs
TQ_CONSTANT uint32_t kCodedThreads = 64, kSpanPositions = 512;
TQ_CONSTANT uint32_t kConvolveThreads = 256, kStateColumns = 32, kMaxStateKeys = 512;
TQ_CONSTANT uint32_t kTopThreads = 256, kTopPiece = 2048;
TQ_CONSTANT uint32_t kRouteThreads = 1024, kMaxExperts = 1024, kMaxRoutes = 4096, kMaxChoices = 32;

// Bits of `flags`.
enum Flags : uint32_t {
  kAdd = 1,          // y += instead of y =
  kBias = 2,         // bias is real
  kOutliers = 4,     // out_ptr, out_col, out_val and plain are real
  kWideColumns = 8,  // out_col holds int32, else uint16
  kGather = 16,      // `rows` names the rows that are read
  kWeight = 32,      // weight is real; else ones
  kRotate = 64,      // signs and hartley are real
  kPlain = 128,      // plain is wanted
  kRotated = 256,    // rotated is wanted
  kQuantized = 512,  // quantized and scale are wanted
  kNormalize = 1024,
  kShared = 2048,        // there is a shared expert
  kSharedLogits = 4096,  // whose weight is the sigmoid of its logit; else 1
  kRope = 8192,          // cos and sin are real
  kRopePairs = 16384,    // pair i is elements (2 i, 2 i + 1); else (i, i + dims / 2)
  kGrowth = 32768,       // growth is real
  kSinks = 65536,        // sinks are real
  kLast = 131072,        // top: candidates are written, not keys
  kKeyMean = 262144,     // key_mean is real
  kKeyBalance = 524288,  // key_balance is real
};
enum InputKind : uint32_t { kPlainInput = 0, kNormInput = 1, kGatedInput = 2 };
enum Activation : uint32_t { kSilu = 0, kGeluTanh = 1, kClampedSwiglu = 2, kSigmoid = 3 };

// y[row * y_stride + y_offset + i] = (add ? y : 0) + alpha * (product_i + bias_i).
// gemv_k{1,2,3,4,6,8}_m{1,2,4}   x int8: rows of x_stride bytes (a multiple of 4), with x_scale
// gemvf_k{1,2,3,4,6,8}_m{1,4}    x float: the rotated input, x_stride floats apart
//   1 codes  2 row_scale (f16)  3 codebook  4 x  5 x_scale  6 y  7 bias  8 out_ptr  9 out_col  10 out_val  11 plain (float, n_in apart)
//   12 partials (splits > 1: (splits, rows, strips * 64) int32, gemvf: float)
//   grid (strips, splits, ceil(rows / m)) of kGemvThreads
// gemv_finish, gemvf_finish       the same buffers; after a launch with splits > 1; grid (strips, 1, rows) of kGemvThreads
// gemm_k{1,2,3,4,6,8}             the same buffers (12: any); grid (strips, ceil(rows / kGemmTokens)) of kGemmThreads
// gemv_dense_{f32,f16,bf16}       1 w (rows of n_in)  2 x float (x_stride apart)  3 y  4 bias
//   grid (ceil(n_out / kDenseRows), ceil(rows / kDenseTokens)) of kGemvThreads; scale, splits unused
// gemm_dense_{f32,f16,bf16}       the same; grid (ceil(n_out / kGemmRows), ceil(rows / kGemmTokens)) of kGemmThreads
struct LinearArgs {
  uint32_t n_out, n_in, rows, x_stride, y_stride, y_offset, splits, flags;
  float scale, alpha;
};

// One matrix of an expert: byte offsets from the start of `weights`. k that differs from the kernel's: left out.
struct ExpertMatrix {
  uint64_t codes, row_scale, codebook, out_ptr, out_col, out_val;
  float scale;
  uint32_t flags, k, unused;
};
struct ExpertGroup {
  uint32_t expert, first, count;  // routes [first, first + count) by expert
};
// experts_k{1,2,3,4,6,8}          all matrices of one shape; rows of x are routes by expert; y (routes, n_out) (y_stride = n_out)
//   1 weights  2 table (n_experts) ExpertMatrix  3 x int8  4 x_scale  5 y  6 plain  7 groups  8 n_groups (uint)
//   grid (strips, 1, max groups) of kGemvThreads; LinearArgs: rows = routes, flags, scale unused; alpha 1

// The rotation K D: Hadamard passes over blocks of 2^log2_block, then a Hartley pass for each odd prime.
struct RotationArgs {
  uint32_t log2_block, n_primes;
  uint32_t primes[11];
};
// input_{2048,4096,7680}  width up to that, primes up to kSmallPrime; input_wide: any
//   1 x  2 up  3 weight  4 rows (int32)  5 signs  6 hartley (the primes' (q, q), one after another)  7 plain  8 rotated
//   9 quantized (int8)  10 scale  11 scratch (input_wide: 2 * padded(n) floats a row; else any)
//   grid (rows) of input_threads(n). All forms of a row are n apart; the row written is the thread-group's number.
constexpr inline uint32_t input_threads(uint32_t n) { return n > 4096 ? 1024 : n > 2048 ? 512 : 256; }
constexpr inline uint32_t padded(uint32_t i) {
  return i + i / 32;
}  // one float after every 32, so that strided passes meet different banks
struct InputArgs {
  uint32_t n, kind, activation, flags;
  float eps;
  RotationArgs rotation;
};
// embed_packed            1 codes  2 row_scale  3 codebook  4 tokens (int32)  5 y  6 signs  7 hartley  8 scratch (2 * padded(n) floats a
//   row)  9 out_ptr  10 out_col  11 out_val; grid (rows) of kRowThreads
// embed_{f32,f16,bf16}    1 w  2 tokens  3 y; grid (rows) of kRowThreads
struct EmbedArgs {
  uint32_t n, k, flags, stride, column;  // of a dense matrix: elements of a row, and the first that counts
  float matrix_scale, scale;
  RotationArgs rotation;
};
// rms_norm, add_rms_norm  1 x  2 weight (n)  3 y; grid (rows * groups) of kRowThreads; n: width of a group. y = norm(x), or
//   y = scale * (y + alpha * norm(x))
// soft_cap        1 x; grid (ceil(count / kRowThreads)); eps is the cap
// clear           1 x; grid (ceil(count / kRowThreads))
// scatter_add     1 x (count, n)  2 rows (count)  3 weights (count)  4 y; y[rows[i]] += alpha * weights[i] * x[i], no row twice;
//   grid (ceil(n / kRowThreads), count) of kRowThreads
struct NormArgs {
  uint32_t n, flags, count;
  float eps, alpha, scale;
};
// store_keys_{f16,f32}   1 q  2 k  3 v  4 k_cache  5 v_cache  6 cos  7 sin ((rows, rope_dims / 2))  8 positions  9 slots
//   10 growth (rows): factors of q; grid (n_heads + n_kv_heads, rows) of 32; without keys and values of its own (n_heads, rows)
// attend_rows_{f16,f32}_d{1,2,3,4,8}  head_dim up to 64 d
//   1 q  2 k_cache  3 v_cache  4 positions  5 slots  6 out  7 partials (splits > 1: (rows, n_heads, splits, head_dim + 2))  8 sinks
//   grid (splits, n_kv_heads * ceil(heads of one / queries_at_once(d)), rows) of kAttentionThreads
// attend_merge           1 partials  2 out  3 sinks; grid (n_heads, rows) of 32
// attend_runs_{64,128}   float16 caches, head_dim up to that
//   1 q  2 k_cache  3 v_cache  4 positions  5 slots  6 out  7 runs ((n_runs) of first row, count <= kRunQueries)  8 sinks
//   grid (n_heads, n_runs) of kRunThreads
constexpr inline uint32_t queries_at_once(uint32_t d) { return d == 1 ? 4 : d == 2 ? 2 : 1; }
struct AttentionArgs {
  uint32_t n_heads, n_kv_heads, head_dim, capacity, window, splits, flags, rope_dims;
  float scale, soft_cap;
};
// Caches in codes (format/cache.h), head_dim up to kMaxHeadDim; attention.splits: spans that partials have room for
// store_codes           1 q  2 k  3 v  4 k_cache  5 v_cache  6 cos  7 sin  8 positions  9 slots  10 growth  11 signs  12 hartley
//   13 q_codes (rows, n_heads, padded head_dim)  14 q_scale (rows, n_heads)  15 key_mean  16 key_balance (n_kv_heads, head_dim)
//   leaves q, k and v rotated
//   grid (n_heads + 2 n_kv_heads, rows) of 32
// attend_coded_n{1,4}   1 q_codes  2 q_scale  3 k_cache  4 v_cache  5 positions  6 slots  7 partials (rows, n_heads, splits, head_dim + 2)
//   grid (spans, n_kv_heads * ceil(heads of one / n), rows from first_row on) of kCodedThreads
// finish_coded          1 q  2 k  3 v  4 positions  5 partials  6 sinks  7 signs  8 hartley  9 out
//   grid (n_heads, rows from first_row on) of kCodedThreads
struct CodedArgs {
  AttentionArgs attention;
  RotationArgs rotation;
  uint32_t k_bits, v_bits, first_row;
};
// The gated delta net (format/delta_net.h), heads of at most kMaxStateKeys elements
// delta_convolve_{128,512}  heads of up to so many elements
//   1 qkv  2 conv  3 rate  4 dt_bias  5 alpha  6 beta (both become factors)  7 states  8 order (rows by slot)  9 positions  10 slots
//   11 convolved; grid (ceil((heads of queries, keys and values + 1) / simdgroups), rows) of kConvolveThreads
// delta_recur_{32,64,128,256,512}  keys of up to so many elements
//   1 qkv  2 convolved  3 alpha  4 beta  5 states  6 order  7 positions  8 slots  9 sequences (first place in the order, count)  10 out
//   grid (n_value_heads, ceil(value_dim / kStateColumns), sequences) of delta_threads(key_dim)
constexpr inline uint32_t delta_threads(uint32_t key_dim) { return kStateColumns / 2 * (key_dim <= 128 ? 8 : key_dim <= 256 ? 16 : 32); }
struct DeltaArgs {
  uint32_t n_key_heads, n_value_heads, key_dim, value_dim, taps, tiled, conv_width, state_floats;
  float eps;
};
// top  1 x (float: rows, n) or, with kGather, keys (rows, n, uint64)  2 keys out (rows, pieces, k)  3 best (rows, k) Candidate: kLast
//   grid (ceil(n / kTopPiece), rows) of kTopThreads
struct TopArgs {
  uint32_t n, k, flags;
};
// route        1 logits (overwritten)  2 weights (rows, top_k)  3 place (rows, top_k): a route's number by expert  4 rows (routes), by
//   expert  5 groups  6 n_groups; grid (1) of kRouteThreads
// combine      1 x (routes, width), by expert  2 weights  3 place  4 shared (rows, width)  5 shared_logits (rows)  6 y
//   y += alpha * (the weighted sum of a row's routes, then the shared expert's); grid (ceil(width / kRowThreads), rows) of kRowThreads
// expert_bias  1 y (routes, width), by expert  2 biases (experts, width)  3 groups  4 n_groups
//   grid (ceil(width / kRowThreads), max groups) of kRowThreads
struct RouteArgs {
  uint32_t rows, n_experts, top_k, width, flags;
  float alpha;
};

}  // namespace metal_args
}  // namespace tq
