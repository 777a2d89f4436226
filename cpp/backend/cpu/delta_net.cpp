// The gated delta net. A pass of few rows is cut by key heads: a thread does all that its heads ask for, without a barrier. Of longer
// passes convolution, norms and gates are cut by rows and heads, the recurrence by blocks of a state's columns, which take all rows in
// order.
#include <cmath>
#include <optional>
#include <vector>

#include "backend/cpu/attention.h"
#include "backend/cpu/step.h"

namespace tq::cpu {
namespace {

constexpr int64_t kFewRows = 4;
constexpr int64_t kColumns = DeltaNetShape::kBlockColumns;

class DeltaNetStep final : public Step {
 public:
  DeltaNetStep(const DeltaNetOp& op, const NormOp* norm)
      : op_(op), s_(op.shape), zeros_(size_t(std::max(op.shape.key_dim, op.shape.value_dim))) {
    if (norm) norm_ = *norm;
  }
  ScratchBytes scratch(const Kernels&, const Limits&) const override { return {}; }
  void reset() override { queue_.reset(); }

  void run(Worker& w) override {
    if (w.rows() <= kFewRows)
      by_key_heads(w);
    else
      by_rows(w);
  }

 private:
  // Heads of the convolution: queries, keys, values.
  int64_t n_heads() const { return 2 * s_.n_key_heads + s_.n_value_heads; }
  bool is_value(int64_t head) const { return head >= 2 * s_.n_key_heads; }
  int64_t width_of(int64_t head) const { return is_value(head) ? s_.value_dim : s_.key_dim; }
  int64_t channel_of(int64_t head) const {
    return is_value(head) ? 2 * s_.key_width() + (head - 2 * s_.n_key_heads) * s_.value_dim : head * s_.key_dim;
  }
  float* state(const Worker& w, int64_t r) const { return data(op_.state) + w.batch.slots[size_t(r)] * s_.state_floats(); }

  void by_key_heads(Worker& w) {
    const Range all{0, w.rows()};
    for (Range todo = take_heads(w); todo.first < todo.last; todo = take_heads(w))
      for (int64_t key = todo.first; key < todo.last; key++) {
        prepare(w, all, key), prepare(w, all, s_.n_key_heads + key);
        for (int value = 0; value < s_.n_value_heads; value++) {
          if (s_.key_head(value) != key) continue;
          prepare(w, all, 2 * s_.n_key_heads + value);
          for (int64_t r = 0; r < all.last; r++) open_gate(r, value);
          for (int64_t column = 0; column < s_.value_dim; column += kColumns) recur(w, value, column);
          for (int64_t r = 0; norm_ && r < all.last; r++) norm_result(w, r, value);
        }
      }
  }
  Range take_heads(const Worker& w) { return queue_.take_falling(s_.n_key_heads, w.threads); }

  void prepare(const Worker& w, Range rows, int64_t head) const {
    for_slots(w, rows, [&](Range run) {
      for (int64_t r = run.first; r < run.last; r++) convolve(w, sources(w, r), r, head);
      remember(w, run, head);
    });
  }

  void by_rows(Worker& w) {
    const Range convolved = w.share(w.rows() * n_heads());
    Sources from{};
    for (int64_t i = convolved.first; i < convolved.last; i++) {
      const int64_t r = i / n_heads(), head = i % n_heads();
      if (i == convolved.first || head == 0) from = sources(w, r);
      convolve(w, from, r, head);
    }
    const Range gates = w.share(w.rows() * s_.n_value_heads);
    for (int64_t i = gates.first; i < gates.last; i++) open_gate(i / s_.n_value_heads, i % s_.n_value_heads);
    w.barrier();
    const Range heads = w.share(n_heads());
    for (int64_t head = heads.first; head < heads.last; head++) for_slots(w, {0, w.rows()}, [&](Range run) { remember(w, run, head); });
    const int64_t per_head = (s_.value_dim + kColumns - 1) / kColumns, total = s_.n_value_heads * per_head;
    const int64_t chunk = w.chunk(total);
    for (Range todo = queue_.take(total, chunk); todo.first < todo.last; todo = queue_.take(total, chunk))
      for (int64_t i = todo.first; i < todo.last; i++) recur(w, int(i / per_head), i % per_head * kColumns);
    if (!norm_) return;
    w.barrier();
    const Range results = w.share(w.rows() * s_.n_value_heads);
    for (int64_t i = results.first; i < results.last; i++) norm_result(w, i / s_.n_value_heads, i % s_.n_value_heads);
  }

  // Where a row's convolution finds the inputs of its position and of those before it, for the first channel.
  struct Sources {
    const float* taps[kMaxTaps];  // null: before the sequence's beginning
  };
  Sources sources(const Worker& w, int64_t r) const {
    const int64_t kept = s_.taps - 1, position = w.batch.positions[size_t(r)];
    Sources from{};
    int64_t before = r;  // the latest row that is known to be the slot's
    for (int64_t back = 0; back <= std::min(kept, position); back++) {
      if (back > 0 && before >= 0)
        for (before--; before >= 0 && w.batch.slots[size_t(before)] != w.batch.slots[size_t(r)];) before--;
      from.taps[kept - back] = before >= 0 ? row(op_.qkv, before) : state(w, r) + (position - back) % kept * s_.conv_width();
    }
    return from;
  }

  // Queries and keys are then divided by their length, queries by sqrt(key_dim) as well.
  void convolve(const Worker& w, const Sources& from, int64_t r, int64_t head) const {
    const int64_t channel = channel_of(head), n = width_of(head);
    const float* inputs[kMaxTaps];
    for (int64_t tap = 0; tap < s_.taps; tap++) inputs[tap] = from.taps[tap] ? from.taps[tap] + channel : zeros_.data();
    float* x = row(op_.convolved, r) + channel;
    w.k.convolve(inputs, s_.taps, data(op_.conv) + channel, s_.conv_width(), n, x);
    if (is_value(head)) return;
    const float root = std::sqrt(float(n)), factor = head < s_.n_key_heads ? 1 / float(n) : 1 / root;
    w.k.rms_norm(x, nullptr, n, kDeltaNormEps / float(n), x);  // x / sqrt(sum(x^2) + eps) by way of the RMS norm
    for (int64_t d = 0; d < n; d++) x[d] *= factor;
  }

  // The state keeps a head's inputs of the latest positions, once nobody reads the earlier ones any more.
  void remember(const Worker& w, Range rows, int64_t head) const {
    const int64_t kept = s_.taps - 1, channel = channel_of(head);
    for (int64_t r = std::max(rows.first, rows.last - kept); r < rows.last; r++)
      std::copy_n(row(op_.qkv, r) + channel, width_of(head), state(w, r) + w.batch.positions[size_t(r)] % kept * s_.conv_width() + channel);
  }

  // alpha becomes the factor by which the state decays, beta the share of a value's error that is written.
  void open_gate(int64_t r, int64_t head) const {
    float &alpha = row(op_.alpha, r)[head], &beta = row(op_.beta, r)[head];
    const float x = alpha + data(op_.dt_bias)[head], softplus = x > 20 ? x : std::log1p(std::exp(x));
    alpha = std::exp(data(op_.rate)[head] * softplus);
    beta = 1 / (1 + std::exp(-beta));
  }

  void recur(const Worker& w, int head, int64_t column) const {
    for_slots(w, {0, w.rows()}, [&](Range rows) { recur(w, rows, head, column); });
  }
  void recur(const Worker& w, Range rows, int head, int64_t column) const {
    const int64_t n = s_.value_dim, columns = s_.block_columns(column);
    float* block = state(w, rows.first) + s_.block_at(head, column);
    if (w.batch.positions[size_t(rows.first)] == 0) std::fill_n(block, columns * s_.key_dim, 0.f);
    const float* q = row(op_.convolved, rows.first) + int64_t(s_.key_head(head)) * s_.key_dim;
    w.k.delta_rule(block, columns, s_.key_dim, 0, columns,
                   {.n = rows.last - rows.first,
                    .qkv_stride = s_.conv_width(),
                    .gate_stride = s_.n_value_heads,
                    .out_stride = s_.value_width(),
                    .q = q,
                    .k = q + s_.key_width(),
                    .v = row(op_.convolved, rows.first) + 2 * s_.key_width() + head * n + column,
                    .decay = row(op_.alpha, rows.first) + head,
                    .beta = row(op_.beta, rows.first) + head,
                    .out = row(op_.out, rows.first) + head * n + column});
  }

  void norm_result(const Worker& w, int64_t r, int64_t head) const {
    float* x = row(op_.out, r) + head * s_.value_dim;
    w.k.rms_norm(x, data(norm_->weight), s_.value_dim, norm_->eps, x);
  }

  DeltaNetOp op_;
  DeltaNetShape s_;
  std::optional<NormOp> norm_;
  std::vector<float> zeros_;  // a head's inputs before the beginning
  WorkQueue queue_;
};

}  // namespace

StepPtr make_delta_net(const DeltaNetOp& op, const NormOp* norm) { return std::make_unique<DeltaNetStep>(op, norm); }

}  // namespace tq::cpu
