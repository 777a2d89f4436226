// One device's share of a context: its layers' activations, cache and programs.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "model/graph.h"

namespace tq {

inline constexpr int64_t kLogitRows = 64;  // logits computed at once; more output rows go through the output layer in turns

class Stage {
 public:
  Stage(const Model& model, const Part& part, const ContextOptions& options);
  // One pass through this stage's layers. The first stage starts at the tokens, others where put() left the rows; the last computes logits.
  void run(const Batch& batch) { part_.backend->run(*pass_, batch); }
  void run_output(const Batch& batch);  // the last stage: the logits of other rows of the pass before
  void run_hidden(const Batch& batch);  // the last stage: the same as run(), ending in hidden states

  void get(std::vector<float>& rows, int64_t n) const;  // the residual stream after run()
  void put(const std::vector<float>& rows, int64_t n);
  void get_logits(float* out, int64_t n) const;  // the first n rows
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
  std::unique_ptr<Program> prepare(std::vector<Op> ops) const;
  bool first() const { return part_.first == 0; }
  bool last() const { return part_.last == config_.n_layers; }

  const Model& model_;
  const Part& part_;
  const Config& config_;
  const ContextOptions options_;
  Planes planes_;
  std::vector<BufferPtr> buffers_;
  int64_t bytes_ = 0;
  std::unique_ptr<Program> pass_, output_, hidden_;  // the last two are made when first asked for
};

}  // namespace tq
