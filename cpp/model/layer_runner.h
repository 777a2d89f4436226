// Calibration's view of the engine: one block of layers at a time over many windows, with the inputs of the linear layers in reach, so
// that memory stays at one layer's weights and one layer's statistics.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "model/model.h"

namespace tq {

// Sees the input of an input site ("blk.3.attn_q": q, k and v read it; "blk.3.attn_output", "blk.3.ffn_gate", "blk.3.ffn_down", experts
// "blk.3.ffn_gate.7") for some rows: x (rows, width) in the original basis. Before a site that reads a norm comes the residual stream
// itself, as "blk.3.attn_q/residual". Called from the thread that runs the layer.
using Tap = std::function<void(const std::string& site, const float* x, int64_t rows, int64_t width)>;

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
  void embed(std::span<const int32_t> tokens, std::span<float> hidden);               // (n * seq_len) -> (n * seq_len, n_embd)
  void layer(int64_t index, std::span<float> hidden, const Tap& tap);                 // in place
  void head(std::span<const float> hidden, std::span<float> logits, const Tap& tap);  // any rows -> (rows, n_vocab); site "output"

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tq
