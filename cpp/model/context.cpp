#include <mutex>

#include "common/error.h"
#include "common/fork_mutex.h"
#include "model/model.h"
#include "model/saved_state.h"
#include "model/stage.h"

namespace tq {
namespace {

constexpr int64_t kMaxStateBytes = int64_t(1) << 46;  // of one layer

[[noreturn]] void invalid(const std::string& what) { throw Error(Cause::invalid_argument, what); }

std::string of_range(const char* what, int64_t value, int64_t end) {
  return std::string(what) + " " + std::to_string(value) + " is not in 0 .. " + std::to_string(end - 1);
}

// One stage a device, in the order of layers.
std::vector<std::unique_ptr<Stage>> make_stages(const Model& model, const ContextOptions& options) {
  std::vector<std::unique_ptr<Stage>> stages;
  for (const Part& part : model.parts()) stages.push_back(std::make_unique<Stage>(model, part, options));
  return stages;
}

std::vector<const LayerState*> states_of(const std::vector<std::unique_ptr<Stage>>& stages) {
  std::vector<const LayerState*> states;
  for (const auto& stage : stages)
    for (const LayerState& state : stage->states()) states.push_back(&state);
  return states;
}

}  // namespace

struct Context::Impl {
  Impl(const Model& model, const ContextOptions& options)
      : c(model.config()),
        options(options),
        stages(make_stages(model, options)),
        sequences(states_of(stages), options.n_slots, options.n_ctx) {}

  void check(const Batch& b) const {
    const size_t rows = b.tokens.size();
    if (rows == 0 || int64_t(rows) > options.n_batch)
      invalid("a batch of " + std::to_string(rows) + " rows; n_batch is " + std::to_string(options.n_batch));
    if (b.positions.size() != rows || b.slots.size() != rows) invalid("tokens, positions and slots differ in length");
    std::vector<int64_t> ends(size_t(options.n_slots), -1);  // the position behind a slot's latest row; -1: it has none yet
    for (size_t r = 0; r < rows; r++) check_row(b, r, ends);
    int64_t previous = -1;
    for (const int32_t r : b.output_rows) {
      if (r <= previous || r >= int64_t(rows))
        invalid("output row " + std::to_string(r) + " is out of order or not below " + std::to_string(rows));
      previous = r;
    }
  }

  void check_row(const Batch& b, size_t r, std::vector<int64_t>& ends) const {
    const int64_t token = b.tokens[r], position = b.positions[r], slot = b.slots[r];
    const auto where = [r] { return "row " + std::to_string(r) + ": "; };
    if (token < 0 || token >= c.n_vocab) invalid(where() + of_range("token", token, c.n_vocab));
    if (slot < 0 || slot >= options.n_slots) invalid(where() + of_range("slot", slot, options.n_slots));
    if (position < 0 || position >= options.n_ctx) invalid(where() + of_range("position", position, options.n_ctx));
    int64_t& end = ends[size_t(slot)];
    const bool first = end < 0;
    const int64_t held = first ? sequences.positions(slot) : end;
    if (first ? position > held : position != held)
      invalid(where() + "position " + std::to_string(position) + " does not follow the " + std::to_string(held) + " positions of slot " +
              std::to_string(slot));
    if (first) sequences.check_rewind(slot, position);
    end = position + 1;
  }

  // Slots whose rows start before their end go back; the batch has been checked.
  void rewind_to(const Batch& b) {
    std::vector<bool> seen(size_t(options.n_slots));
    for (size_t r = 0; r < b.tokens.size(); r++) {
      const size_t slot = size_t(b.slots[r]);
      if (!seen[slot]) sequences.rewind(b.slots[r], b.positions[r]);
      seen[slot] = true;
    }
  }

  // Runs all stages but the last one and hands it the residual stream.
  Stage& run_to_last(const Batch& b) {
    const int64_t n = int64_t(b.tokens.size());
    rewind_to(b);
    for (size_t i = 0; i + 1 < stages.size(); i++) {
      stages[i]->run(Stage::logits, b);
      stages[i]->get(between, n);
      stages[i + 1]->put(between, n);
    }
    return *stages.back();
  }

  void hold(const Batch& b) {
    for (size_t r = 0; r < b.tokens.size(); r++) sequences.hold(b.slots[r], int64_t(b.positions[r]) + 1);
  }

  // The first rows' logits come with the pass itself, further ones from the output layer alone. get(stage, first, n) takes rows
  // [first, first + n) of the output, which are the stage's first n.
  template <class Get>
  void run_output(Batch b, Stage::Pass pass, Stage::Pass more, Get&& get) {
    const auto all = b.output_rows;
    const auto rows_from = [&](size_t done) { return all.subspan(done, std::min(all.size() - done, size_t(kLogitRows))); };
    b.output_rows = rows_from(0);
    logit_rows = 0;
    Stage& last = run_to_last(b);
    last.run(pass, b);
    hold(b);
    for (size_t done = 0; done < all.size(); done += size_t(kLogitRows)) {
      b.output_rows = rows_from(done);
      if (done > 0) last.run(more, b);
      get(last, int64_t(done), int64_t(b.output_rows.size()));
    }
    if (all.size() <= size_t(kLogitRows)) logit_rows = int64_t(all.size());
  }

  void run_logits(const Batch& b, float* out) {
    run_output(b, Stage::logits, Stage::more_logits,
               [&](const Stage& stage, int64_t first, int64_t n) { stage.get_logits(out + first * c.n_vocab, 0, n); });
  }

  void run_best(const Batch& b, Candidate* out) {
    run_output(b, Stage::best, Stage::more_best,
               [&](const Stage& stage, int64_t first, int64_t n) { stage.get_best(out + first * kMaxCandidates, n); });
  }

  void run_hidden(Batch b, float* out) {
    const auto rows = b.output_rows;
    b.output_rows = {};
    logit_rows = 0;
    Stage& last = run_to_last(b);
    last.run(Stage::hidden, b);
    hold(b);
    for (const int32_t r : rows) last.get_hidden(out, r), out += c.n_embd;
  }

  const Config& c;
  const ContextOptions options;
  std::vector<std::unique_ptr<Stage>> stages;
  Sequences sequences;
  std::vector<float> between;  // rows of the residual stream on their way from one device to the next
  int64_t logit_rows = 0;      // output rows of the latest pass whose logits the last stage holds
  mutable ForkMutex mutex;     // one call at a time
};

static ContextOptions checked(const Model& model, ContextOptions o) {
  const Config& c = model.config();
  if (o.n_ctx == 0) o.n_ctx = c.n_ctx_train;
  if (o.n_ctx < 1 || o.n_ctx > INT32_MAX) invalid("n_ctx: " + std::to_string(o.n_ctx) + ", expected 0 (the model's) or more");
  if (o.n_slots < 1 || o.n_slots > INT32_MAX) invalid("n_slots: " + std::to_string(o.n_slots));
  if (o.n_batch < 1) invalid("n_batch: " + std::to_string(o.n_batch) + ", expected 1 or more");
  o.n_batch = std::min(o.n_batch, o.n_ctx * o.n_slots);
  if (o.cache == CacheType::automatic) o.cache = cache_elements(model, o.cache).k == CacheElement::f32 ? CacheType::f32 : CacheType::f16;
  double largest = 0;  // bytes of one layer
  for (const LayerConfig& layer : c.layers)
    largest = std::max(largest, double(o.n_slots) * max_state_bytes(state_shape(layer, {CacheElement::f32, CacheElement::f32}), o.n_ctx));
  if (largest > double(kMaxStateBytes))
    throw Error(Cause::out_of_memory,
                "n_ctx " + std::to_string(o.n_ctx) + " times n_slots " + std::to_string(o.n_slots) + " is too large a cache");
  return o;
}

Context::Context(std::shared_ptr<Model> model, const ContextOptions& options)
    : model_(std::move(model)), options_(checked(*model_, options)), impl_(std::make_unique<Impl>(*model_, options_)) {}
Context::~Context() = default;

static void check_output(size_t values, size_t rows, int64_t width) {
  if (values != rows * size_t(width))
    invalid("output: " + std::to_string(values) + " values, expected " + std::to_string(rows * size_t(width)));
}

void Context::forward(const Batch& batch, std::span<float> logits) {
  std::lock_guard lock(impl_->mutex);
  impl_->check(batch);
  check_output(logits.size(), batch.output_rows.size(), model_->config().n_vocab);
  impl_->run_logits(batch, logits.data());
}

void Context::forward_best(const Batch& batch, std::span<Candidate> best) {
  std::lock_guard lock(impl_->mutex);
  impl_->check(batch);
  check_output(best.size(), batch.output_rows.size(), kMaxCandidates);
  impl_->run_best(batch, best.data());
}

void Context::read_logits(int64_t row, std::span<float> logits) const {
  std::lock_guard lock(impl_->mutex);
  if (row < 0 || row >= impl_->logit_rows)
    invalid("output row " + std::to_string(row) + ": the latest pass left the logits of " + std::to_string(impl_->logit_rows));
  check_output(logits.size(), 1, model_->config().n_vocab);
  impl_->stages.back()->get_logits(logits.data(), row, 1);
}

void Context::embed(const Batch& batch, std::span<float> hidden) {
  std::lock_guard lock(impl_->mutex);
  impl_->check(batch);
  check_output(hidden.size(), batch.output_rows.size(), model_->config().n_embd);
  impl_->run_hidden(batch, hidden.data());
}

int64_t Context::positions(int64_t slot) const {
  std::lock_guard lock(impl_->mutex);
  return impl_->sequences.positions(slot);
}

void Context::rewind(int64_t slot, int64_t n) {
  std::lock_guard lock(impl_->mutex);
  impl_->sequences.rewind(slot, n);
}

std::shared_ptr<Snapshot> Context::snapshot(int64_t slot) {
  std::lock_guard lock(impl_->mutex);
  return impl_->sequences.snapshot(slot);
}

void Context::restore(int64_t slot, const Snapshot& snapshot) {
  std::lock_guard lock(impl_->mutex);
  impl_->sequences.restore(slot, snapshot);
}

void Context::copy_slot(int64_t from, int64_t to, int64_t n) {
  std::lock_guard lock(impl_->mutex);
  impl_->sequences.copy(from, to, n);
}

std::vector<uint8_t> Context::save(int64_t slot, int64_t n) const {
  std::lock_guard lock(impl_->mutex);
  return impl_->sequences.save(slot, n);
}

void Context::load(int64_t slot, std::span<const uint8_t> state) {
  std::lock_guard lock(impl_->mutex);
  impl_->sequences.load(slot, state);
}

int64_t Context::state_bytes(int64_t n) const {
  std::lock_guard lock(impl_->mutex);
  return impl_->sequences.state_bytes(n);
}

std::vector<uint8_t> Context::convert(std::span<const uint8_t> state, int64_t n, CacheType cache) const {
  const std::vector<StateShape> own = impl_->sequences.shapes();
  std::vector<StateShape> to = own;
  if (cache != CacheType::automatic)
    for (size_t i = 0; i < to.size(); i++) to[i] = state_shape(model_->config().layers[i], elements_of(cache));
  return convert_saved(read_saved(state, own), n, to);
}

void Context::release(int64_t slot) {
  std::lock_guard lock(impl_->mutex);
  impl_->sequences.release(slot);
}

int64_t Context::memory_bytes() const {
  std::lock_guard lock(impl_->mutex);
  int64_t bytes = 0;
  for (const auto& stage : impl_->stages) bytes += stage->bytes();
  return bytes;
}

}  // namespace tq
