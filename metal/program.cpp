#include "program.h"

#include <cmath>

namespace tq::metal {
namespace {

using namespace metal_args;

Operand operand(const Buffer* buffer) { return buffer ? Operand{memory_of(*buffer).at(), true} : Operand{}; }
Operand operand(const Plane& plane) { return operand(plane.buffer); }

Target target(const LinearOutput& out) {
  return {&metal(out.matrix), at(out.y), out.y.width, out.y_offset, operand(out.bias), out.alpha, out.add};
}
Source source(const LinearInput& in) { return {in.kind, in.activation, at(in.x), operand(in.up), operand(in.weight), in.eps, {}}; }

int64_t top_rows(const TopOp& op) { return op.x.buffer->bytes / (op.x.width * int64_t(sizeof(float))); }
int64_t top_pieces(int64_t n) { return pieces(n, kTopPiece); }

}  // namespace

MetalProgram::MetalProgram(std::vector<Op> ops, int64_t max_rows, Precision precision, Workspace& workspace, const RotationOf& rotation_of)
    : ops_(std::move(ops)),
      max_rows_(max_rows),
      precision_(precision),
      w_(workspace),
      linear_(workspace, precision),
      moe_(workspace, linear_),
      angles_(workspace.context),
      inputs_(workspace.context) {
  for (const Op& op : ops_)
    if (op.kind == Op::attention && op.attention_op.k_bits > 0) {
      const int64_t dim = op.attention_op.shape.head_dim;
      if (!rotations_[dim]) rotations_[dim] = rotation_of(dim);
    }
  reserve();
}

void MetalProgram::reserve() {
  int64_t floats = 0;
  for (const Op& op : ops_) {
    if (op.kind == Op::delta_net) check_delta_net(op.delta_net_op.shape);
    if (op.kind == Op::linear) {
      std::vector<const MetalMatrix*> matrices;
      for (const LinearOutput& out : op.linear_op.out) matrices.push_back(&metal(out.matrix));
      linear_.reserve(matrices, max_rows_);
    }
    if (op.kind == Op::embed) w_.vectors.reserve(max_rows_ * 2 * padded(uint32_t(op.embed_op.matrix->n_in)) * 4);
    if (op.kind == Op::top) {
      const int64_t first = top_pieces(op.top_op.x.width) * op.top_op.k, second = top_pieces(first) * op.top_op.k;
      w_.top.reserve(top_rows(op.top_op) * (first + second) * 8);
    }
    if (op.kind == Op::moe) {
      linear_.reserve_forms(op.moe_op.in.x.width, max_rows_);
      if (op.moe_op.router_in.x.buffer) linear_.reserve_forms(op.moe_op.router_in.x.width, max_rows_);
      moe_.reserve(op.moe_op, max_rows_);
    }
    if (op.kind != Op::attention) continue;
    const AttentionOp& a = op.attention_op;
    reserve_attention(a);
    const bool known = std::any_of(tables_.begin(), tables_.end(), [&](const Angles& t) { return same_table(t.table, a.rope); });
    if (a.rope.inv_freq && !known) {
      tables_.push_back({a.rope, floats, floats + max_rows_ * (a.rope.dims / 2)});
      floats += 2 * max_rows_ * (a.rope.dims / 2);
    }
    const bool grown = std::any_of(growths_.begin(), growths_.end(), [&](const Growth& g) { return same_growth(g.growth, a.growth); });
    if (a.growth.beta != 0 && !grown) growths_.push_back({a.growth, floats}), floats += max_rows_;
  }
  angles_.reserve(floats * 4);
  inputs_.reserve(max_rows_ * 9 * 4);
  const auto part = [&](int64_t i) { return inputs_.at(max_rows_ * i * 4); };
  tokens_ = part(0), positions_ = part(1), slots_ = part(2), output_rows_ = part(3), order_ = part(4);
  runs_at_ = part(5), sequences_at_ = part(7);
}

void MetalProgram::stage(const Batch& b) {
  rows_ = int64_t(b.tokens.size()), n_outputs_ = int64_t(b.output_rows.size());
  if (rows_ > max_rows_)
    throw Error(Cause::invalid_argument, "batch of " + std::to_string(rows_) + " rows, prepared for " + std::to_string(max_rows_));
  runs_ = consecutive_runs(b, kRunQueries);
  RowsBySlot by_slot = rows_by_slot(b);
  sequences_ = std::move(by_slot.sequences);
  int32_t* to = inputs_.data<int32_t>();
  for (const auto& values : {b.tokens, b.positions, b.slots, b.output_rows, std::span<const int32_t>(by_slot.order)})
    std::copy(values.begin(), values.end(), to), to += max_rows_;
  for (const auto* pairs : {&runs_, &sequences_})
    std::copy(pairs->begin(), pairs->end(), reinterpret_cast<RowRun*>(to)), to += 2 * max_rows_;
  fill_angles(b);
}

// In double: a float angle of a late position would be off by more than the cosine's own rounding.
void MetalProgram::fill_angles(const Batch& b) {
  float* const to = angles_.data<float>();
  for (const Angles& t : tables_) {
    const float* inv_freq = memory_of(*t.table.inv_freq).data<float>();
    const int64_t half = t.table.dims / 2;
    for (int64_t i = 0; i < rows_ * half; i++) {
      const double angle = double(b.positions[size_t(i / half)]) * double(inv_freq[i % half]);
      to[t.cos + i] = float(std::cos(angle) * t.table.magnitude), to[t.sin + i] = float(std::sin(angle) * t.table.magnitude);
    }
  }
  for (const Growth& g : growths_)
    for (int64_t r = 0; r < rows_; r++)
      to[g.factors + r] = 1 + g.growth.beta * std::log(1 + float(b.positions[size_t(r)] / g.growth.length));
}

void MetalProgram::run(const Batch& batch) {
  if (batch.tokens.empty()) return;
  stage(batch);
  for (const Op& op : ops_) encode(op);
  w_.context->device->wait();
}

void MetalProgram::encode(const Op& op) {
  switch (op.kind) {
    case Op::embed:
      return encode(op.embed_op);
    case Op::linear:
      return encode(op.linear_op);
    case Op::norm:
      return encode(op.norm_op);
    case Op::add_norm:
      return encode(op.add_norm_op);
    case Op::attention:
      return encode(op.attention_op);
    case Op::soft_cap:
      return encode(op.soft_cap_op);
    case Op::top:
      return encode(op.top_op);
    case Op::moe:
      return encode(op.moe_op);
    case Op::delta_net:
      return encode(op.delta_net_op);
  }
}

void MetalProgram::encode(const EmbedOp& op) {
  const MetalMatrix& m = metal(op.matrix);
  EmbedArgs a{};
  a.n = uint32_t(op.y.width), a.stride = uint32_t(m.n_in), a.column = uint32_t(op.column), a.scale = op.scale;
  if (!m.packed()) {
    const DenseMatrix& w = m.host.dense;
    const char* type = w.type == kernels::DType::f32 ? "f32" : w.type == kernels::DType::f16 ? "f16" : "bf16";
    return launch(*w_.context, std::string("embed_") + type, a, {m.planes.at(w.data), tokens_, at(op.y)}, {uint32_t(rows_)}, kRowThreads);
  }
  const TqnMatrix& w = m.host.tqn;
  const Bound nothing = w_.nothing().bound;
  a.k = uint32_t(w.k), a.matrix_scale = w.scale, a.flags = m.outlier_flags() | (m.rotation ? kRotate : 0u);
  if (m.rotation) a.rotation = m.rotation->args;
  const bool outliers = m.has_outliers();
  launch(*w_.context, "embed_packed", a,
         {m.planes.at(w.codes), m.planes.at(w.row_scale), m.planes.at(w.codebook), tokens_, at(op.y),
          m.rotation ? m.rotation->signs() : nothing, m.rotation ? m.rotation->hartley() : nothing, w_.vectors.at(),
          m.planes.at(outliers ? w.outliers.ptr : nullptr), m.planes.at(outliers ? m.columns() : nullptr),
          m.planes.at(outliers ? w.outliers.val : nullptr)},
         {uint32_t(rows_)}, kRowThreads);
}

void MetalProgram::encode(const MoeOp& op) {
  if (!op.add) {
    NormArgs a{};
    a.count = uint32_t(rows_ * op.y.width);
    launch(*w_.context, "clear", a, {at(op.y)}, {pieces(a.count, kRowThreads)}, kRowThreads);
  }
  moe_.run(op, source(op.in), op.router_in.x.buffer ? source(op.router_in) : Source{}, rows_);
}

void MetalProgram::encode(const LinearOp& op) {
  const int64_t rows = op.logits ? n_outputs_ : rows_;
  if (rows == 0) return;
  Source from = source(op.in);
  if (op.logits) from.rows = {output_rows_, true};
  std::vector<Target> targets;
  for (const LinearOutput& out : op.out) targets.push_back(target(out));
  linear_.run(from, rows, targets);
}

void MetalProgram::encode(const NormOp& op) {
  NormArgs a{};
  a.n = uint32_t(op.x.width / op.groups), a.eps = op.eps, a.flags = op.weight ? kWeight : 0u;
  launch(*w_.context, "rms_norm", a, {at(op.x), op.weight ? operand(op.weight).bound : w_.nothing().bound, at(op.y)},
         {uint32_t(rows_ * op.groups)}, kRowThreads);
}

void MetalProgram::encode(const AddNormOp& op) {
  NormArgs a{};
  a.n = uint32_t(op.x.width), a.eps = op.eps, a.alpha = op.alpha, a.scale = op.scale, a.flags = op.weight ? kWeight : 0u;
  launch(*w_.context, "add_rms_norm", a, {at(op.x), op.weight ? operand(op.weight).bound : w_.nothing().bound, at(op.y)}, {uint32_t(rows_)},
         kRowThreads);
}

void MetalProgram::encode(const SoftCapOp& op) {
  if (n_outputs_ == 0) return;
  NormArgs a{};
  a.count = uint32_t(n_outputs_ * op.x.width), a.eps = op.cap;
  launch(*w_.context, "soft_cap", a, {at(op.x)}, {pieces(a.count, kRowThreads)}, kRowThreads);
}

void MetalProgram::encode(const TopOp& op) {
  if (n_outputs_ == 0) return;
  TopArgs a{};
  a.n = uint32_t(op.x.width), a.k = uint32_t(op.k);
  Bound from = at(op.x), to = w_.top.at(), other = w_.top.at(top_rows(op) * top_pieces(op.x.width) * op.k * 8);
  for (;;) {
    const uint32_t groups = pieces(a.n, kTopPiece);
    if (groups == 1) a.flags |= kLast;
    launch(*w_.context, "top", a, {from, to, memory_of(*op.best).at()}, {groups, uint32_t(n_outputs_)}, kTopThreads);
    if (groups == 1) return;
    a.n = groups * a.k, a.flags |= kGather;
    from = to, std::swap(to, other);
  }
}

}  // namespace tq::metal
