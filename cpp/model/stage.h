// One device's share of a context: the states of its layers, the planes it computes in, and its programs.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/graph.h"

namespace tq {

inline constexpr int64_t kLogitRows = 64;  // logits computed at once; more output rows go through the output layer in turns

class Stage {
 public:
  Stage(const Model& model, const Part& part, const ContextOptions& options);
  // What a stage can run. All but the last two pass a batch through the stage's layers; the last stage then computes logits, logits and the
  // best tokens, or hidden states. The last two compute the output alone, for other output rows of the pass before.
  enum Pass : uint8_t { logits, best, hidden, more_logits, more_best, kPasses };
  // The first stage begins with the batch's tokens, another one with the rows of the residual stream that put() left.
  void run(Pass pass, const Batch& batch) { part_.backend->run(program(pass), batch); }

  // After run(): the first n rows of the residual stream, (n, n_embd), and behind them, where layers need it, what it was at first.
  void get(std::vector<float>& rows, int64_t n) const;
  void put(const std::vector<float>& rows, int64_t n);
  void get_logits(float* out, int64_t first, int64_t n) const;  // of output rows [first, first + n)
  void get_best(Candidate* out, int64_t n) const;               // of the first n output rows
  void get_hidden(float* out, int64_t row) const;               // of a row of the batch

  std::span<const LayerState> states() const { return states_; }  // of its layers, in their order
  int64_t bytes() const;

 private:
  Graph graph() const { return {config_, model_.weights(), planes_, options_.n_ctx}; }
  void add_body(std::vector<Op>& ops) const;
  Program& program(Pass pass);
  bool first() const { return part_.first == 0; }
  bool last() const { return part_.last == config_.n_layers(); }

  const Model& model_;
  const Part& part_;
  const Config& config_;
  const ContextOptions options_;
  Planes planes_;
  std::vector<LayerState> states_;
  std::unique_ptr<Program> programs_[kPasses];  // made when first asked for
};

}  // namespace tq
