// Attention: ropes q and k, stores k and v in the cache, then attends. A unit of work is one key/value head, some rows and one range of
// cached positions: all query heads and rows of a unit share what they read, converted to float32 once. Short batches over long contexts
// cut the positions into ranges and merge.
#include "backend/cpu/attention.h"

#include <cmath>

namespace tq::cpu {
namespace {

constexpr int64_t kMinRange = 128;  // positions; shorter ranges cost more to merge than they save
constexpr int64_t kBlock = 64;      // positions converted at once: 64 KiB of keys and values where heads have 128 channels
constexpr int64_t kMinShared = 8;   // queries; fewer read float16 as it is, once for all query heads of a row

class AttentionStep final : public Step {
 public:
  AttentionStep(const AttentionOp& op, const Angles* angles) : op_(op), angles_(angles) {}

  ScratchBytes scratch(const Kernels&, const Limits& limits) const override {
    // Positions are cut only while rows * n_kv_heads < wanted units; then rows * ranges < 2 * wanted + 1.
    const int64_t heads = (2 * kUnitsPerThread * limits.parts + 1) * op_.shape.n_heads;
    Arena shared, own;
    take_partials(shared, heads);
    take_own(own);
    return {shared.used(), own.used()};
  }

  void reset() override { queue_.reset(); }

  void run(Worker& w) override {
    store(w);
    w.barrier();
    const int64_t ranges = n_ranges(w);
    Arena shared(w.shared);
    const Partials partials = take_partials(shared, ranges > 1 ? w.rows() * op_.shape.n_heads * ranges : 0);
    const int64_t per_unit = unit_rows(w, op_.shape), blocks = (w.rows() + per_unit - 1) / per_unit,
                  total = blocks * op_.shape.n_kv_heads * ranges;
    for (Range todo = queue_.take(total, 1); todo.first < todo.last; todo = queue_.take(total, 1)) {
      const int64_t unit = todo.first, block = unit / ranges % blocks;
      const Range rows{block * per_unit, std::min((block + 1) * per_unit, w.rows())};
      for_slots(w, rows, [&](Range part) { attend(w, unit / ranges / blocks, part, unit % ranges, ranges, partials); });
    }
    if (ranges == 1) return;
    w.barrier();
    const Range heads = w.share(w.rows() * op_.shape.n_heads);
    for (int64_t i = heads.first; i < heads.last; i++) merge(i, ranges, partials);
  }

 private:
  // Softmax states of (row, head, range) before normalization.
  struct Partials {
    float *max, *sum, *out;
  };
  Partials take_partials(Arena& arena, int64_t n) const {
    float* max = arena.take<float>(n);
    float* sum = arena.take<float>(n);
    return {max, sum, arena.take<float>(n * op_.shape.head_dim)};
  }

  int64_t group() const { return op_.shape.n_heads / op_.shape.n_kv_heads; }
  int64_t cache_offset(const Worker& w, int64_t r, int64_t kv_head) const {
    return (int64_t(w.batch.slots[r]) * op_.shape.n_kv_heads + kv_head) * op_.capacity * op_.shape.head_dim;
  }

  void put(const Worker& w, const float* x, Buffer* cache, int64_t at) const {
    if (op_.cache_f32)
      std::copy_n(x, op_.shape.head_dim, data(cache) + at);
    else
      w.k.to_f16(x, op_.shape.head_dim, data<uint16_t>(cache) + at);
  }

  // Each item is one head of q, or one head of k and v together.
  void store(const Worker& w) const {
    const int64_t n_heads = op_.shape.n_heads, n_kv = op_.k.buffer ? op_.shape.n_kv_heads : 0, dim = op_.shape.head_dim;
    const Range mine = w.share(w.rows() * (n_heads + n_kv));
    for (int64_t i = mine.first; i < mine.last; i++) {
      const int64_t r = i / (n_heads + n_kv), head = i % (n_heads + n_kv);
      if (head < n_heads) {
        turn_query(w, op_, angles_, r, row(op_.q, r) + head * dim);
        continue;
      }
      const int64_t kv_head = head - n_heads, at = cache_offset(w, r, kv_head) + w.batch.positions[r] * dim;
      float* k = row(op_.k, r) + kv_head * dim;
      turn(w, op_.rope, angles_, r, k);
      put(w, k, op_.k_cache, at);
      put(w, row(op_.v, r) + kv_head * dim, op_.v_cache, at);
    }
  }

  // Positions that row r attends to.
  Range span(const Worker& w, int64_t r) const {
    const int64_t end = int64_t(w.batch.positions[r]) + 1;
    return {op_.window > 0 ? std::max<int64_t>(end - op_.window, 0) : 0, end};
  }

  int64_t n_ranges(const Worker& w) const {
    const int64_t wanted = kUnitsPerThread * w.parts, units = w.rows() * op_.shape.n_kv_heads;
    if (units >= wanted || w.parts == 1) return 1;
    int64_t longest = 0;
    for (int64_t r = 0; r < w.rows(); r++) longest = std::max(longest, span(w, r).last - span(w, r).first);
    return std::clamp<int64_t>((wanted + units - 1) / units, 1, std::max<int64_t>(longest / kMinRange, 1));
  }

  struct Own {
    float *k, *v;                      // (kBlock, head_dim)
    kernels::AttentionQuery* queries;  // (rows, group)
    Range* spans;                      // (rows) what they read, ascending
  };
  Own take_own(Arena& arena) const {
    float* k = arena.take<float>(kBlock * op_.shape.head_dim);
    float* v = arena.take<float>(kBlock * op_.shape.head_dim);
    kernels::AttentionQuery* queries = arena.take<kernels::AttentionQuery>(kMaxUnitRows * group());
    return {k, v, queries, arena.take<Range>(kMaxUnitRows)};
  }

  // Rows of one slot.
  void attend(const Worker& w, int64_t kv_head, Range rows, int64_t range, int64_t ranges, const Partials& partials) const {
    const int64_t dim = op_.shape.head_dim;
    Arena arena(w.scratch);
    const Own own = take_own(arena);
    int64_t n = 0;
    for (int64_t r = rows.first; r < rows.last; r++) {
      const Range all = span(w, r);
      const int64_t length = all.last - all.first;
      own.spans[r - rows.first] = {all.first + length * range / ranges, all.first + length * (range + 1) / ranges};
      for (int64_t head = kv_head * group(); head < (kv_head + 1) * group(); head++) {
        float* out = ranges == 1 ? row(op_.out, r) + head * dim : partials.out + partial(r, head, range, ranges) * dim;
        std::fill_n(out, dim, 0.f);
        own.queries[n++] = {.q = row(op_.q, r) + head * dim, .out = out};
      }
    }
    read_cache(w, own, rows.last - rows.first, cache_offset(w, rows.first, kv_head));
    for (int64_t i = 0; i < n; i++) {
      const kernels::AttentionQuery& query = own.queries[i];
      const int64_t at = partial(rows.first + i / group(), kv_head * group() + i % group(), range, ranges);
      if (ranges > 1) {
        partials.max[at] = query.max, partials.sum[at] = query.sum;
        continue;
      }
      const float sum = with_sink(op_, kv_head * group() + i % group(), query.max, query.sum);
      for (int64_t d = 0; d < dim; d++) query.out[d] /= sum;
    }
  }

  int64_t partial(int64_t r, int64_t head, int64_t range, int64_t ranges) const { return (r * op_.shape.n_heads + head) * ranges + range; }

  void read_cache(const Worker& w, const Own& own, int64_t rows, int64_t offset) const {
    const int64_t dim = op_.shape.head_dim, first = own.spans[0].first, last = own.spans[rows - 1].last;
    const bool convert = !op_.cache_f32 && rows * group() >= kMinShared;
    for (int64_t at = first; at < last; at += kBlock) {
      const Range block{at, std::min(at + kBlock, last)};
      const int64_t begin = offset + at * dim;
      if (op_.cache_f32) {
        read_block(own, rows, block, w.k.attention_f32, data(op_.k_cache) + begin, data(op_.v_cache) + begin);
        continue;
      }
      const uint16_t *k = data<uint16_t>(op_.k_cache) + begin, *v = data<uint16_t>(op_.v_cache) + begin;
      if (!convert) {
        read_block(own, rows, block, w.k.attention, k, v);
        continue;
      }
      w.k.to_f32(k, (block.last - at) * dim, own.k);
      w.k.to_f32(v, (block.last - at) * dim, own.v);
      read_block(own, rows, block, w.k.attention_f32, own.k, own.v);
    }
  }

  // k and v start at position block.first.
  template <class Kernel, class Element>
  void read_block(const Own& own, int64_t rows, Range block, Kernel kernel, const Element* k, const Element* v) const {
    for (int64_t r = 0; r < rows; r++) {
      const int64_t first = std::max(own.spans[r].first, block.first), last = std::min(own.spans[r].last, block.last);
      if (first < last)
        kernel(op_.shape, own.queries + r * group(), group(), k, v, op_.shape.head_dim, first - block.first, last - block.first);
    }
  }

  void merge(int64_t row_head, int64_t ranges, const Partials& p) const {
    const int64_t dim = op_.shape.head_dim, at = row_head * ranges;
    float* out = row(op_.out, row_head / op_.shape.n_heads) + row_head % op_.shape.n_heads * dim;
    const float max = *std::max_element(p.max + at, p.max + at + ranges);
    float sum = 0;
    std::fill_n(out, dim, 0.f);
    for (int64_t i = at; i < at + ranges; i++) {
      const float weight = std::exp(p.max[i] - max);
      sum += weight * p.sum[i];
      for (int64_t d = 0; d < dim; d++) out[d] += weight * p.out[i * dim + d];
    }
    sum = with_sink(op_, row_head % op_.shape.n_heads, max, sum);
    for (int64_t d = 0; d < dim; d++) out[d] /= sum;
  }

  AttentionOp op_;
  const Angles* angles_;
  WorkQueue queue_;
};

}  // namespace

StepPtr make_attention(const AttentionOp& op, const Angles* angles) { return std::make_unique<AttentionStep>(op, angles); }

}  // namespace tq::cpu
