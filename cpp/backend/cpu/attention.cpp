// Attention: ropes q and k, stores k and v in the cache, then attends. A unit of work is one row, one key/value head and one range of
// cached positions: the query heads of a group share what they read. Short batches over long contexts cut the positions into ranges and
// merge.
#include <cmath>

#include "backend/cpu/step.h"

namespace tq::cpu {
namespace {

constexpr int64_t kMinRange = 128;      // positions; shorter ranges cost more to merge than they save
constexpr int64_t kUnitsPerThread = 4;  // wanted, so that threads end together

class AttentionStep final : public Step {
 public:
  AttentionStep(const AttentionOp& op, const Angles* angles) : op_(op), angles_(angles) {}

  ScratchBytes scratch(const Kernels&, const Limits& limits) const override {
    // Positions are cut only while rows * n_kv_heads < wanted units; then rows * ranges < 2 * wanted + 1.
    const int64_t heads = (2 * kUnitsPerThread * limits.threads + 1) * op_.shape.n_heads;
    Arena shared;
    take_partials(shared, heads);
    return {shared.used(), 0};
  }

  void reset() override { queue_.reset(); }

  void run(Worker& w) override {
    store(w);
    w.barrier();
    const int64_t ranges = n_ranges(w);
    Arena shared(w.shared);
    const Partials partials = take_partials(shared, ranges > 1 ? w.rows() * op_.shape.n_heads * ranges : 0);
    const int64_t total = w.rows() * op_.shape.n_kv_heads * ranges, chunk = w.chunk(total);
    for (Range todo = queue_.take(total, chunk); todo.first < todo.last; todo = queue_.take(total, chunk))
      for (int64_t unit = todo.first; unit < todo.last; unit++) attend(w, unit, ranges, partials);
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

  void rope(const Worker& w, int64_t r, float* x) const {
    if (!angles_) return;
    const int64_t half = op_.rope.dims / 2;
    (op_.rope.pairs ? w.k.rope_pairs : w.k.rope_neox)(x, data(angles_->cos.get()) + r * half, data(angles_->sin.get()) + r * half,
                                                      op_.rope.dims);
  }

  void put(const Worker& w, const float* x, Buffer* cache, int64_t at) const {
    if (op_.cache_f32)
      std::copy_n(x, op_.shape.head_dim, data(cache) + at);
    else
      w.k.to_f16(x, op_.shape.head_dim, data<uint16_t>(cache) + at);
  }

  // Each item is one head of q, or one head of k and v together.
  void store(const Worker& w) const {
    const int64_t n_heads = op_.shape.n_heads, n_kv = op_.shape.n_kv_heads, dim = op_.shape.head_dim;
    const Range mine = w.share(w.rows() * (n_heads + n_kv));
    for (int64_t i = mine.first; i < mine.last; i++) {
      const int64_t r = i / (n_heads + n_kv), head = i % (n_heads + n_kv);
      if (head < n_heads) {
        rope(w, r, row(op_.q, r) + head * dim);
        continue;
      }
      const int64_t kv_head = head - n_heads, at = cache_offset(w, r, kv_head) + w.batch.positions[r] * dim;
      float* k = row(op_.k, r) + kv_head * dim;
      rope(w, r, k);
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
    const int64_t wanted = kUnitsPerThread * w.threads, units = w.rows() * op_.shape.n_kv_heads;
    if (units >= wanted || w.threads == 1) return 1;
    int64_t longest = 0;
    for (int64_t r = 0; r < w.rows(); r++) longest = std::max(longest, span(w, r).last - span(w, r).first);
    return std::clamp<int64_t>((wanted + units - 1) / units, 1, std::max<int64_t>(longest / kMinRange, 1));
  }

  // Units in order of kv head, row, range: a thread's consecutive units share cache lines of one head.
  void attend(const Worker& w, int64_t unit, int64_t ranges, const Partials& partials) const {
    const int64_t dim = op_.shape.head_dim, range = unit % ranges, r = unit / ranges % w.rows(), kv_head = unit / ranges / w.rows();
    const Range all = span(w, r);
    const int64_t length = all.last - all.first, first = all.first + length * range / ranges,
                  last = all.first + length * (range + 1) / ranges;
    const int64_t offset = cache_offset(w, r, kv_head);
    for (int64_t head = kv_head * group(); head < (kv_head + 1) * group(); head++) {
      const float* q = row(op_.q, r) + head * dim;
      const int64_t at = (r * op_.shape.n_heads + head) * ranges + range;
      float max = -INFINITY, sum = 0, *out = ranges == 1 ? row(op_.out, r) + head * dim : partials.out + at * dim;
      std::fill_n(out, dim, 0.f);
      if (op_.cache_f32)
        w.k.attention_f32(op_.shape, q, data(op_.k_cache) + offset, data(op_.v_cache) + offset, dim, first, last, &max, &sum, out);
      else
        w.k.attention(op_.shape, q, data<uint16_t>(op_.k_cache) + offset, data<uint16_t>(op_.v_cache) + offset, dim, first, last, &max,
                      &sum, out);
      if (ranges > 1)
        partials.max[at] = max, partials.sum[at] = sum;
      else
        for (int64_t i = 0; i < dim; i++) out[i] /= sum;
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
    for (int64_t d = 0; d < dim; d++) out[d] /= sum;
  }

  AttentionOp op_;
  const Angles* angles_;
  WorkQueue queue_;
};

}  // namespace

StepPtr make_attention(const AttentionOp& op, const Angles* angles) { return std::make_unique<AttentionStep>(op, angles); }

}  // namespace tq::cpu
