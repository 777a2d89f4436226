#include "model/stage.h"

#include <algorithm>

namespace tq {

Stage::Stage(const Model& model, const Part& part, const ContextOptions& options)
    : model_(model), part_(part), config_(model.config()), options_(options) {
  Backend& backend = *part_.backend;
  planes_ = allocate_planes(backend, config_,
                            {.first_layer = part_.first,
                             .last_layer = part_.last,
                             .rows = options_.n_batch,
                             .logit_rows = last() ? std::min(options_.n_batch, kLogitRows) : 0});
  const CacheElements cache = cache_elements(model, options_.cache);
  for (int64_t layer = part_.first; layer < part_.last; layer++)
    states_.emplace_back(backend, state_shape(config_.layers[size_t(layer)], cache), options_.n_slots, options_.n_ctx);
  program(logits);
}

int64_t Stage::bytes() const {
  int64_t total = planes_.bytes();
  for (const LayerState& state : states_) total += state.bytes();
  return total;
}

void Stage::add_body(std::vector<Op>& ops) const {
  if (first()) add_embedding(ops, graph());
  if (first() && planes_.embedded) add_first_stream(ops, graph());
  for (int64_t layer = part_.first; layer < part_.last; layer++) {
    const int64_t owner = kv_layer(config_, layer);
    add_layer(ops, graph(), layer, states_[size_t(owner - part_.first)]);
  }
}

Program& Stage::program(Pass pass) {
  std::unique_ptr<Program>& program = programs_[pass];
  if (program) return *program;
  if (pass == hidden && !planes_.hidden) planes_.hidden = allocate_plane(*part_.backend, options_.n_batch, config_.n_embd);
  std::vector<Op> ops;
  if (pass != more_logits && pass != more_best) add_body(ops);
  if (pass == hidden)
    add_hidden(ops, graph());
  else if (last())
    add_output(ops, graph());
  if (pass == best || pass == more_best) add_best(ops, graph());
  program = part_.backend->prepare(std::move(ops), options_.n_batch);
  return *program;
}

void Stage::get(std::vector<float>& rows, int64_t n) const {
  const int64_t count = n * config_.n_embd, bytes = count * int64_t(sizeof(float));
  rows.resize(size_t(planes_.embedded ? 2 * count : count));
  part_.backend->download(*planes_.x, 0, rows.data(), bytes);
  if (planes_.embedded) part_.backend->download(*planes_.embedded, 0, rows.data() + count, bytes);
}

void Stage::put(const std::vector<float>& rows, int64_t n) {
  const int64_t count = n * config_.n_embd, bytes = count * int64_t(sizeof(float));
  part_.backend->upload(*planes_.x, 0, rows.data(), bytes);
  if (planes_.embedded) part_.backend->upload(*planes_.embedded, 0, rows.data() + count, bytes);
}

void Stage::get_logits(float* out, int64_t first, int64_t n) const {
  const int64_t row = config_.n_vocab * int64_t(sizeof(float));
  if (n > 0) part_.backend->download(*planes_.logits, first * row, out, n * row);
}

void Stage::get_best(Candidate* out, int64_t n) const {
  if (n > 0) part_.backend->download(*planes_.best, 0, out, n * kMaxCandidates * int64_t(sizeof(Candidate)));
}

void Stage::get_hidden(float* out, int64_t row) const {
  const int64_t bytes = config_.n_embd * int64_t(sizeof(float));
  part_.backend->download(*planes_.hidden, row * bytes, out, bytes);
}

}  // namespace tq
