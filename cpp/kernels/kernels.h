// The CPU's inner loops, one table per instruction set. Bodies are written once over a small vocabulary (isa/*.h); the table is chosen once
// at run time (CPUID and XCR0; the environment variable TQ_ISA overrides). No function here allocates, locks or throws.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "format/matrix.h"

namespace tq::kernels {

enum class DType : uint8_t { f32, f16, bf16 };

// An unquantized matrix, row-major.
struct DenseMatrix {
  DType type = DType::f32;
  int64_t n_out = 0, n_in = 0;
  const void* data = nullptr;
};

// What a rotation of width n needs, computed once per (n, seed): signs and the Hartley matrices of n's odd primes.
struct RotationPlan {
  int64_t n = 0;
  int log2_block = 0;                       // n = 2^log2_block * product of primes
  std::vector<float> signs;                 // (n) +-1
  std::vector<int> primes;                  // ascending, with multiplicity
  std::vector<std::vector<float>> hartley;  // per prime q: (q, q), orthonormal
  static RotationPlan make(int64_t n, uint64_t seed);
};

inline constexpr int kTokenBlock = 16;

// Activations of n_tokens rows, ready for linear layers. plain: (n_tokens, n_in) in the original basis; rotated: the same times R, in
// float (the float path); quantized, scale: int8 rows and one scale a token (the int8 path). Rows are n_in apart, planes 64-byte aligned.
struct Activations {
  int64_t n_tokens = 0, n_in = 0;
  const float* plain = nullptr;
  const float* rotated = nullptr;  // = plain where the matrix is not rotated
  const int8_t* quantized = nullptr;
  const float* scale = nullptr;  // (n_tokens)
  // Optional, worth its cost for many tokens of matrices with outliers: plain in blocks of kTokenBlock tokens, (blocks, n_in, kTokenBlock);
  // the tokens that fill the last block may hold anything.
  const float* blocked = nullptr;
};

struct AttentionShape {
  int n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float scale = 0;     // usually 1 / sqrt(head_dim)
  float soft_cap = 0;  // 0: none; else cap * tanh(score / cap)
};

struct Kernels {
  std::string_view isa;
  // Bytes of thread-private scratch (64-byte aligned) that `linear_int8` and `linear_float` need for any matrix of this width.
  int64_t (*linear_scratch_bytes)(int64_t n_in, int64_t n_tokens);

  // y[t * ldy + r] = (add ? y : 0) + alpha * (scale * row_scale[r] * act_scale[t] * (C a_t)[r] + (S x_t)[r]) for the rows of strips [first,
  // last) that are < n_out. Chooses GEMV or GEMM by n_tokens.
  void (*linear_int8)(const TqnMatrix& w, int64_t first_strip, int64_t last_strip, const Activations& x, float alpha, bool add, float* y,
                      int64_t ldy, void* scratch);
  void (*linear_float)(const TqnMatrix& w, int64_t first_strip, int64_t last_strip, const Activations& x, float alpha, bool add, float* y,
                       int64_t ldy, void* scratch);
  // The int32 accumulators alone, acc[t * ld + r] for whole strips (padding rows included): what tests compare to the bit.
  void (*accumulate)(const TqnMatrix& w, int64_t first_strip, int64_t last_strip, const Activations& x, int32_t* acc, int64_t ld,
                     void* scratch);
  void (*linear_dense)(const DenseMatrix& w, int64_t first_row, int64_t last_row, const float* x, int64_t n_tokens, float alpha, bool add,
                       float* y, int64_t ldy);
  // One row of W (n_in) in the original basis, outliers in place; reads only that row's codes. plan: the matrix's rotation, null when none.
  void (*tqn_row)(const TqnMatrix& w, const RotationPlan* plan, int64_t row, float* out);
  void (*dense_row)(const DenseMatrix& w, int64_t row, float* out);

  void (*rotate)(const RotationPlan& plan, const float* x, float* out);          // out = K D x; x may be out
  void (*rotate_inverse)(const RotationPlan& plan, const float* x, float* out);  // out = D K x; x may be out
  float (*quantize)(const float* x, int64_t n, int8_t* a);  // returns s = max|x| / 127; a = round to nearest even of x / s; all zero: s = 0
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);  // weight may be null; x may be out
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*gelu_mul)(const float* gate, const float* up, int64_t n, float* out);  // tanh approximation
  void (*add_scaled)(float* y, const float* x, float alpha, int64_t n);         // y += alpha * x
  void (*soft_cap)(float* x, float cap, int64_t n);                             // x = cap * tanh(x / cap)
  // One head's vector: pairs (x[i], x[i + dims / 2]) (neox) or (x[2i], x[2i + 1]) turned by cos/sin (dims / 2); dims <= head_dim.
  void (*rope_neox)(float* x, const float* cos, const float* sin, int dims);
  void (*rope_pairs)(float* x, const float* cos, const float* sin, int dims);
  void (*to_f16)(const float* x, int64_t n, uint16_t* out);
  void (*to_f32)(const uint16_t* x, int64_t n, float* out);
  // One query head over cached positions [first, last) by blocks with an online softmax. q: (head_dim); k, v: float16 rows of head_dim,
  // `stride` elements apart. state: max, sum and unnormalized out (head_dim) so that ranges can be split over threads and merged by
  // attention_merge.
  void (*attention)(const AttentionShape& shape, const float* q, const uint16_t* k, const uint16_t* v, int64_t stride, int64_t first,
                    int64_t last, float* max, float* sum, float* out);
  void (*attention_f32)(const AttentionShape& shape, const float* q, const float* k, const float* v, int64_t stride, int64_t first,
                        int64_t last, float* max, float* sum, float* out);  // the same over a float32 cache
};

const Kernels& kernels();  // the best for this machine, or TQ_ISA; throws Error(invalid_argument) for an unknown or unusable TQ_ISA
std::span<const Kernels* const> all_kernels();  // those this machine can run, best first; the portable one is last
const Kernels& kernels_named(std::string_view isa);

}  // namespace tq::kernels
