// The sizes of known models, for models of random weights.
#pragma once
#include <cmath>
#include <string>
#include <vector>

#include "common/error.h"
#include "model/model.h"

namespace bench {

struct Shape {
  tq::Config config;
  bool tied = false;  // the output matrix is the embedding's
};

inline Shape llama_1b() {
  Shape s{.config = {}, .tied = true};
  tq::Config& c = s.config;
  c.architecture = "llama-3.2-1b";
  c.n_layers = 16, c.n_embd = 2048, c.n_ff = 8192, c.n_vocab = 128256;
  c.n_heads = 32, c.n_kv_heads = 8, c.head_dim = 64;
  return s;
}

inline Shape llama_8b() {
  Shape s;
  tq::Config& c = s.config;
  c.architecture = "llama-3.1-8b";
  c.n_layers = 32, c.n_embd = 4096, c.n_ff = 14336, c.n_vocab = 128256;
  c.n_heads = 32, c.n_kv_heads = 8, c.head_dim = 128;
  return s;
}

// 30 G weights, 3 G of them for each token.
inline Shape qwen3_30b_a3b() {
  Shape s;
  tq::Config& c = s.config;
  c.architecture = "qwen3-30b-a3b";
  c.n_layers = 48, c.n_embd = 2048, c.n_vocab = 151936;
  c.n_heads = 32, c.n_kv_heads = 4, c.head_dim = 128;
  c.n_experts = 128, c.n_experts_used = 8, c.n_ff_expert = 768;
  return s;
}

inline std::vector<Shape> known_shapes() {
  std::vector<Shape> all{llama_1b(), llama_8b(), qwen3_30b_a3b()};
  for (Shape& s : all) {
    s.config.norm_eps = 1e-5f, s.config.rope_base = 500000, s.config.rope_dims = s.config.head_dim;
    s.config.attention_scale = 1 / std::sqrt(float(s.config.head_dim));
  }
  return all;
}

inline Shape find_shape(const std::string& name) {
  std::string known;
  for (const Shape& s : known_shapes()) {
    if (s.config.architecture == name) return s;
    known += (known.empty() ? "" : ", ") + s.config.architecture;
  }
  throw tq::Error(tq::Cause::invalid_argument, "shape " + name + " is none of " + known);
}

}  // namespace bench
