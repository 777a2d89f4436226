#include <cstring>
#include <mutex>

#include "common/error.h"
#include "model/model.h"
#include "model/stage.h"

namespace tq {
namespace {

constexpr int64_t kMaxCacheElements = int64_t(1) << 44;

// What save() writes before the cache planes.
struct StateHeader {
  char magic[8] = {'T', 'Q', 'S', 'T', 'A', 'T', 'E', '1'};
  int64_t n_layers = 0, n_kv_heads = 0, head_dim = 0, positions = 0, element_bytes = 0;
};

[[noreturn]] void invalid(const std::string& what) { throw Error(Cause::invalid_argument, what); }

std::string of_range(const char* what, int64_t value, int64_t end) {
  return std::string(what) + " " + std::to_string(value) + " is not in 0 .. " + std::to_string(end - 1);
}

}  // namespace

struct Context::Impl {
  Impl(const Model& model, const ContextOptions& options) : c(model.config()), options(options), filled(size_t(options.n_slots), 0) {
    for (const Part& part : model.parts()) stages.push_back(std::make_unique<Stage>(model, part, options));
  }

  void check(const Batch& b) const {
    const size_t rows = b.tokens.size();
    if (rows == 0 || int64_t(rows) > options.n_batch)
      invalid("a batch of " + std::to_string(rows) + " rows; n_batch is " + std::to_string(options.n_batch));
    if (b.positions.size() != rows || b.slots.size() != rows) invalid("tokens, positions and slots differ in length");
    std::vector<int64_t> next = filled;  // the first position that each slot lacks
    std::vector<bool> seen(next.size());
    for (size_t r = 0; r < rows; r++) check_row(b, r, next, seen);
    int64_t previous = -1;
    for (const int32_t r : b.output_rows) {
      if (r <= previous || r >= int64_t(rows))
        invalid("output row " + std::to_string(r) + " is out of order or not below " + std::to_string(rows));
      previous = r;
    }
  }

  void check_row(const Batch& b, size_t r, std::vector<int64_t>& next, std::vector<bool>& seen) const {
    const int64_t token = b.tokens[r], position = b.positions[r], slot = b.slots[r];
    const auto where = [r] { return "row " + std::to_string(r) + ": "; };
    if (token < 0 || token >= c.n_vocab) invalid(where() + of_range("token", token, c.n_vocab));
    if (slot < 0 || slot >= options.n_slots) invalid(where() + of_range("slot", slot, options.n_slots));
    if (position < 0 || position >= options.n_ctx) invalid(where() + of_range("position", position, options.n_ctx));
    int64_t& end = next[size_t(slot)];
    if (position > end || (seen[size_t(slot)] && position != end))
      invalid(where() + "position " + std::to_string(position) + " does not follow the " + std::to_string(end) + " positions of slot " +
              std::to_string(slot));
    seen[size_t(slot)] = true;
    end = position + 1;
  }

  // Runs all stages but the last and hands the residual stream on to it.
  Stage& run_to_last(const Batch& b) {
    const int64_t n = int64_t(b.tokens.size());
    for (size_t i = 0; i + 1 < stages.size(); i++) {
      stages[i]->run(Stage::logits, b);
      stages[i]->get(between, n);
      stages[i + 1]->put(between, n);
    }
    return *stages.back();
  }

  void fill(const Batch& b) {
    for (size_t r = 0; r < b.tokens.size(); r++) filled[size_t(b.slots[r])] = int64_t(b.positions[r]) + 1;
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
    fill(b);
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
    fill(b);
    for (const int32_t r : rows) last.get_hidden(out, r), out += c.n_embd;
  }

  int64_t cache_bytes(int64_t elements) const { return stages[0]->planes().cache_bytes(elements); }

  // Calls body(backend, cache buffer, byte offset, bytes) for every contiguous piece of a slot's first n positions, in the order of a saved
  // state.
  template <class Body>
  void for_pieces(int64_t slot, int64_t n, Body&& body) const {
    const int64_t row = cache_bytes(c.head_dim);
    for (const auto& stage : stages)
      for (int64_t layer = 0; layer < c.n_layers; layer++) {
        if (!stage->has_layer(layer)) continue;
        for (Buffer* cache : {&stage->k_cache(layer), &stage->v_cache(layer)})
          for (int64_t head = 0; head < c.n_kv_heads; head++)
            body(stage->backend(), *cache, (slot * c.n_kv_heads + head) * options.n_ctx * row, n * row);
      }
  }

  int64_t state_bytes(int64_t n) const {
    return int64_t(sizeof(StateHeader)) + cache_bytes(2 * c.n_layers * c.n_kv_heads * n * c.head_dim);
  }

  void check_filled(int64_t slot, int64_t n) const {
    if (slot < 0 || slot >= options.n_slots) invalid(of_range("slot", slot, options.n_slots));
    if (n < 0 || n > filled[size_t(slot)])
      invalid("slot " + std::to_string(slot) + " holds " + std::to_string(filled[size_t(slot)]) + " positions, not " + std::to_string(n));
  }

  const Config& c;
  const ContextOptions options;
  std::vector<std::unique_ptr<Stage>> stages;  // one a device, in the order of layers
  std::vector<float> between;                  // rows on their way from one device to the next
  std::vector<int64_t> filled;                 // positions in the cache, per slot
  int64_t logit_rows = 0;                      // output rows of the latest pass whose logits the last stage holds
  mutable std::mutex mutex;
};

static ContextOptions checked(const Model& model, ContextOptions o) {
  const Config& c = model.config();
  if (o.n_ctx == 0) o.n_ctx = c.n_ctx_train;
  if (o.n_ctx < 1 || o.n_ctx > INT32_MAX) invalid("n_ctx: " + std::to_string(o.n_ctx) + ", expected 0 (the model's) or more");
  if (o.n_slots < 1 || o.n_slots > INT32_MAX) invalid("n_slots: " + std::to_string(o.n_slots));
  if (o.n_batch < 1) invalid("n_batch: " + std::to_string(o.n_batch) + ", expected 1 or more");
  o.n_batch = std::min(o.n_batch, o.n_ctx * o.n_slots);
  const double elements = double(o.n_slots) * c.n_kv_heads * double(o.n_ctx) * c.head_dim;
  if (elements > double(kMaxCacheElements))
    throw Error(Cause::out_of_memory,
                "n_ctx " + std::to_string(o.n_ctx) + " times n_slots " + std::to_string(o.n_slots) + " is too large a cache");
  return o;
}

Context::Context(std::shared_ptr<Model> model, const ContextOptions& options)
    : model_(std::move(model)), options_(checked(*model_, options)), impl_(std::make_unique<Impl>(*model_, options_)) {}
Context::~Context() = default;

static void check_output(size_t room, size_t rows, int64_t width) {
  if (room != rows * size_t(width))
    invalid("room for " + std::to_string(room) + " values, expected " + std::to_string(rows * size_t(width)));
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

std::vector<uint8_t> Context::save(int64_t slot, int64_t n) const {
  std::lock_guard lock(impl_->mutex);
  impl_->check_filled(slot, n);
  const Config& c = model_->config();
  StateHeader header;
  header.n_layers = c.n_layers, header.n_kv_heads = c.n_kv_heads, header.head_dim = c.head_dim, header.positions = n;
  header.element_bytes = impl_->cache_bytes(1);
  std::vector<uint8_t> state(size_t(impl_->state_bytes(n)));
  std::memcpy(state.data(), &header, sizeof header);
  uint8_t* at = state.data() + sizeof header;
  impl_->for_pieces(slot, n, [&](Backend& backend, const Buffer& cache, int64_t offset, int64_t bytes) {
    backend.download(cache, offset, at, bytes);
    at += bytes;
  });
  return state;
}

void Context::load(int64_t slot, std::span<const uint8_t> state) {
  std::lock_guard lock(impl_->mutex);
  if (slot < 0 || slot >= options_.n_slots) invalid(of_range("slot", slot, options_.n_slots));
  const Config& c = model_->config();
  const StateHeader expected;
  StateHeader header;
  if (state.size() < sizeof header) throw Error(Cause::bad_file, "state: " + std::to_string(state.size()) + " bytes are no state");
  std::memcpy(&header, state.data(), sizeof header);
  if (std::memcmp(header.magic, expected.magic, sizeof header.magic) != 0) throw Error(Cause::bad_file, "state: not a saved state");
  if (header.n_layers != c.n_layers || header.n_kv_heads != c.n_kv_heads || header.head_dim != c.head_dim)
    throw Error(Cause::bad_file, "state: it belongs to another model");
  if (header.element_bytes != impl_->cache_bytes(1)) throw Error(Cause::bad_file, "state: its cache has another type");
  if (header.positions < 0 || header.positions > options_.n_ctx)
    throw Error(Cause::bad_file,
                "state: " + std::to_string(header.positions) + " positions do not fit n_ctx " + std::to_string(options_.n_ctx));
  if (int64_t(state.size()) != impl_->state_bytes(header.positions))
    throw Error(Cause::bad_file,
                "state: " + std::to_string(state.size()) + " bytes, expected " + std::to_string(impl_->state_bytes(header.positions)));
  const uint8_t* at = state.data() + sizeof header;
  impl_->for_pieces(slot, header.positions, [&](Backend& backend, Buffer& cache, int64_t offset, int64_t bytes) {
    backend.upload(cache, offset, at, bytes);
    at += bytes;
  });
  impl_->filled[size_t(slot)] = header.positions;
}

void Context::copy_slot(int64_t from, int64_t to, int64_t n) {
  std::lock_guard lock(impl_->mutex);
  impl_->check_filled(from, n);
  if (to < 0 || to >= options_.n_slots) invalid(of_range("slot", to, options_.n_slots));
  if (from == to) return;
  std::vector<uint8_t> piece;
  const int64_t distance = impl_->cache_bytes((to - from) * model_->config().n_kv_heads * options_.n_ctx * model_->config().head_dim);
  impl_->for_pieces(from, n, [&](Backend& backend, Buffer& cache, int64_t offset, int64_t bytes) {
    piece.resize(size_t(bytes));
    backend.download(cache, offset, piece.data(), bytes);
    backend.upload(cache, offset + distance, piece.data(), bytes);
  });
  impl_->filled[size_t(to)] = n;
}

int64_t Context::memory_bytes() const {
  std::lock_guard lock(impl_->mutex);
  int64_t bytes = 0;
  for (const auto& stage : impl_->stages) bytes += stage->bytes();
  return bytes;
}

}  // namespace tq
