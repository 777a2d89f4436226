#include "backend/cpu/linear.h"

#include <vector>

#include "common/error.h"

namespace tq::cpu {

Form take_form(Arena& arena, int64_t rows, int64_t n_in, Precision precision) {
  Form form;
  if (precision == Precision::f32) {
    form.rotated = arena.take<float>(rows * n_in);
  } else {
    form.quantized = arena.take<int8_t>(rows * n_in);
    form.scale = arena.take<float>(rows);
  }
  return form;
}

bool same_form(const CpuMatrix& a, const CpuMatrix& b) { return a.host.packed == b.host.packed && a.plan == b.plan; }

void fill_form(const Worker& w, const CpuMatrix& m, const float* plain, const Form& form, int64_t r, float* work) {
  if (!m.host.packed) return;
  const Timed timed(w.profile, "rotation");
  const int64_t n = m.n_in;
  const float* rotated = plain;
  if (form.rotated) work = form.rotated + r * n;
  if (m.plan)
    w.k.rotate(*m.plan, plain, work), rotated = work;
  else if (form.rotated)
    std::copy_n(plain, n, work);
  if (form.quantized) form.scale[r] = w.k.quantize(rotated, n, form.quantized + r * n);
}

kernels::Activations activations(const Form& form, const float* plain, int64_t first, int64_t n, int64_t n_in) {
  kernels::Activations x;
  x.n_tokens = n, x.n_in = n_in;
  if (plain) x.plain = plain + first * n_in;
  if (form.rotated) x.rotated = form.rotated + first * n_in;
  if (form.quantized) x.quantized = form.quantized + first * n_in, x.scale = form.scale + first;
  return x;
}

int64_t units(const Matrix& m) { return int64_t(tqn::strips(uint64_t(m.n_out))); }

void multiply(const Worker& w, const Product& p, const kernels::Activations& x, Range range, void* scratch) {
  const CpuMatrix& m = *p.matrix;
  const int64_t first = range.first * tqn::kTileRows, last = std::min<int64_t>(range.last * tqn::kTileRows, m.n_out);
  if (!m.host.packed)
    w.k.linear_dense(m.host.dense, first, last, x.plain, x.n_tokens, p.alpha, p.add, p.y, p.ldy);
  else if (x.quantized)
    w.k.linear_int8(m.host.tqn, range.first, range.last, x, p.alpha, p.add, p.y, p.ldy, scratch);
  else
    w.k.linear_float(m.host.tqn, range.first, range.last, x, p.alpha, p.add, p.y, p.ldy, scratch);
  if (!p.bias) return;
  for (int64_t t = 0; t < x.n_tokens; t++) w.k.add_scaled(p.y + t * p.ldy + first, p.bias + first, p.alpha, last - first);
}

int64_t multiply_scratch(const Kernels& k, int64_t n_in, int64_t rows) {
  return std::max(k.linear_scratch_bytes(n_in, 1), k.linear_scratch_bytes(n_in, rows));
}

const float* plain_row(const Worker& w, const LinearInput& in, int64_t r, float* out) {
  const float* x = row(in.x, r);
  switch (in.kind) {
    case LinearInput::plain:
      return x;
    case LinearInput::rms_norm: {
      const Timed timed(w.profile, "norms");
      w.k.rms_norm(x, data(in.weight), in.x.width, in.eps, out);
      break;
    }
    case LinearInput::gated:
      gated_kernel(w.k, in.activation)(x, row(in.up, r), in.x.width, out);
      break;
  }
  return out;
}

namespace {

using kernels::kTokenBlock;

// Up to this many rows every thread prepares the input for itself: that costs less than a barrier.
constexpr int64_t kPrivateRows = 1;

class LinearStep final : public Step {
 public:
  LinearStep(const LinearOp& op, Precision precision) : in_(op.in), logits_(op.logits), precision_(precision) {
    for (const LinearOutput& out : op.out) add(out);
  }

  ScratchBytes scratch(const Kernels& k, const Limits& limits) const override {
    Arena shared, own;
    place(shared, limits.rows);
    place(own, kPrivateRows);
    own.take<float>(in_.x.width);
    own.take<uint8_t>(multiply_scratch(k, in_.x.width, limits.rows));
    return {shared.used(), own.used()};
  }

  void reset() override { queue_.reset(); }

  void run(Worker& w) override {
    const int64_t rows = logits_ ? int64_t(w.batch.output_rows.size()) : w.rows();
    if (rows == 0) return;
    Arena shared(w.shared), own(w.scratch);
    const Inputs mine = place(own, kPrivateRows);
    const Inputs inputs = rows <= kPrivateRows ? mine : place(shared, rows);
    float* work = own.take<float>(in_.x.width);
    const Range part = rows <= kPrivateRows ? Range{0, rows} : w.share(rows);
    for (int64_t r = part.first; r < part.last; r++) prepare_row(w, inputs, r, work);
    if (rows > kPrivateRows) w.barrier();
    const float* plain = inputs.plain ? inputs.plain : data(in_.x.buffer);
    multiply_all(w, inputs, plain, rows, own.take<uint8_t>(0));
  }

 private:
  struct Output {
    Product product;
    size_t form;
    int64_t first_unit;
  };
  static constexpr size_t kMaxForms = 4;
  struct Inputs {
    float* plain = nullptr;    // null: the plane itself
    float* blocked = nullptr;  // null: few rows, or no outliers
    Form forms[kMaxForms];
  };

  void add(const LinearOutput& out) {
    const CpuMatrix& m = cpu(out.matrix);
    size_t form = 0;
    while (form < forms_.size() && !same_form(*forms_[form], m)) form++;
    if (form == forms_.size()) forms_.push_back(&m);
    if (forms_.size() > kMaxForms) throw Error(Cause::invalid_argument, m.host.name + ": one input with more than 4 rotations");
    float* y = data(out.y.buffer) + out.y_offset;
    has_outliers_ |= m.host.packed && m.host.tqn.outliers.count > 0;
    outputs_.push_back({{&m, data(out.bias), out.alpha, out.add, y, out.y.width}, form, n_units_});
    n_units_ += units(m);
  }

  // The plane can be read where it lies unless rows are gathered or computed.
  bool copies() const { return in_.kind != LinearInput::plain || logits_; }

  Inputs place(Arena& arena, int64_t rows) const {
    Inputs inputs;
    if (copies()) inputs.plain = arena.take<float>(rows * in_.x.width);
    if (has_outliers_ && rows >= kTokenBlock)
      inputs.blocked = arena.take<float>((rows + kTokenBlock - 1) / kTokenBlock * kTokenBlock * in_.x.width);
    for (size_t i = 0; i < forms_.size(); i++)
      if (forms_[i]->host.packed) inputs.forms[i] = take_form(arena, rows, in_.x.width, precision_);
    return inputs;
  }

  void prepare_row(const Worker& w, const Inputs& inputs, int64_t r, float* work) const {
    const int64_t width = in_.x.width;
    float* out = inputs.plain ? inputs.plain + r * width : nullptr;
    const float* plain = plain_row(w, in_, logits_ ? w.batch.output_rows[r] : r, out);
    if (out && plain != out) std::copy_n(plain, width, out);
    if (inputs.blocked) {
      float* block = inputs.blocked + r / kTokenBlock * kTokenBlock * width + r % kTokenBlock;
      for (int64_t c = 0; c < width; c++) block[c * kTokenBlock] = plain[c];
    }
    for (size_t i = 0; i < forms_.size(); i++) fill_form(w, *forms_[i], plain, inputs.forms[i], r, work);
  }

  void multiply_all(Worker& w, const Inputs& inputs, const float* plain, int64_t rows, void* scratch) {
    const int64_t chunk = w.chunk(n_units_);
    for (Range todo = queue_.take(n_units_, chunk); todo.first < todo.last; todo = queue_.take(n_units_, chunk)) {
      for (const Output& out : outputs_) {
        const int64_t end = out.first_unit + units(*out.product.matrix);
        const Range part{std::max(todo.first, out.first_unit) - out.first_unit, std::min(todo.last, end) - out.first_unit};
        if (part.first >= part.last) continue;
        kernels::Activations x = activations(inputs.forms[out.form], plain, 0, rows, in_.x.width);
        x.blocked = inputs.blocked;
        multiply(w, out.product, x, part, scratch);
      }
    }
  }

  LinearInput in_;
  bool logits_, has_outliers_ = false;
  Precision precision_;
  std::vector<Output> outputs_;
  std::vector<const CpuMatrix*> forms_;  // a representative of each distinct form
  int64_t n_units_ = 0;
  WorkQueue queue_;
};

}  // namespace

StepPtr make_linear(const LinearOp& op, Precision precision) { return std::make_unique<LinearStep>(op, precision); }

}  // namespace tq::cpu
