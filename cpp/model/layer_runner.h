// Calibration's view of the engine: one layer at a time over many windows of text, with the inputs of its linear layers in reach, so that
// memory has to hold one layer's weights and statistics at a time.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/graph.h"

namespace tq {

// A function that is shown what passes an input site (graph.h), before the site's matrices multiply it: x (rows, width) float32, not
// rotated. It is called on the thread that runs the layer, for some rows at a time; an expert's sites see the rows that the router sends
// there. Before a site that reads the residual stream through a norm, it is also shown the stream itself, as the site's name + "/residual".
// Returns true to stop these rows here, before the site's matrices.
using Tap = std::function<bool(const std::string& site, const float* x, int64_t rows, int64_t width)>;

// Queries and keys of a layer's attention before their rotary embedding: rows of whole windows.
struct Heads {
  const AttentionConfig& config;
  std::vector<float> frequencies;  // (rope.dims / 2) of the rotary embedding
  std::vector<float> q, k;         // (rows, q_width), (rows, kv_width)
};
using HeadsTap = std::function<void(const Heads&)>;

// Windows of text part-way through a layer. Their rows run in groups. A group that a tap stopped continues from that point in the next
// run(), with the matrices set by then; what was computed before that point is not computed again.
struct LayerPass {
  struct Halt {
    size_t op = 0;                           // the group's next operation
    std::vector<std::vector<float>> planes;  // planes_needed() from there on
  };
  int64_t layer;
  std::vector<float> hidden;  // (n * seq_len, row_width)
  std::vector<Halt> halts;    // one a group
};

// Between layers a token's row is the residual stream, (n_embd), and behind it what later layers read of more than the layer before: where
// there are per-layer embeddings the token's number, where layers share keys and values those of the layers that have them.
class LayerRunner {
 public:
  // For windows of seq_len tokens each, at positions 0 to seq_len - 1. The model must be on one device.
  LayerRunner(std::shared_ptr<Model> model, int64_t seq_len);
  ~LayerRunner();
  int64_t seq_len() const;
  const Config& config() const;
  int64_t row_width() const;                                // n_embd or more
  std::vector<InputSite> input_sites(int64_t layer) const;  // what a tap will be shown in this layer, and who reads it
  // Uses w (n_out, n_in) float32, copied, in place of the file's matrix of this name ("blk.3.attn_q.weight"). Empty: the file's own again.
  void set_matrix(const std::string& name, std::span<const float> w);
  void embed(std::span<const int32_t> tokens, std::span<float> hidden);  // (n * seq_len) tokens -> (n * seq_len, row_width)
  LayerPass enter(int64_t layer, std::span<const float> hidden) const;   // windows (n * seq_len, row_width) before a layer
  void run(LayerPass& pass, const Tap& tap);                             // to the layer's end, or to where the tap stops the rows
  void run_heads(LayerPass& pass, const HeadsTap& heads);                // to the layer's end; not called where it has no keys of its own
  // Any rows (rows, row_width) -> (rows, n_vocab) logits. The tap sees site "output"; where it returns true, the logits
  // of these rows are left as they were.
  void head(std::span<const float> hidden, std::span<float> logits, const Tap& tap);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tq
