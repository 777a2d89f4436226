#include <cstring>
#include <mutex>

#include "common/error.h"
#include "model/graph.h"
#include "model/model.h"

namespace tq {
namespace {

constexpr int64_t kLogitRows = 64;  // logits computed at once; more output rows go through the output layer in turns
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
  Impl(const Model& model, const ContextOptions& options)
      : model(model), c(model.config()), options(options), filled(size_t(options.n_slots), 0) {
    allocate_planes();
    allocate_cache();
    forward = prepare([&](auto& ops) { body(ops), add_output(ops, c, model.weights(), p); });
  }

  Plane plane(int64_t rows, int64_t width) {
    buffers.push_back(model.backend().allocate(rows * width * int64_t(sizeof(float))));
    bytes += buffers.back()->bytes;
    return {buffers.back().get(), width};
  }

  void allocate_planes() {
    const int64_t rows = options.n_batch, q_width = int64_t(c.n_heads) * c.head_dim, kv_width = int64_t(c.n_kv_heads) * c.head_dim;
    p.x = plane(rows, c.n_embd);
    p.q = plane(rows, q_width), p.k = plane(rows, kv_width), p.v = plane(rows, kv_width), p.attn = plane(rows, q_width);
    if (c.n_experts == 0) p.gate = plane(rows, c.n_ff), p.up = plane(rows, c.n_ff);
    if (c.post_norms) p.branch = plane(rows, c.n_embd);
    p.logits = plane(std::min(rows, kLogitRows), c.n_vocab);
  }

  void allocate_cache() {
    p.capacity = options.n_ctx, p.cache_f32 = use_f32_cache(model, options.cache);
    const int64_t elements = options.n_slots * c.n_kv_heads * p.capacity * c.head_dim;
    for (int64_t layer = 0; layer < c.n_layers; layer++) {
      p.k_cache.push_back(model.backend().allocate(p.cache_bytes(elements)));
      p.v_cache.push_back(model.backend().allocate(p.cache_bytes(elements)));
      bytes += p.k_cache.back()->bytes + p.v_cache.back()->bytes;
    }
  }

  void body(std::vector<Op>& ops) const {
    add_embedding(ops, c, model.weights(), p);
    for (int64_t i = 0; i < c.n_layers; i++) add_layer(ops, c, model.weights(), p, i);
  }

  template <class Build>
  std::unique_ptr<Program> prepare(Build&& build) {
    std::vector<Op> ops;
    build(ops);
    return model.backend().prepare(std::move(ops), options.n_batch);
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

  void run(Program& program, const Batch& b) {
    model.backend().run(program, b);
    for (size_t r = 0; r < b.tokens.size(); r++) filled[size_t(b.slots[r])] = int64_t(b.positions[r]) + 1;
  }

  // The first rows' logits come with the pass itself, further ones from the output layer alone.
  void run_logits(Batch b, float* out) {
    const auto all = b.output_rows;
    for (size_t done = 0; done == 0 || done < all.size(); done += size_t(kLogitRows)) {
      b.output_rows = all.subspan(done, std::min(all.size() - done, size_t(kLogitRows)));
      if (done > 0 && !output) output = prepare([&](auto& ops) { add_output(ops, c, model.weights(), p); });
      run(done == 0 ? *forward : *output, b);
      const int64_t n = int64_t(b.output_rows.size()) * c.n_vocab;
      if (n > 0) model.backend().download(*p.logits.buffer, 0, out, n * int64_t(sizeof(float)));
      out += n;
    }
  }

  void run_hidden(const Batch& b, float* out) {
    if (!hidden) {
      p.hidden = plane(options.n_batch, c.n_embd);
      hidden = prepare([&](auto& ops) { body(ops), add_hidden(ops, c, model.weights(), p); });
    }
    Batch without_logits = b;
    without_logits.output_rows = {};
    run(*hidden, without_logits);
    const int64_t row_bytes = c.n_embd * int64_t(sizeof(float));
    for (const int32_t r : b.output_rows) model.backend().download(*p.hidden.buffer, r * row_bytes, out, row_bytes), out += c.n_embd;
  }

  // Calls body(cache buffer, byte offset, bytes) for every contiguous piece of a slot's first n positions, in the order of a saved state.
  template <class Body>
  void for_pieces(int64_t slot, int64_t n, Body&& body) const {
    const int64_t row = p.cache_bytes(c.head_dim);
    for (int64_t layer = 0; layer < c.n_layers; layer++)
      for (const BufferPtr& cache : {p.k_cache[size_t(layer)], p.v_cache[size_t(layer)]})
        for (int64_t head = 0; head < c.n_kv_heads; head++) body(*cache, (slot * c.n_kv_heads + head) * p.capacity * row, n * row);
  }

  int64_t state_bytes(int64_t n) const {
    return int64_t(sizeof(StateHeader)) + p.cache_bytes(2 * c.n_layers * c.n_kv_heads * n * c.head_dim);
  }

  void check_filled(int64_t slot, int64_t n) const {
    if (slot < 0 || slot >= options.n_slots) invalid(of_range("slot", slot, options.n_slots));
    if (n < 0 || n > filled[size_t(slot)])
      invalid("slot " + std::to_string(slot) + " holds " + std::to_string(filled[size_t(slot)]) + " positions, not " + std::to_string(n));
  }

  const Model& model;
  const Config& c;
  const ContextOptions options;
  Planes p;
  std::vector<BufferPtr> buffers;
  std::vector<int64_t> filled;                       // positions in the cache, per slot
  std::unique_ptr<Program> forward, output, hidden;  // the pass with logits; the output layer alone; the pass with hidden states
  int64_t bytes = 0;
  mutable std::mutex mutex;
};

static ContextOptions checked(const Model& model, ContextOptions o) {
  const Config& c = model.config();
  if (o.n_ctx == 0) o.n_ctx = c.n_ctx_train;
  if (o.n_ctx < 1 || o.n_ctx > INT32_MAX) invalid("n_ctx: " + std::to_string(o.n_ctx));
  if (o.n_slots < 1 || o.n_slots > INT32_MAX) invalid("n_slots: " + std::to_string(o.n_slots));
  if (o.n_batch < 1) invalid("n_batch: " + std::to_string(o.n_batch));
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

static void check_output(std::span<float> out, size_t rows, int64_t width) {
  if (out.size() != rows * size_t(width))
    invalid("room for " + std::to_string(out.size()) + " floats, expected " + std::to_string(rows * size_t(width)));
}

void Context::forward(const Batch& batch, std::span<float> logits) {
  std::lock_guard lock(impl_->mutex);
  impl_->check(batch);
  check_output(logits, batch.output_rows.size(), model_->config().n_vocab);
  impl_->run_logits(batch, logits.data());
}

void Context::embed(const Batch& batch, std::span<float> hidden) {
  std::lock_guard lock(impl_->mutex);
  impl_->check(batch);
  check_output(hidden, batch.output_rows.size(), model_->config().n_embd);
  impl_->run_hidden(batch, hidden.data());
}

std::vector<uint8_t> Context::save(int64_t slot, int64_t n) const {
  std::lock_guard lock(impl_->mutex);
  impl_->check_filled(slot, n);
  const Config& c = model_->config();
  StateHeader header;
  header.n_layers = c.n_layers, header.n_kv_heads = c.n_kv_heads, header.head_dim = c.head_dim, header.positions = n;
  header.element_bytes = impl_->p.cache_bytes(1);
  std::vector<uint8_t> state(size_t(impl_->state_bytes(n)));
  std::memcpy(state.data(), &header, sizeof header);
  uint8_t* at = state.data() + sizeof header;
  impl_->for_pieces(slot, n, [&](const Buffer& cache, int64_t offset, int64_t bytes) {
    model_->backend().download(cache, offset, at, bytes);
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
  if (header.element_bytes != impl_->p.cache_bytes(1)) throw Error(Cause::bad_file, "state: its cache has another type");
  if (header.positions < 0 || header.positions > options_.n_ctx)
    throw Error(Cause::bad_file,
                "state: " + std::to_string(header.positions) + " positions do not fit n_ctx " + std::to_string(options_.n_ctx));
  if (int64_t(state.size()) != impl_->state_bytes(header.positions))
    throw Error(Cause::bad_file,
                "state: " + std::to_string(state.size()) + " bytes, expected " + std::to_string(impl_->state_bytes(header.positions)));
  const uint8_t* at = state.data() + sizeof header;
  impl_->for_pieces(slot, header.positions, [&](Buffer& cache, int64_t offset, int64_t bytes) {
    model_->backend().upload(cache, offset, at, bytes);
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
  const int64_t distance = impl_->p.cache_bytes((to - from) * model_->config().n_kv_heads * options_.n_ctx * model_->config().head_dim);
  impl_->for_pieces(from, n, [&](Buffer& cache, int64_t offset, int64_t bytes) {
    piece.resize(size_t(bytes));
    model_->backend().download(cache, offset, piece.data(), bytes);
    model_->backend().upload(cache, offset + distance, piece.data(), bytes);
  });
  impl_->filled[size_t(to)] = n;
}

int64_t Context::memory_bytes() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->bytes;
}

}  // namespace tq
