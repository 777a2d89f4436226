// The gated delta net: a recurrent mixer whose state is a matrix for each head, changed by every token.
#pragma once
#include <cstdint>
#include <span>

namespace tq {

// Of one layer. A token brings queries, keys and values, side by side, (conv_width) floats: n_key_heads heads of queries, as many of keys,
// n_value_heads of values.
struct DeltaNetShape {
  int n_key_heads = 0, n_value_heads = 0;  // the first divides the second
  int key_dim = 0, value_dim = 0;          // elements of a head
  int taps = 0;                            // of the convolution: a token and the taps - 1 before it
  bool tiled = false;                      // value head h reads key head h % n_key_heads; else those of a key head are neighbours
  constexpr int64_t key_width() const { return int64_t(n_key_heads) * key_dim; }
  constexpr int64_t value_width() const { return int64_t(n_value_heads) * value_dim; }
  constexpr int64_t conv_width() const { return 2 * key_width() + value_width(); }
  constexpr int key_head(int value_head) const { return tiled ? value_head % n_key_heads : value_head / (n_value_heads / n_key_heads); }
  // The state of a sequence, in floats: the inputs of the latest taps - 1 positions, position p in row p % (taps - 1), then a matrix
  // (key_dim, value_dim) for each value head. A matrix lies in blocks of kBlockColumns columns, the last may have fewer, each (key_dim,
  // its columns) without gaps: what one thread or thread block changes is one piece of memory.
  constexpr int64_t matrices_at() const { return (taps - 1) * conv_width(); }
  static constexpr int kBlockColumns = 32;
  constexpr int64_t block_at(int64_t value_head, int64_t first_column) const {
    return matrices_at() + (value_head * value_dim + first_column) * key_dim;
  }
  constexpr int block_columns(int64_t first_column) const {
    return value_dim - first_column < kBlockColumns ? int(value_dim - first_column) : kBlockColumns;
  }
  constexpr int64_t state_floats() const { return matrices_at() + value_width() * key_dim; }
};

inline constexpr int kMaxTaps = 16;
inline constexpr float kDeltaNormEps = 1e-6f;  // of queries and keys: x / sqrt(sum(x^2) + eps)

// The weights that are no matrices.
struct DeltaNetWeights {
  const float* conv = nullptr;  // (taps, conv_width), the tap of the token itself last
  const float* rate = nullptr;  // (n_value_heads), negative: a state decays by exp(rate * softplus(alpha + dt_bias))
  const float* dt_bias = nullptr;
};

namespace reference {

// The oracle, in double: n tokens of a sequence from its beginning. qkv (n, conv_width), alpha and beta (n, n_value_heads), out
// (n, value_width). With q, k and v behind the convolution and silu, q and k normed, q divided by sqrt(key_dim):
//   S = decay S;  S += k (sigmoid(beta) (v - S^T k))^T;  out = S^T q
void delta_net(const DeltaNetShape& shape, const DeltaNetWeights& w, int64_t n, const float* qkv, const float* alpha, const float* beta,
               double* out);

}  // namespace reference
}  // namespace tq
