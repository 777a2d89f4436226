// The CPU's inner loops: for each instruction set a table of function pointers (`Kernels`). The loops are written once (body/*.h), in terms
// of a few vector operations that each instruction set defines for itself (isa/*.h). Which table to use is decided once, when the program
// runs, from what the processor and the operating system support; the environment variable TQ_ISA overrides it. The functions in a table
// allocate no memory, take no lock and throw nothing.
//
// Words used below. A packed matrix is stored in strips of 64 output rows (format/tqn.h). C is its matrix of int8 values that the codes
// decode to, S the sparse matrix of outliers: weights that are kept in float16. R is the rotation that its inputs go through.
#pragma once
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "format/matrix.h"

namespace tq::kernels {

enum class DType : uint8_t { f32, f16, bf16 };  // of an unquantized matrix's elements

// An unquantized matrix, row-major.
struct DenseMatrix {
  DType type = DType::f32;
  int64_t n_out = 0, n_in = 0;
  const void* data = nullptr;
};

// The constants of the rotation R = K D of vectors of n floats: D flips the signs that `seed` draws, K is the orthonormal Hadamard or
// Hartley transform along each factor of n. Computed once for each (n, seed).
struct RotationPlan {
  int64_t n = 0;
  int log2_block = 0;                       // n = 2^log2_block * product of primes
  std::vector<float> signs;                 // (n), each +1 or -1: the diagonal of D
  std::vector<int> primes;                  // the odd prime factors of n, ascending, repeated as often as they divide n
  std::vector<std::vector<float>> hartley;  // for each of these primes p: the orthonormal Hartley matrix (p, p)
  static RotationPlan make(int64_t n, uint64_t seed);
};

inline constexpr int kTokenBlock = 16;  // tokens that lie side by side in Activations::blocked

// The inputs of a linear layer for n_tokens tokens, in the forms that its kernels read; a form that no kernel needs is null. Every form has
// one row a token; the next row follows n_in elements later; each form starts at a multiple of 64 bytes.
struct Activations {
  int64_t n_tokens = 0, n_in = 0;
  const float* plain = nullptr;       // (n_tokens, n_in) as the model computes them: for unquantized matrices and for outliers
  const float* rotated = nullptr;     // (n_tokens, n_in) R times plain, for linear_float; = plain where the matrix is not rotated
  const int8_t* quantized = nullptr;  // (n_tokens, n_in) R times plain, rounded to int8, for linear_int8
  const float* scale = nullptr;       // (n_tokens) what one step of `quantized` stands for
  // `plain` once more, transposed in blocks of kTokenBlock tokens: (blocks, n_in, kTokenBlock). Optional: it makes the outliers of many
  // tokens faster. Columns of the last block beyond n_tokens may hold anything.
  const float* blocked = nullptr;
};

// Query head h reads the key/value head h / (n_heads / n_kv_heads).
struct AttentionShape {
  int n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float scale = 0;     // a score is scale * (q . k); usually 1 / sqrt(head_dim)
  float soft_cap = 0;  // 0: scores stay as they are; else they become soft_cap * tanh(score / soft_cap)
};

// One query head of one row, and the state of its softmax: the largest score so far, the sum of exp(score - max), and the sum of
// exp(score - max) * v. States of separate ranges of positions can be merged. The result is out / sum.
struct AttentionQuery {
  const float* q = nullptr;  // (head_dim)
  float* out = nullptr;      // (head_dim), zeros at first
  float max = -std::numeric_limits<float>::infinity(), sum = 0;
};

// Keys and values of one key/value head in codes (format/cache.h), from position 0 on.
struct CodedCache {
  int k_bits = 0, v_bits = 0;  // 8 or 4
  const uint8_t *k = nullptr, *v = nullptr;
};
// Tokens of one value head of a gated delta net (format/delta_net.h), in order; token t of q begins at q + t * qkv_stride.
struct DeltaRows {
  int64_t n = 0, qkv_stride = 0, gate_stride = 0, out_stride = 0;
  const float *q = nullptr, *k = nullptr;         // (key_dim), normed
  const float* v = nullptr;                       // (value_dim)
  const float *decay = nullptr, *beta = nullptr;  // one number each
  float* out = nullptr;                           // (value_dim)
};
// One query head of one row, which reads the positions below `last` of a CodedCache. (max, sum, out): the state of its softmax, as in
// AttentionQuery.
struct CodedQuery {
  const int8_t* q = nullptr;  // (padded(head_dim)), zeros behind head_dim
  float scale = 0;            // what one step of q stands for
  int32_t total = 0;          // sum of q
  int64_t last = 0;
  float max = 0, sum = 0;
  float* out = nullptr;  // (padded(head_dim))
};

struct Kernels {
  std::string_view isa;  // the instruction set's name, as TQ_ISA takes it
  // Bytes that `scratch` must have below, 64-byte aligned and used by one thread at a time, for any matrix with n_in columns.
  int64_t (*linear_scratch_bytes)(int64_t n_in, int64_t n_tokens);

  // A packed linear layer, for the output rows r of strips [first_strip, last_strip) that the matrix has, and every token t:
  //   y[t * ldy + r] = (add ? y[t * ldy + r] : 0) + alpha * (w.scale * row_scale[r] * x.scale[t] * (C quantized_t)[r] + (S plain_t)[r])
  // Few tokens are multiplied one by one (GEMV), many in blocks (GEMM). linear_float reads `rotated` in place of `quantized` and has no
  // x.scale.
  void (*linear_int8)(const TqnMatrix& w, int64_t first_strip, int64_t last_strip, const Activations& x, float alpha, bool add, float* y,
                      int64_t ldy, void* scratch);
  void (*linear_float)(const TqnMatrix& w, int64_t first_strip, int64_t last_strip, const Activations& x, float alpha, bool add, float* y,
                       int64_t ldy, void* scratch);
  // The integer part of linear_int8 alone: acc[t * ld + r] = (C quantized_t)[r], for all 64 rows of each strip, also those beyond n_out.
  // Integer sums are exact, so tests compare them with the scalar reference bit by bit.
  void (*accumulate)(const TqnMatrix& w, int64_t first_strip, int64_t last_strip, const Activations& x, int32_t* acc, int64_t ld,
                     void* scratch);
  // y[t * ldy + r] = (add ? y[t * ldy + r] : 0) + alpha * (W x_t)[r] for an unquantized matrix and its rows r in [first_row, last_row).
  void (*linear_dense)(const DenseMatrix& w, int64_t first_row, int64_t last_row, const float* x, int64_t n_tokens, float alpha, bool add,
                       float* y, int64_t ldy);
  // Row `row` of the weights that a packed matrix stands for, (n_in) floats, rotation undone and outliers included. Reads that row's codes
  // only. plan: the matrix's rotation; null when it has none.
  void (*tqn_row)(const TqnMatrix& w, const RotationPlan* plan, int64_t row, float* out);
  void (*dense_row)(const DenseMatrix& w, int64_t row, float* out);  // the same row of an unquantized matrix

  // From rotate to clamped_swiglu, `out` may be the same array as the first input.
  void (*rotate)(const RotationPlan& plan, const float* x, float* out);          // out = K D x
  void (*rotate_inverse)(const RotationPlan& plan, const float* x, float* out);  // out = D K x
  // Rounds x (n) to int8: returns s = max|x| / 127 and writes x / s, rounded to the nearest integer, ties to even. All zeros: s = 0.
  float (*quantize)(const float* x, int64_t n, int8_t* a);
  // out = x / sqrt(mean(x^2) + eps) * weight; a null weight is all ones.
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);    // out = silu(gate) * up
  void (*sigmoid_mul)(const float* gate, const float* x, int64_t n, float* out);  // out = sigmoid(gate) * x
  void (*gelu_mul)(const float* gate, const float* up, int64_t n, float* out);    // out = gelu(gate) * up, gelu by its tanh approximation
  // out = g sigmoid(1.702 g) (u + 1), g = min(gate, 7), u = up between -7 and 7: gpt-oss's.
  void (*clamped_swiglu)(const float* gate, const float* up, int64_t n, float* out);
  void (*add_scaled)(float* y, const float* x, float alpha, int64_t n);  // y += alpha * x
  void (*soft_cap)(float* x, float cap, int64_t n);                      // x = cap * tanh(x / cap)
  // Rotary embedding of one head's vector, in place: pair i of the first `dims` elements is turned by the angle with cos[i] and sin[i].
  // Pair i is (x[i], x[i + dims / 2]) in rope_neox and (x[2 i], x[2 i + 1]) in rope_pairs.
  void (*rope_neox)(float* x, const float* cos, const float* sin, int dims);
  void (*rope_pairs)(float* x, const float* cos, const float* sin, int dims);
  void (*to_f16)(const float* x, int64_t n, uint16_t* out);
  void (*to_f32)(const uint16_t* x, int64_t n, float* out);
  // n query heads of one key/value head go on over the cached positions [first, last): k and v are rows of head_dim float16, `stride`
  // elements apart, which all queries read together. What a query gets does not depend on the others, to the bit.
  void (*attention)(const AttentionShape& shape, AttentionQuery* queries, int64_t n, const uint16_t* k, const uint16_t* v, int64_t stride,
                    int64_t first, int64_t last);
  void (*attention_f32)(const AttentionShape& shape, AttentionQuery* queries, int64_t n, const float* k, const float* v, int64_t stride,
                        int64_t first, int64_t last);  // the same for k and v in float32
  // out = silu(sum over the taps of weights[tap * stride + i] * rows[tap][i]), i below n.
  void (*convolve)(const float* const* rows, int taps, const float* weights, int64_t stride, int64_t n, float* out);
  // The delta rule for the columns [first, last) of a head's state (key_dim, stride), in place. The results of a column depend on the
  // tokens alone, not on which columns and how many tokens are computed together.
  void (*delta_rule)(float* state, int64_t stride, int key_dim, int64_t first, int64_t last, const DeltaRows& rows);
  // n queries, in ascending order of `last`, go on over the tiles [first_tile, last_tile) of a cache in codes. Products of keys are exact
  // int32 sums; weights of a tile's values are rounded to 15 bits of the largest, and their products are exact again.
  void (*attention_coded)(const AttentionShape& shape, const CodedCache& cache, int64_t first_tile, int64_t last_tile, CodedQuery* queries,
                          int64_t n);
};

const Kernels& kernels();  // the table in use: TQ_ISA's, else the best; throws Error(invalid_argument) when TQ_ISA cannot be used here
std::span<const Kernels* const> all_kernels();       // the tables that this machine can run, best first; the portable one is last
const Kernels& kernels_named(std::string_view isa);  // of those; throws Error(invalid_argument) for another name

}  // namespace tq::kernels
