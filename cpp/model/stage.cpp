#include "model/stage.h"

#include <algorithm>

namespace tq {

Stage::Stage(const Model& model, const Part& part, const ContextOptions& options)
    : model_(model), part_(part), config_(model.config()), options_(options) {
  allocate_planes();
  allocate_cache(options.cache);
  program(logits);
}

BufferPtr Stage::allocate(int64_t bytes) {
  bytes_ += bytes;
  return part_.backend->allocate(bytes);
}

Plane Stage::plane(int64_t rows, int64_t width) {
  buffers_.push_back(allocate(rows * width * int64_t(sizeof(float))));
  return {buffers_.back().get(), width};
}

void Stage::allocate_planes() {
  const Config& c = config_;
  Planes& p = planes_;
  const int64_t rows = options_.n_batch, q_width = int64_t(c.n_heads) * c.head_dim, kv_width = int64_t(c.n_kv_heads) * c.head_dim;
  p.x = plane(rows, c.n_embd);
  p.q = plane(rows, q_width), p.k = plane(rows, kv_width), p.v = plane(rows, kv_width), p.attn = plane(rows, q_width);
  if (c.n_experts == 0) p.gate = plane(rows, c.n_ff), p.up = plane(rows, c.n_ff);
  if (c.post_norms) p.branch = plane(rows, c.n_embd);
  if (!last()) return;
  p.logits = plane(std::min(rows, kLogitRows), c.n_vocab);
  buffers_.push_back(allocate(std::min(rows, kLogitRows) * kMaxCandidates * int64_t(sizeof(Candidate))));
  p.best = buffers_.back().get();
}

void Stage::allocate_cache(CacheType type) {
  Planes& p = planes_;
  p.capacity = options_.n_ctx, p.cache_f32 = use_f32_cache(model_, type);
  p.k_cache.resize(size_t(config_.n_layers)), p.v_cache.resize(size_t(config_.n_layers));
  const int64_t bytes = p.cache_bytes(options_.n_slots * config_.n_kv_heads * p.capacity * config_.head_dim);
  for (int64_t layer = part_.first; layer < part_.last; layer++)
    p.k_cache[size_t(layer)] = allocate(bytes), p.v_cache[size_t(layer)] = allocate(bytes);
}

void Stage::add_body(std::vector<Op>& ops) const {
  if (first()) add_embedding(ops, config_, model_.weights(), planes_);
  for (int64_t layer = part_.first; layer < part_.last; layer++) add_layer(ops, config_, model_.weights(), planes_, layer);
}

Program& Stage::program(Pass pass) {
  std::unique_ptr<Program>& program = programs_[pass];
  if (program) return *program;
  if (pass == hidden && !planes_.hidden) planes_.hidden = plane(options_.n_batch, config_.n_embd);
  std::vector<Op> ops;
  if (pass != more_logits && pass != more_best) add_body(ops);
  if (pass == hidden)
    add_hidden(ops, config_, model_.weights(), planes_);
  else if (last())
    add_output(ops, config_, model_.weights(), planes_);
  if (pass == best || pass == more_best) add_best(ops, planes_);
  program = part_.backend->prepare(std::move(ops), options_.n_batch);
  return *program;
}

void Stage::get(std::vector<float>& rows, int64_t n) const {
  rows.resize(size_t(n * config_.n_embd));
  part_.backend->download(*planes_.x.buffer, 0, rows.data(), n * config_.n_embd * int64_t(sizeof(float)));
}

void Stage::put(const std::vector<float>& rows, int64_t n) {
  part_.backend->upload(*planes_.x.buffer, 0, rows.data(), n * config_.n_embd * int64_t(sizeof(float)));
}

void Stage::get_logits(float* out, int64_t first, int64_t n) const {
  const int64_t row = config_.n_vocab * int64_t(sizeof(float));
  if (n > 0) part_.backend->download(*planes_.logits.buffer, first * row, out, n * row);
}

void Stage::get_best(Candidate* out, int64_t n) const {
  if (n > 0) part_.backend->download(*planes_.best, 0, out, n * kMaxCandidates * int64_t(sizeof(Candidate)));
}

void Stage::get_hidden(float* out, int64_t row) const {
  const int64_t bytes = config_.n_embd * int64_t(sizeof(float));
  part_.backend->download(*planes_.hidden.buffer, row * bytes, out, bytes);
}

}  // namespace tq
