// The sizes of known models, for models of random weights.
#pragma once
#include <cmath>
#include <string>
#include <vector>

#include "common/error.h"
#include "model/model.h"

namespace bench {

// A model whose layers are all alike.
struct Shape {
  std::string name;
  int64_t n_layers = 0, n_embd = 0, n_ff = 0, n_vocab = 0;
  int n_heads = 0, n_kv_heads = 0, head_dim = 0;
  int n_experts = 0, n_experts_used = 0;  // then n_ff is an expert's
  bool tied = false;                      // the output matrix is the embedding's
  static constexpr float kNormEps = 1e-5f, kRopeBase = 500000;
  int64_t q_width() const { return int64_t(n_heads) * head_dim; }
  int64_t kv_width() const { return int64_t(n_kv_heads) * head_dim; }

  tq::Config config() const {
    tq::AttentionConfig attention;
    attention.n_heads = n_heads, attention.n_kv_heads = n_kv_heads, attention.head_dim = head_dim;
    attention.scale = 1 / std::sqrt(float(head_dim));
    attention.rope.base = kRopeBase, attention.rope.dims = head_dim;
    tq::LayerConfig layer{attention, tq::GatedConfig{.n_ff = n_ff}};
    if (n_experts > 0) {
      tq::ExpertsConfig experts;
      experts.n_experts = n_experts, experts.n_used = n_experts_used, experts.n_ff = n_ff;
      layer.feed_forward = experts;
    }
    tq::Config c;
    c.architecture = name, c.n_embd = n_embd, c.n_vocab = n_vocab, c.norm_eps = kNormEps;
    c.layers.assign(size_t(n_layers), layer);
    return c;
  }
};

inline Shape llama_1b() {
  Shape s;
  s.name = "llama-3.2-1b", s.tied = true;
  s.n_layers = 16, s.n_embd = 2048, s.n_ff = 8192, s.n_vocab = 128256;
  s.n_heads = 32, s.n_kv_heads = 8, s.head_dim = 64;
  return s;
}

inline Shape llama_8b() {
  Shape s;
  s.name = "llama-3.1-8b";
  s.n_layers = 32, s.n_embd = 4096, s.n_ff = 14336, s.n_vocab = 128256;
  s.n_heads = 32, s.n_kv_heads = 8, s.head_dim = 128;
  return s;
}

// 30 G weights, 3 G of them for each token.
inline Shape qwen3_30b_a3b() {
  Shape s;
  s.name = "qwen3-30b-a3b";
  s.n_layers = 48, s.n_embd = 2048, s.n_ff = 768, s.n_vocab = 151936;
  s.n_heads = 32, s.n_kv_heads = 4, s.head_dim = 128;
  s.n_experts = 128, s.n_experts_used = 8;
  return s;
}

inline std::vector<Shape> known_shapes() { return {llama_1b(), llama_8b(), qwen3_30b_a3b()}; }

inline Shape find_shape(const std::string& name) {
  std::string known;
  for (const Shape& s : known_shapes()) {
    if (s.name == name) return s;
    known += (known.empty() ? "" : ", ") + s.name;
  }
  throw tq::Error(tq::Cause::invalid_argument, "shape " + name + " is none of " + known);
}

}  // namespace bench
