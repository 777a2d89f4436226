// Attention over a cache in codes (format/cache.h). Queries, keys and values are rotated, which leaves scores as they are and is undone in
// the result; keys may be centred and balanced before. A row reads its own position from the planes, treated alike but exact, and all
// before it from the codes, also those of its own batch: so what it gives does not depend on how a text was cut into batches. For the same
// reason positions are read in spans of fixed length, each from a fresh softmax, whose states are merged in order, whether one thread reads
// them one after the other or several at once.
#include <cmath>

#include "backend/cpu/attention.h"
#include "format/cache.h"

namespace tq::cpu {
namespace {

using kernels::CodedCache;
using kernels::CodedQuery;

constexpr int64_t kSpanTiles = 8;
constexpr int64_t kSpan = kSpanTiles * tqn::cache::kTile;  // positions

// The state of a softmax: of positions read so far.
struct Softmax {
  float max = -INFINITY, sum = 0;
  float* out = nullptr;  // (head_dim)
};

void merge(Softmax& total, float max, float sum, const float* out, int64_t dim) {
  const float most = std::max(total.max, max);
  const float a = total.sum > 0 ? std::exp(total.max - most) : 0, b = std::exp(max - most);
  total.max = most, total.sum = a * total.sum + b * sum;
  for (int64_t d = 0; d < dim; d++) total.out[d] = a * total.out[d] + b * out[d];
}

class CodedAttentionStep final : public Step {
 public:
  CodedAttentionStep(const AttentionOp& op, const Angles* angles, std::shared_ptr<const RotationPlan> plan)
      : op_(op),
        angles_(angles),
        plan_(std::move(plan)),
        dim_(op.shape.head_dim),
        padded_(tqn::cache::padded(dim_)),
        group_(op.shape.n_heads / op.shape.n_kv_heads) {}

  ScratchBytes scratch(const Kernels&, const Limits& limits) const override {
    Arena shared, own;
    take_prepared(shared, limits.rows);
    take_partials(shared, kUnitsPerThread * limits.parts * group_ * n_spans(op_.capacity));
    take_own(own);
    return {shared.used(), own.used()};
  }

  void reset() override { queue_.reset(); }

  void run(Worker& w) override {
    Arena shared(w.shared);
    const Prepared prepared = take_prepared(shared, w.rows());
    store(w, prepared);
    w.barrier();
    const int64_t n_kv = op_.shape.n_kv_heads, rows = unit_rows(w, op_.shape), blocks = (w.rows() + rows - 1) / rows;
    const bool spread = w.parts > 1 && w.rows() * n_kv < kUnitsPerThread * w.parts;
    const int64_t spans = spread ? n_spans(last_position(w)) : 1, total = blocks * n_kv * spans;
    const Partials partials = take_partials(shared, spread ? w.rows() * op_.shape.n_heads * spans : 0);
    // Neighbouring spans to one thread: memory in order.
    const int64_t at_once = spread ? std::max<int64_t>(total / (kUnitsPerThread * w.parts), 1) : 1;
    for (Range todo = queue_.take(total, at_once); todo.first < todo.last; todo = queue_.take(total, at_once))
      for (int64_t unit = todo.first; unit < todo.last; unit++) attend(w, prepared, unit, {blocks, rows, spans, spread}, partials);
    if (!spread) return;
    w.barrier();
    const Range heads = w.share(w.rows() * op_.shape.n_heads);
    for (int64_t i = heads.first; i < heads.last; i++) join(w, i, spans, partials);
  }

 private:
  // The queries of all rows, (rows, n_heads), as integers.
  struct Prepared {
    int8_t* codes;  // (rows * n_heads, padded)
    float* scale;
    int32_t* total;
  };
  Prepared take_prepared(Arena& arena, int64_t rows) const {
    const int64_t n = rows * op_.shape.n_heads;
    int8_t* codes = arena.take<int8_t>(n * padded_);
    float* scale = arena.take<float>(n);
    return {codes, scale, arena.take<int32_t>(n)};
  }
  // States of (row, head, span).
  struct Partials {
    float *max, *sum, *out;
  };
  Partials take_partials(Arena& arena, int64_t n) const {
    float* max = arena.take<float>(n);
    float* sum = arena.take<float>(n);
    return {max, sum, arena.take<float>(n * padded_)};
  }
  struct Own {
    CodedQuery* queries;
    Softmax* totals;
    float *span_out, *total_out;  // (queries, padded)
  };
  Own take_own(Arena& arena) const {
    const int64_t n = kMaxUnitRows * group_;
    CodedQuery* queries = arena.take<CodedQuery>(n);
    Softmax* totals = arena.take<Softmax>(n);
    float* span_out = arena.take<float>(n * padded_);
    return {queries, totals, span_out, arena.take<float>(n * padded_)};
  }

  static int64_t n_spans(int64_t positions) { return std::max<int64_t>((positions + kSpan - 1) / kSpan, 1); }
  static int64_t last_position(const Worker& w) {
    int64_t last = 0;
    for (int64_t r = 0; r < w.rows(); r++) last = std::max<int64_t>(last, w.batch.positions[r]);
    return last;
  }

  uint8_t* tiles_of(const Buffer* cache, int bits, int64_t slot, int64_t kv_head) const {
    const int64_t bytes = tqn::cache::tiles(op_.capacity) * tqn::cache::tile_bytes(bits, dim_);
    return data<uint8_t>(cache) + (slot * op_.shape.n_kv_heads + kv_head) * bytes;
  }

  KeyStatistics statistics(int64_t kv_head) const {
    const auto of_head = [&](const Buffer* all) { return all ? data(all) + kv_head * dim_ : nullptr; };
    return {of_head(op_.key_mean), of_head(op_.key_balance)};
  }

  // Each item is one head of q, or one head of k and v together.
  void store(const Worker& w, const Prepared& prepared) const {
    const int64_t n_heads = op_.shape.n_heads, n = n_heads + op_.shape.n_kv_heads;
    const Range mine = w.share(w.rows() * n);
    for (int64_t i = mine.first; i < mine.last; i++) {
      if (i % n < n_heads)
        prepare(w, prepared, i / n, i % n);
      else
        encode(w, i / n, i % n - n_heads);
    }
  }

  void prepare(const Worker& w, const Prepared& prepared, int64_t r, int64_t head) const {
    float* q = row(op_.q, r) + head * dim_;
    turn_query(w, op_, angles_, r, q);
    balance_query(statistics(head / group_), int(dim_), q);
    w.k.rotate(*plan_, q, q);
    const int64_t at = r * op_.shape.n_heads + head;
    int8_t* codes = prepared.codes + at * padded_;
    prepared.scale[at] = w.k.quantize(q, dim_, codes);
    std::fill(codes + dim_, codes + padded_, int8_t(0));
    int32_t total = 0;
    for (int64_t d = 0; d < dim_; d++) total += codes[d];
    prepared.total[at] = total;
  }

  void encode(const Worker& w, int64_t r, int64_t kv_head) const {
    float *k = row(op_.k, r) + kv_head * dim_, *v = row(op_.v, r) + kv_head * dim_;
    turn(w, op_.rope, angles_, r, k);
    balance_key(statistics(kv_head), int(dim_), k);
    w.k.rotate(*plan_, k, k), w.k.rotate(*plan_, v, v);
    const int64_t tile = w.batch.positions[r] / tqn::cache::kTile, slot = w.batch.slots[r];
    const int lane = int(w.batch.positions[r] % tqn::cache::kTile);
    const auto put = [&](CacheSide side, const Buffer* cache, int bits, const float* x) {
      encode_cached(side, bits, x, int(dim_), lane, tiles_of(cache, bits, slot, kv_head) + tile * tqn::cache::tile_bytes(bits, dim_));
    };
    put(CacheSide::key, op_.k_cache, op_.k_bits, k), put(CacheSide::value, op_.v_cache, op_.v_bits, v);
  }

  CodedCache cache_of(const Worker& w, Range rows, int64_t kv_head) const {
    const int64_t slot = w.batch.slots[rows.first];
    return {op_.k_bits, op_.v_bits, tiles_of(op_.k_cache, op_.k_bits, slot, kv_head), tiles_of(op_.v_cache, op_.v_bits, slot, kv_head)};
  }

  // Queries of rows of one slot, whose spans all begin anew.
  int64_t begin(const Worker& w, const Prepared& prepared, int64_t kv_head, Range rows, const Own& own) const {
    int64_t n = 0;
    for (int64_t r = rows.first; r < rows.last; r++)
      for (int64_t head = kv_head * group_; head < (kv_head + 1) * group_; head++, n++) {
        const int64_t at = r * op_.shape.n_heads + head;
        own.queries[n] = {prepared.codes + at * padded_, prepared.scale[at], prepared.total[at], w.batch.positions[r], -INFINITY, 0,
                          own.span_out + n * padded_};
      }
    return n;
  }

  void read_span(const Worker& w, const CodedCache& cache, int64_t span, CodedQuery* queries, int64_t n) const {
    for (CodedQuery* q = queries; q < queries + n; q++) q->max = -INFINITY, q->sum = 0, std::fill_n(q->out, padded_, 0.f);
    const int64_t last = tqn::cache::tiles(queries[n - 1].last);
    w.k.attention_coded(op_.shape, cache, span * kSpanTiles, std::min((span + 1) * kSpanTiles, last), queries, n);
  }

  struct Cut {
    int64_t blocks, rows, spans;  // of rows, rows of a block, spans of a block (1 where a unit reads all of them)
    bool spread;
  };
  void attend(const Worker& w, const Prepared& prepared, int64_t unit, const Cut& cut, const Partials& partials) const {
    const int64_t kv_head = unit / cut.spans / cut.blocks, first = unit / cut.spans % cut.blocks * cut.rows;
    for_slots(w, {first, std::min(first + cut.rows, w.rows())}, [&](Range part) {
      if (cut.spread)
        attend_span(w, prepared, kv_head, part, unit % cut.spans, cut.spans, partials);
      else
        attend_all(w, prepared, kv_head, part);
    });
  }

  void attend_all(const Worker& w, const Prepared& prepared, int64_t kv_head, Range rows) const {
    Arena arena(w.scratch);
    const Own own = take_own(arena);
    const int64_t n = begin(w, prepared, kv_head, rows, own);
    for (int64_t i = 0; i < n; i++) own.totals[i] = {.out = own.total_out + i * padded_}, std::fill_n(own.totals[i].out, padded_, 0.f);
    const CodedCache cache = cache_of(w, rows, kv_head);
    for (int64_t span = 0; span * kSpan < own.queries[n - 1].last; span++) {
      read_span(w, cache, span, own.queries, n);
      for (int64_t i = 0; i < n; i++)
        if (own.queries[i].last > span * kSpan) merge(own.totals[i], own.queries[i].max, own.queries[i].sum, own.queries[i].out, dim_);
    }
    for (int64_t i = 0; i < n; i++) finish(w, rows.first + i / group_, kv_head * group_ + i % group_, own.totals[i]);
  }

  int64_t partial(int64_t r, int64_t head, int64_t span, int64_t spans) const { return (r * op_.shape.n_heads + head) * spans + span; }

  void attend_span(const Worker& w, const Prepared& prepared, int64_t kv_head, Range rows, int64_t span, int64_t spans,
                   const Partials& partials) const {
    Arena arena(w.scratch);
    const Own own = take_own(arena);
    const int64_t n = begin(w, prepared, kv_head, rows, own);
    const auto at = [&](int64_t i) { return partial(rows.first + i / group_, kv_head * group_ + i % group_, span, spans); };
    for (int64_t i = 0; i < n; i++) own.queries[i].out = partials.out + at(i) * padded_;
    if (own.queries[n - 1].last > span * kSpan) read_span(w, cache_of(w, rows, kv_head), span, own.queries, n);
    for (int64_t i = 0; i < n; i++) partials.max[at(i)] = own.queries[i].max, partials.sum[at(i)] = own.queries[i].sum;
  }

  void join(const Worker& w, int64_t row_head, int64_t spans, const Partials& p) const {
    const int64_t r = row_head / op_.shape.n_heads, head = row_head % op_.shape.n_heads;
    Arena arena(w.scratch);
    Softmax total{.out = arena.take<float>(padded_)};
    std::fill_n(total.out, padded_, 0.f);
    for (int64_t span = 0; span < spans && span * kSpan < w.batch.positions[r]; span++) {
      const int64_t at = partial(r, head, span, spans);
      merge(total, p.max[at], p.sum[at], p.out + at * padded_, dim_);
    }
    finish(w, r, head, total);
  }

  // The row's own position, then the result.
  void finish(const Worker& w, int64_t r, int64_t head, Softmax& total) const {
    const int64_t kv_head = head / group_;
    const float *q = row(op_.q, r) + head * dim_, *k = row(op_.k, r) + kv_head * dim_;
    float score = 0;
    for (int64_t d = 0; d < dim_; d++) score += q[d] * k[d];
    score *= op_.shape.scale;
    if (op_.shape.soft_cap > 0) score = op_.shape.soft_cap * std::tanh(score / op_.shape.soft_cap);
    merge(total, score, 1, row(op_.v, r) + kv_head * dim_, dim_);
    float* out = row(op_.out, r) + head * dim_;
    const float sum = with_sink(op_, head, total.max, total.sum);
    for (int64_t d = 0; d < dim_; d++) out[d] = total.out[d] / sum;
    w.k.rotate_inverse(*plan_, out, out);
  }

  AttentionOp op_;
  const Angles* angles_;
  std::shared_ptr<const RotationPlan> plan_;
  int64_t dim_, padded_, group_;
  WorkQueue queue_;
};

}  // namespace

StepPtr make_coded_attention(const AttentionOp& op, const Angles* angles, std::shared_ptr<const RotationPlan> plan) {
  return std::make_unique<CodedAttentionStep>(op, angles, std::move(plan));
}

}  // namespace tq::cpu
