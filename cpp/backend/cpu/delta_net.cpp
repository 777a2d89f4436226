// The gated delta net: the convolution, channel by channel; norms and gates, head by head; the recurrence, a block of a state's columns at
// a time. A thread takes all rows of its channels or columns in order.
#include <cmath>

#include "backend/cpu/attention.h"
#include "backend/cpu/step.h"

namespace tq::cpu {
namespace {

constexpr int64_t kChannels = 64;  // of the convolution, computed at once
constexpr int64_t kColumns = DeltaNetShape::kBlockColumns;

class DeltaNetStep final : public Step {
 public:
  explicit DeltaNetStep(const DeltaNetOp& op) : op_(op), s_(op.shape) {}
  ScratchBytes scratch(const Kernels&, const Limits&) const override { return {}; }
  void reset() override { queue_.reset(); }

  void run(Worker& w) override {
    const int64_t blocks = (s_.conv_width() + kChannels - 1) / kChannels;
    const Range mine = w.share(blocks);
    for (int64_t block = mine.first; block < mine.last; block++)
      for_slots(w, {0, w.rows()}, [&](Range rows) { convolve(w, rows, block * kChannels); });
    open_gates(w);
    w.barrier();
    norm(w);
    w.barrier();
    const int64_t per_head = (s_.value_dim + kColumns - 1) / kColumns, total = s_.n_value_heads * per_head;
    const int64_t chunk = w.chunk(total);
    for (Range todo = queue_.take(total, chunk); todo.first < todo.last; todo = queue_.take(total, chunk))
      for (int64_t i = todo.first; i < todo.last; i++)
        for_slots(w, {0, w.rows()}, [&](Range rows) { recur(w, rows, int(i / per_head), i % per_head * kColumns); });
  }

 private:
  float* state(const Worker& w, Range rows) const { return data(op_.state) + w.batch.slots[size_t(rows.first)] * s_.state_floats(); }

  // Inputs of positions before the rows come from the state, which then keeps those of the last ones.
  void convolve(const Worker& w, Range rows, int64_t channel) const {
    const int64_t width = s_.conv_width(), n = std::min(kChannels, width - channel), kept = s_.taps - 1;
    float* recent = state(w, rows) + channel;
    const float* inputs[kMaxTaps];
    for (int64_t r = rows.first; r < rows.last; r++) {
      for (int64_t tap = 0; tap < s_.taps; tap++) {
        const int64_t back = kept - tap, position = w.batch.positions[size_t(r)] - back;
        inputs[tap] = position < 0 ? kZeros : r - back >= rows.first ? row(op_.qkv, r - back) + channel : recent + position % kept * width;
      }
      w.k.convolve(inputs, s_.taps, data(op_.conv) + channel, width, n, row(op_.convolved, r) + channel);
    }
    for (int64_t r = std::max(rows.first, rows.last - kept); r < rows.last; r++)
      std::copy_n(row(op_.qkv, r) + channel, n, recent + w.batch.positions[size_t(r)] % kept * width);
  }

  // alpha becomes the factor by which the state decays, beta the share of a value's error that is written.
  void open_gates(const Worker& w) const {
    const float *rate = data(op_.rate), *bias = data(op_.dt_bias);
    const Range mine = w.share(w.rows() * s_.n_value_heads);
    float *alpha = data(op_.alpha.buffer), *beta = data(op_.beta.buffer);
    for (int64_t i = mine.first; i < mine.last; i++) {
      const int64_t head = i % s_.n_value_heads;
      const float x = alpha[i] + bias[head], softplus = x > 20 ? x : std::log1p(std::exp(x));
      alpha[i] = std::exp(rate[head] * softplus);
      beta[i] = 1 / (1 + std::exp(-beta[i]));
    }
  }

  // x / sqrt(sum(x^2) + eps) by way of the RMS norm; queries are divided by sqrt(key_dim) as well.
  void norm(const Worker& w) const {
    const int64_t heads = 2 * s_.n_key_heads, n = s_.key_dim;
    const float root = std::sqrt(float(n));
    const Range mine = w.share(w.rows() * heads);
    for (int64_t i = mine.first; i < mine.last; i++) {
      float* x = row(op_.convolved, i / heads) + i % heads * n;
      const float factor = i % heads < s_.n_key_heads ? 1 / float(n) : 1 / root;
      w.k.rms_norm(x, nullptr, n, kDeltaNormEps / float(n), x);
      for (int64_t d = 0; d < n; d++) x[d] *= factor;
    }
  }

  void recur(const Worker& w, Range rows, int head, int64_t column) const {
    const int64_t n = s_.value_dim, columns = s_.block_columns(column);
    float* block = state(w, rows) + s_.block_at(head, column);
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

  static constexpr float kZeros[kChannels] = {};

  DeltaNetOp op_;
  DeltaNetShape s_;
  WorkQueue queue_;
};

}  // namespace

StepPtr make_delta_net(const DeltaNetOp& op) { return std::make_unique<DeltaNetStep>(op); }

}  // namespace tq::cpu
