// One device's share of a context: its layers' activations, cache and programs.
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
  // Passes through this stage's layers, which the last stage ends in logits, in the best tokens too, or in hidden states; and the output
  // layer alone, for other rows of the pass before.
  enum Pass : uint8_t { logits, best, hidden, more_logits, more_best, kPasses };
  // The first stage starts at the tokens, others where put() left the rows.
  void run(Pass pass, const Batch& batch) { part_.backend->run(program(pass), batch); }

  void get(std::vector<float>& rows, int64_t n) const;  // the residual stream after run()
  void put(const std::vector<float>& rows, int64_t n);
  void get_logits(float* out, int64_t first, int64_t n) const;
  void get_best(Candidate* out, int64_t n) const;  // the first n rows
  void get_hidden(float* out, int64_t row) const;

  bool has_layer(int64_t layer) const { return layer >= part_.first && layer < part_.last; }
  Buffer& k_cache(int64_t layer) const { return *planes_.k_cache[size_t(layer)]; }
  Buffer& v_cache(int64_t layer) const { return *planes_.v_cache[size_t(layer)]; }
  Backend& backend() const { return *part_.backend; }
  const Planes& planes() const { return planes_; }
  int64_t bytes() const { return bytes_; }

 private:
  BufferPtr allocate(int64_t bytes);
  Plane plane(int64_t rows, int64_t width);
  void allocate_planes();
  void allocate_cache(CacheType type);
  void add_body(std::vector<Op>& ops) const;
  Program& program(Pass pass);
  bool first() const { return part_.first == 0; }
  bool last() const { return part_.last == config_.n_layers; }

  const Model& model_;
  const Part& part_;
  const Config& config_;
  const ContextOptions options_;
  Planes planes_;
  std::vector<BufferPtr> buffers_;
  int64_t bytes_ = 0;
  std::unique_ptr<Program> programs_[kPasses];  // made when first asked for
};

}  // namespace tq
