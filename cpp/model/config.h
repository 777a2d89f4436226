// What a model is, apart from its weights: `Config` for the whole of it, `LayerConfig` for each layer. architectures.cpp fills both from a
// file's metadata.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "backend/backend.h"

namespace tq {

// RMS norm of queries and keys before their rotary embedding.
enum class QkNorm : uint8_t {
  none,
  per_head,  // each head by itself, with one weight (head_dim) for all of them
  full       // all heads of a token as one vector, with a weight (n_heads * head_dim)
};

// Yarn's scaling: frequencies of pairs that turn fewer than `beta_slow` times in `original_ctx` positions are divided by `factor`, those of
// pairs that turn more than `beta_fast` times stay; between these two the share that is divided rises linearly with the pair's number.
struct YarnConfig {
  float factor = 1;  // 1: no such scaling
  float beta_fast = 32, beta_slow = 1;
  int64_t original_ctx = 0;
  bool whole_pairs = true;  // the linear part begins and ends at whole pairs
  bool operator==(const YarnConfig&) const = default;
};

// Rotary position embedding: pair i of the first `dims` elements of a head, at position p, is turned by the angle p * frequency_i.
struct RopeConfig {
  float base = 10000;        // frequency_i = base^(-2 i / dims) / (linear_scale * factor_i)
  float linear_scale = 1;    // 4: positions are squeezed into a quarter of their range
  float magnitude = 1;       // cos and sin are multiplied by it
  bool use_factors = true;   // factor_i comes from the file's tensors of rope factors where it has them; else 1
  int64_t original_ctx = 0;  // of files with factors for long contexts: a context of more positions than this uses those
  YarnConfig yarn{};         // scales the frequencies further
  int dims = 0;              // elements of a head that turn: even, at most head_dim; 0: none, the layer knows no positions
  bool pairs = false;        // pair i is (2 i, 2 i + 1), the layout of llama.cpp's llama files; else (i, i + dims / 2)
  bool operator==(const RopeConfig&) const = default;
};

// What a file says of a layer's keys, for caches in codes: KeyStatistics (format/cache.h) of all heads, (n_kv_heads, head_dim) each.
struct LayerKeyStatistics {
  std::vector<float> mean, balance;  // empty: none
  uint64_t fingerprint() const;      // of the numbers: codes of keys can only be read by models with the same
};

// A mixer: softmax attention of grouped query heads over the positions so far.
struct AttentionConfig {
  int n_heads = 0;     // of queries
  int n_kv_heads = 0;  // of keys and values; divides n_heads
  int head_dim = 0;    // elements of every head
  float scale = 1;     // a score is scale * (q . k)
  float soft_cap = 0;  // scores become soft_cap * tanh(score / soft_cap); 0: they stay as they are
  int64_t window = 0;  // a position sees itself and the window - 1 before it; 0: all before it
  QkNorm qk_norm = QkNorm::none;
  RopeConfig rope;
  QueryGrowth growth{};  // of queries in long contexts
  // Values are normed as QkNorm::per_head norms keys, without a weight; a file without a matrix for them has the keys' product in its
  // place.
  bool norm_values = false;
  // The layer whose keys and values these heads see, on the same device and with heads of the same shape; -1: their own.
  int kv_layer = -1;
  bool kv_shared = false;    // later layers see this one's
  bool output_gate = false;  // what the heads give is multiplied by the sigmoid of a gate, element by element
  bool sinks = false;        // each head has a score that takes part in its softmax and adds nothing
  std::shared_ptr<const LayerKeyStatistics> key_statistics;  // set by the loader; null: the file has none
  int64_t q_width() const { return int64_t(n_heads) * head_dim; }
  int64_t kv_width() const { return int64_t(n_kv_heads) * head_dim; }
};

// A mixer: a gated delta net (format/delta_net.h), whose heads are then normed, each by itself, and multiplied by silu of a gate.
using DeltaNetConfig = DeltaNetShape;

// What lets a layer's positions see each other. To add a kind of mixer, add an alternative here, in MixerWeights (model.h) and in
// StateShape (state.h); graph.cpp and loader.cpp then do not compile (std::visit) until they handle it.
using Mixer = std::variant<AttentionConfig, DeltaNetConfig>;

// A feed-forward: down (activation(gate x) * up x).
struct GatedConfig {
  int64_t n_ff = 0;  // rows of gate and up
  GatedActivation activation = GatedActivation::silu;
};

// A feed-forward: a router gives each token to n_used of n_experts gated feed-forwards, whose outputs are summed with the router's softmax
// probabilities as weights.
struct ExpertsConfig {
  int n_experts = 0, n_used = 0;
  int64_t n_ff = 0;         // rows of each expert's gate and up
  int64_t n_ff_shared = 0;  // of one more expert that every token goes to; 0: there is none
  bool normalize = true;    // the weights of a token's n_used experts are divided by their sum
  bool biases = false;      // router and experts add biases to their products
  GatedActivation activation = GatedActivation::silu;
};

// Both, side by side (gemma 4): post_norm_1(gated(pre_norm(x))) + post_norm_2(experts(pre_norm_2(x))), where the router sees x behind a
// norm without a weight. Models that have it have post norms.
struct ParallelConfig {
  GatedConfig gated;
  ExpertsConfig experts;
};

using FeedForward = std::variant<GatedConfig, ExpertsConfig, ParallelConfig>;

// A layer adds two branches to the residual stream x, one after the other:
//   x += residual_scale * post_norm(mixer(pre_norm(x)));  x += residual_scale * post_norm(feed_forward(pre_norm(x)))
// Where there are per-layer embeddings (Config::n_embd_layer), a third one follows, of a vector e that the layer has for the token:
//   p = (sqrt(n_embd_layer) e + norm(project(embedding) / sqrt(n_embd))) / sqrt(2);  x += post_norm(expand(gelu(gate x) * p))
// In some models (gemma 4) the stream is then multiplied by a number of the layer's own.
struct LayerConfig {
  Mixer mixer;
  FeedForward feed_forward;
};

struct Config {
  std::string architecture;                   // GGUF's name: "llama", "qwen2", "gemma2", ...
  int64_t n_embd = 0;                         // elements of the residual stream
  int64_t n_embd_layer = 0;                   // elements of a token's per-layer embedding; 0: there are none
  int64_t n_vocab = 0;                        // tokens: rows of the embedding and of the output matrix
  int64_t n_ctx_train = 0;                    // positions that the model was trained for
  float norm_eps = 0;                         // epsilon of every RMS norm
  float embed_scale = 1;                      // the embedding is multiplied by it
  float residual_scale = 1;                   // what a branch adds is multiplied by it
  float logit_scale = 1;                      // logits are multiplied by it
  float logit_soft_cap = 0;                   // then they become cap * tanh(logit / cap); 0: they stay as they are
  bool pre_norms = true, post_norms = false;  // which of a branch's two norms there are (gemma 2: both; olmo 2: post alone)
  std::vector<LayerConfig> layers;            // from the embedding to the output
  int64_t n_layers() const { return int64_t(layers.size()); }
};

// The layer whose state a layer works on: its own, or that of AttentionConfig::kv_layer.
inline int64_t kv_layer(const Config& c, int64_t layer) {
  const auto* a = std::get_if<AttentionConfig>(&c.layers[size_t(layer)].mixer);
  return a && a->kv_layer >= 0 ? a->kv_layer : layer;
}

}  // namespace tq
