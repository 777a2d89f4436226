// Mixture of experts. Tokens are assigned to experts (row, expert, weight), assignments are sorted by expert, and each expert's gated layer
// runs over its own assignments only. A shared expert is one more expert to which every row is assigned.
#include <array>
#include <cmath>
#include <vector>

#include "backend/cpu/linear.h"
#include "backend/routing.h"
#include "common/error.h"

namespace tq::cpu {
namespace {

struct Expert {
  const CpuMatrix *gate, *up, *down;
};

class MoeStep final : public Step {
 public:
  MoeStep(const MoeOp& op, Precision precision) : op_(op), precision_(precision) {
    for (size_t e = 0; e < op.gate.size(); e++) experts_.push_back({&cpu(op.gate[e]), &cpu(op.up[e]), &cpu(op.down[e])});
    if (op.shared_gate) experts_.push_back({&cpu(op.shared_gate), &cpu(op.shared_up), &cpu(op.shared_down)});
    for (const Expert& e : experts_) {
      n_ff_ = std::max(n_ff_, e.gate->n_out);
      if (!same_form(*e.gate, *e.up)) throw Error(Cause::invalid_argument, e.gate->host.name + ": gate and up must share their rotation");
    }
    starts_.resize(experts_.size() + 1);
  }

  ScratchBytes scratch(const Kernels& k, const Limits& limits) const override {
    Arena shared, own;
    place(shared, limits.rows);
    const int64_t widest = std::max(n_ff_, n_embd());
    own.take<float>(widest);
    own.take<float>(op_.router->n_out), own.take<float>(n_embd());  // route: logits, the router's input, one row's form
    take_form(own, 1, n_embd(), precision_);
    own.take<uint8_t>(std::max(multiply_scratch(k, n_embd(), limits.rows), multiply_scratch(k, n_ff_, limits.rows)));
    return {shared.used(), own.used()};
  }

  void reset() override {
    for (WorkQueue& queue : queues_) queue.reset();
  }

  void run(Worker& w) override {
    Arena shared(w.shared), own(w.scratch);
    const Planes p = place(shared, w.rows());
    float* work = own.take<float>(std::max(n_ff_, n_embd()));
    uint8_t* scratch = own.take<uint8_t>(0);
    route(w, p, work, scratch);
    w.barrier();
    if (w.thread == 0) sort(w, p);
    w.barrier();
    gather(w, p, work);
    w.barrier();
    gate_and_up(w, p, scratch);
    w.barrier();
    activate(w, p, work);
    w.barrier();
    down(w, p, scratch);
    w.barrier();
    add_up(w, p);
  }

 private:
  // Assignments are numbered twice: by row (row * per_row + j) as they are chosen, and by expert as they are worked on.
  struct Planes {
    float* x;          // (rows, n_embd), prepared
    int32_t* experts;  // by row
    float* weights;    // by row
    int32_t* place;    // by row: its number by expert
    int32_t* source;   // by expert: its row
    float* gathered;   // by expert: (n_embd)
    Form in;           // by expert
    float *gate, *up;  // by expert: (n_ff)
    Form hidden;       // by expert
    float* out;        // by expert: (n_embd)
  };

  int64_t n_embd() const { return op_.in.x.width; }
  int64_t per_row() const { return op_.top_k + (op_.shared_gate ? 1 : 0); }

  Planes place(Arena& arena, int64_t rows) const {
    const int64_t n = rows * per_row();
    Planes p;
    p.x = arena.take<float>(rows * n_embd());
    p.experts = arena.take<int32_t>(n), p.weights = arena.take<float>(n);
    p.place = arena.take<int32_t>(n), p.source = arena.take<int32_t>(n);
    p.gathered = arena.take<float>(n * n_embd());
    p.in = take_form(arena, n, n_embd(), precision_);
    p.gate = arena.take<float>(n * n_ff_), p.up = arena.take<float>(n * n_ff_);
    p.hidden = take_form(arena, n, n_ff_, precision_);
    p.out = arena.take<float>(n * n_embd());
    return p;
  }

  // One small product for row r alone: the routers.
  void route_row(const Worker& w, const CpuMatrix& m, const float* x, float* y, float* work, uint8_t* scratch) const {
    Arena own(scratch);
    const Form form = m.host.packed ? take_form(own, 1, n_embd(), precision_) : Form{};
    fill_form(w, m, x, form, 0, work);
    multiply(w, {.matrix = &m, .y = y, .ldy = m.n_out}, activations(form, x, 0, 1, n_embd()), {0, units(m)}, own.take<uint8_t>(0));
  }

  void route(const Worker& w, const Planes& p, float* work, uint8_t* scratch) const {
    const Range mine = w.share(w.rows());
    Arena own(scratch);
    const int64_t n = op_.router->n_out;
    float *logits = own.take<float>(n), *seen = own.take<float>(n_embd());
    for (int64_t r = mine.first; r < mine.last; r++) {
      float* x = p.x + r * n_embd();
      const float* plain = plain_row(w, op_.in, r, x);
      if (plain != x) std::copy_n(plain, n_embd(), x);
      const float* routed = op_.router_in.x.buffer ? plain_row(w, op_.router_in, r, seen) : x;
      route_row(w, cpu(op_.router), routed, logits, work, scratch + own.used());
      if (op_.router_bias) w.k.add_scaled(logits, data(op_.router_bias), 1, n);
      choose_experts(logits, n, op_.top_k, op_.normalize, p.experts + r * per_row(), p.weights + r * per_row());
      if (op_.shared_gate) share(w, p, r, work, scratch);
    }
  }

  void share(const Worker& w, const Planes& p, int64_t r, float* work, uint8_t* scratch) const {
    const int64_t at = r * per_row() + op_.top_k;
    p.experts[at] = int32_t(experts_.size()) - 1;
    p.weights[at] = 1;
    if (!op_.shared_router) return;
    float logit;
    route_row(w, cpu(op_.shared_router), p.x + r * n_embd(), &logit, work, scratch);
    p.weights[at] = shared_expert_weight(logit);
  }

  // Counting sort of the assignments by expert.
  void sort(const Worker& w, const Planes& p) {
    const int64_t n = w.rows() * per_row();
    std::fill(starts_.begin(), starts_.end(), 0);
    for (int64_t i = 0; i < n; i++) starts_[size_t(p.experts[i]) + 1]++;
    for (size_t e = 1; e < starts_.size(); e++) starts_[e] += starts_[e - 1];
    for (int64_t i = 0; i < n; i++) {
      const int64_t at = starts_[size_t(p.experts[i])]++;
      p.place[i] = int32_t(at), p.source[at] = int32_t(i / per_row());
    }
    std::copy_backward(starts_.begin(), starts_.end() - 1, starts_.end());  // undo the advance
    starts_[0] = 0;
  }

  void gather(const Worker& w, const Planes& p, float* work) const {
    const Range mine = w.share(w.rows() * per_row());
    for (int64_t i = mine.first; i < mine.last; i++) {
      const float* x = p.x + i / per_row() * n_embd();
      std::copy_n(x, n_embd(), p.gathered + p.place[i] * n_embd());
      fill_form(w, *experts_[size_t(p.experts[i])].gate, x, p.in, p.place[i], work);
    }
  }

  // Runs body(expert, first assignment, count, part of its units) over chunks of every busy expert's units.
  template <class Units, class Body>
  void for_busy(Worker& w, WorkQueue& queue, Units&& expert_units, Body&& body) const {
    int64_t total = 0;
    for (size_t e = 0; e < experts_.size(); e++) total += starts_[e + 1] > starts_[e] ? expert_units(experts_[e]) : 0;
    const int64_t chunk = w.chunk(total);
    for (Range todo = queue.take(total, chunk); todo.first < todo.last; todo = queue.take(total, chunk)) {
      int64_t begin = 0;
      for (size_t e = 0; e < experts_.size(); e++) {
        if (starts_[e + 1] == starts_[e]) continue;
        const int64_t end = begin + expert_units(experts_[e]);
        const Range part{std::max(todo.first, begin) - begin, std::min(todo.last, end) - begin};
        if (part.first < part.last) body(experts_[e], starts_[e], starts_[e + 1] - starts_[e], part);
        begin = end;
      }
    }
  }

  void gate_and_up(Worker& w, const Planes& p, uint8_t* scratch) {
    const auto both = [](const Expert& e) { return units(*e.gate) + units(*e.up); };
    for_busy(w, queues_[0], both, [&](const Expert& e, int64_t first, int64_t n, Range part) {
      const kernels::Activations x = activations(p.in, p.gathered, first, n, n_embd());
      const int64_t split = units(*e.gate);
      const Range gate{part.first, std::min(part.last, split)}, up{std::max(part.first, split) - split, part.last - split};
      if (gate.first < gate.last) multiply(w, {.matrix = e.gate, .y = p.gate + first * n_ff_, .ldy = n_ff_}, x, gate, scratch);
      if (up.first < up.last) multiply(w, {.matrix = e.up, .y = p.up + first * n_ff_, .ldy = n_ff_}, x, up, scratch);
    });
  }

  // The rows of `hidden` are as wide as their expert; only an expert's own rows are read together, so its planes start at first * n_ff_.
  Form hidden_of(const Planes& p, int64_t first) const {
    Form form = p.hidden;
    if (form.rotated) form.rotated += first * n_ff_;
    if (form.quantized) form.quantized += first * n_ff_, form.scale += first;
    return form;
  }

  // Gate and up become activation(gate) * up, in rows of the expert's own width, and their rotated forms.
  void activate(const Worker& w, const Planes& p, float* work) const {
    const auto gated = gated_kernel(w.k, op_.activation);
    const Range mine = w.share(w.rows() * per_row());
    for (int64_t i = mine.first; i < mine.last; i++) {
      const size_t e = size_t(p.experts[i]);
      const int64_t at = p.place[i], first = starts_[e];
      float* row = p.gate + at * n_ff_;
      if (const float* bias = bias_of(op_.gate_bias, e, experts_[e].gate->n_out)) w.k.add_scaled(row, bias, 1, experts_[e].gate->n_out);
      if (const float* bias = bias_of(op_.up_bias, e, experts_[e].up->n_out))
        w.k.add_scaled(p.up + at * n_ff_, bias, 1, experts_[e].up->n_out);
      gated(row, p.up + at * n_ff_, experts_[e].gate->n_out, row);
      fill_form(w, *experts_[e].down, row, hidden_of(p, first), at - first, work);
    }
  }

  void down(Worker& w, const Planes& p, uint8_t* scratch) {
    const auto down_units = [](const Expert& e) { return units(*e.down); };
    for_busy(w, queues_[1], down_units, [&](const Expert& e, int64_t first, int64_t n, Range part) {
      const int64_t width = e.down->n_in;
      if (!wants_plain(*e.down) || width == n_ff_) {
        const kernels::Activations x = activations(hidden_of(p, first), p.gate + first * n_ff_, 0, n, width);
        multiply(w, {.matrix = e.down, .y = p.out + first * n_embd(), .ldy = n_embd()}, x, part, scratch);
        return;
      }
      for (int64_t i = first; i < first + n; i++) {  // plain rows lie n_ff_ apart, wider than this expert: one at a time
        kernels::Activations x = activations(hidden_of(p, first), nullptr, i - first, 1, width);
        x.plain = p.gate + i * n_ff_;
        multiply(w, {.matrix = e.down, .y = p.out + i * n_embd(), .ldy = n_embd()}, x, part, scratch);
      }
    });
  }

  // An expert's row of a table of biases; null: it has none.
  const float* bias_of(const Buffer* biases, size_t expert, int64_t width) const {
    return biases && expert < op_.gate.size() ? data(biases) + int64_t(expert) * width : nullptr;
  }

  void add_up(const Worker& w, const Planes& p) const {
    const Range columns = w.share(n_embd());
    for (int64_t r = 0; r < w.rows(); r++) {
      if (!op_.add) std::fill(row(op_.y, r) + columns.first, row(op_.y, r) + columns.last, 0.f);
      for (int64_t i = r * per_row(); i < (r + 1) * per_row(); i++) {
        float* out = p.out + p.place[i] * n_embd() + columns.first;
        if (const float* bias = bias_of(op_.down_bias, size_t(p.experts[i]), n_embd()))
          w.k.add_scaled(out, bias + columns.first, 1, columns.last - columns.first);
        w.k.add_scaled(row(op_.y, r) + columns.first, out, op_.alpha * p.weights[i], columns.last - columns.first);
      }
    }
  }

  MoeOp op_;
  Precision precision_;
  std::vector<Expert> experts_;
  int64_t n_ff_ = 0;
  std::array<WorkQueue, 2> queues_;  // gate and up; down
  std::vector<int64_t> starts_;      // (experts + 1) first assignment of each expert
};

}  // namespace

StepPtr make_moe(const MoeOp& op, Precision precision) { return std::make_unique<MoeStep>(op, precision); }

}  // namespace tq::cpu
