// Calibration's view of the engine: one block of layers at a time over many windows, with the inputs of the linear layers in reach, so
// that memory stays at one layer's weights and one layer's statistics.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/model.h"

namespace tq {

// Sees the input of an input site ("blk.3.attn_q": q, k and v read it; "blk.3.attn_output", "blk.3.ffn_gate", "blk.3.ffn_down", experts
// "blk.3.ffn_gate.7") for some rows: x (rows, width) in the original basis. Before a site that reads a norm comes the residual stream
// itself, as "blk.3.attn_q/residual". Called from the thread that runs the layer. True: leave these rows before the site's operation.
using Tap = std::function<bool(const std::string& site, const float* x, int64_t rows, int64_t width)>;

// Windows on their way through a layer. Those that a tap stopped go on later, perhaps with other matrices, without the way so far.
struct LayerPass {
  struct Halt {
    size_t op = 0;             // the next operation
    std::vector<float> x, up;  // its inputs
  };
  int64_t layer;
  std::vector<float> hidden;  // (n * seq_len, n_embd), the residual stream
  std::vector<Halt> halts;    // of the rows that run together
};

class LayerRunner {
 public:
  // Windows of seq_len tokens each, positions from 0; CPU only.
  LayerRunner(std::shared_ptr<Model> model, int64_t seq_len);
  ~LayerRunner();
  int64_t seq_len() const;
  const Config& config() const;
  // Replaces a matrix by name ("blk.3.attn_q.weight", or an expert's) for this runner; w (n_out, n_in) float32 is copied. Empty: the file's
  // own again.
  void set_matrix(const std::string& name, std::span<const float> w);
  void embed(std::span<const int32_t> tokens, std::span<float> hidden);  // (n * seq_len) -> (n * seq_len, n_embd)
  LayerPass enter(int64_t layer, std::span<const float> hidden) const;
  void run(LayerPass& pass, const Tap& tap);  // to the layer's end, or to where the tap says
  // Any rows (rows, n_embd) -> (rows, n_vocab); site "output", where True leaves the rows' logits as they are.
  void head(std::span<const float> hidden, std::span<float> logits, const Tap& tap);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tq
