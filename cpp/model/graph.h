// The one graph of all architectures, as lists of backend operations.
#pragma once
#include <vector>

#include "model/model.h"

namespace tq {

// Where a running model keeps its activations on one device, (rows, width) each, and its cache: (slots, n_kv_heads, capacity, head_dim) a
// layer.
struct Planes {
  Plane x;                 // the residual stream (n_embd)
  Plane q, k, v, attn;     // (n_heads or n_kv_heads) * head_dim
  Plane gate, up;          // (n_ff); unset in mixtures of experts
  Plane branch;            // (n_embd) output of attention or feed-forward before its own norm; unset without post norms
  Plane hidden;            // (n_embd) after the output norm
  Plane logits;            // (n_vocab)
  Buffer* best = nullptr;  // (rows, kMaxCandidates) Candidate, of the logits
  std::vector<BufferPtr> k_cache, v_cache;
  int64_t capacity = 0;
  bool cache_f32 = false;  // else float16
  int64_t cache_bytes(int64_t elements) const { return elements * int64_t(cache_f32 ? sizeof(float) : sizeof(uint16_t)); }
};

bool use_f32_cache(const Model& model, CacheType type);  // throws unsupported where a backend cannot

void add_embedding(std::vector<Op>& ops, const Config& c, const Weights& w, const Planes& p);
void add_layer(std::vector<Op>& ops, const Config& c, const Weights& w, const Planes& p, int64_t layer);
void add_output(std::vector<Op>& ops, const Config& c, const Weights& w, const Planes& p);  // logits of the output rows
void add_best(std::vector<Op>& ops, const Planes& p);                                       // p.best of the logits
void add_hidden(std::vector<Op>& ops, const Config& c, const Weights& w, const Planes& p);  // p.hidden, every row

}  // namespace tq
