#include "program.h"

#include <cmath>

#include "format/cache.h"

namespace tq::metal {
namespace {

using namespace metal_args;

constexpr int64_t kMinRunRows = 16;       // prompts in shorter runs attend row by row
constexpr int64_t kFewRows = 32;          // up to this many rows, positions are split among thread-groups
constexpr int64_t kSplitPositions = 64;   // of a range, at least
constexpr int64_t kAttentionGroups = 80;  // thread-groups that fill a GPU, where it does not say how many cores it has

Bound at(const Plane& plane) { return memory_of(*plane.buffer).at(); }
Operand operand(const Buffer* buffer) { return buffer ? Operand{memory_of(*buffer).at(), true} : Operand{}; }
Operand operand(const Plane& plane) { return operand(plane.buffer); }

Target target(const LinearOutput& out) {
  return {&metal(out.matrix), at(out.y), out.y.width, out.y_offset, operand(out.bias), out.alpha, out.add};
}
Source source(const LinearInput& in) { return {in.kind, in.activation, at(in.x), operand(in.up), operand(in.weight), in.eps, {}}; }

// The instance of attend_rows for a head's size.
int head_blocks(int64_t head_dim) {
  const int blocks = int((head_dim + 63) / 64);
  return blocks <= 4 ? blocks : 8;
}
int64_t row_groups(const kernels::AttentionShape& s) {
  return s.n_kv_heads * pieces(s.n_heads / s.n_kv_heads, queries_at_once(uint32_t(head_blocks(s.head_dim))));
}

int64_t spans_of(int64_t positions) { return std::max<int64_t>(pieces(positions, kSpanPositions), 1); }
// Rows that attend over codes at once: their spans' states take some memory.
int64_t coded_rows(const AttentionOp& op) {
  constexpr int64_t kMost = int64_t(64) << 20;
  return std::max<int64_t>(kMost / (op.shape.n_heads * spans_of(op.capacity) * (op.shape.head_dim + 2) * 4), 1);
}

bool same_table(const RopeTable& a, const RopeTable& b) {
  return a.inv_freq == b.inv_freq && a.dims == b.dims && a.magnitude == b.magnitude;
}
bool same_growth(const QueryGrowth& a, const QueryGrowth& b) { return a.beta == b.beta && a.length == b.length; }

int64_t top_rows(const TopOp& op) { return op.x.buffer->bytes / (op.x.width * int64_t(sizeof(float))); }
int64_t top_pieces(int64_t n) { return pieces(n, kTopPiece); }

[[noreturn]] void unsupported(const std::string& what) { throw Error(Cause::unsupported, "device metal: " + what); }

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
    if (op.kind == Op::delta_net) unsupported("recurrent layers (gated delta net) run on the CPU only");
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
  inputs_.reserve(max_rows_ * 6 * 4);
  tokens_ = inputs_.at(), positions_ = inputs_.at(max_rows_ * 4), slots_ = inputs_.at(max_rows_ * 8);
  output_rows_ = inputs_.at(max_rows_ * 12), runs_at_ = inputs_.at(max_rows_ * 16);
}

void MetalProgram::reserve_attention(const AttentionOp& op) {
  const int64_t dim = op.shape.head_dim;
  if (dim > int64_t(kMaxHeadDim)) unsupported("head size " + std::to_string(dim) + " is above " + std::to_string(kMaxHeadDim));
  const int64_t state = op.shape.n_heads * (dim + 2) * 4;
  if (op.k_bits == 0) return w_.states.reserve(std::min(max_rows_, kFewRows) * int64_t(kMaxSplits) * state);
  w_.states.reserve(std::min(max_rows_, coded_rows(op)) * spans_of(op.capacity) * state);
  w_.q_codes.reserve(max_rows_ * op.shape.n_heads * tqn::cache::padded(dim));
  w_.q_scale.reserve(max_rows_ * op.shape.n_heads * 4);
}

void MetalProgram::stage(const Batch& b) {
  rows_ = int64_t(b.tokens.size()), n_outputs_ = int64_t(b.output_rows.size());
  if (rows_ > max_rows_)
    throw Error(Cause::invalid_argument, "batch of " + std::to_string(rows_) + " rows, prepared for " + std::to_string(max_rows_));
  int32_t* to = inputs_.data<int32_t>();
  for (const auto& values : {b.tokens, b.positions, b.slots, b.output_rows}) std::copy(values.begin(), values.end(), to), to += max_rows_;
  runs_.clear();  // rows of one slot at consecutive positions
  for (size_t r = 0; r < b.tokens.size(); r++) {
    const bool joins =
        r > 0 && b.slots[r] == b.slots[r - 1] && b.positions[r] == b.positions[r - 1] + 1 && runs_.back().count < kRunQueries;
    if (joins)
      runs_.back().count++;
    else
      runs_.push_back({uint32_t(r), 1});
  }
  std::copy(runs_.begin(), runs_.end(), reinterpret_cast<Run*>(to));
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
      return moe_.run(op.moe_op, source(op.moe_op.in), rows_);
    case Op::delta_net:  // refused above
      return;
  }
}

void MetalProgram::encode(const EmbedOp& op) {
  const MetalMatrix& m = metal(op.matrix);
  EmbedArgs a{};
  a.n = uint32_t(m.n_in), a.scale = op.scale;
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

// Prompts in rows that follow each other; float activations attend row by row.
bool MetalProgram::attends_by_runs(const AttentionOp& op) const {
  return precision_ == Precision::int8 && !op.cache_f32 && op.shape.head_dim <= int(kMaxRunHeadDim) &&
         int64_t(runs_.size()) * kMinRunRows <= rows_;
}

uint32_t MetalProgram::attention_splits(const AttentionOp& op) const {
  if (rows_ > kFewRows) return 1;
  const uint32_t cores = w_.context->device->limits().cores;
  const int64_t wanted = (cores ? 4 * cores : kAttentionGroups) / (rows_ * row_groups(op.shape));
  const int64_t positions = op.window > 0 ? std::min(op.window, op.capacity) : op.capacity;
  return uint32_t(std::clamp<int64_t>(std::min<int64_t>(wanted, positions / kSplitPositions), 1, kMaxSplits));
}

MetalProgram::AttentionLaunch MetalProgram::prepare(const AttentionOp& op) const {
  const Bound nothing = w_.nothing().bound;
  AttentionLaunch l{{},
                    at(op.q),
                    at(op.k),
                    at(op.v),
                    memory_of(*op.k_cache).at(),
                    memory_of(*op.v_cache).at(),
                    at(op.out),
                    nothing,
                    nothing,
                    nothing,
                    op.sinks ? memory_of(*op.sinks).at() : nothing};
  AttentionArgs& a = l.args;
  const kernels::AttentionShape& s = op.shape;
  a.n_heads = uint32_t(s.n_heads), a.n_kv_heads = uint32_t(s.n_kv_heads), a.head_dim = uint32_t(s.head_dim);
  a.capacity = uint32_t(op.capacity), a.window = uint32_t(op.window), a.splits = 1, a.scale = s.scale, a.soft_cap = s.soft_cap;
  for (const Angles& t : tables_) {
    if (!op.rope.inv_freq || !same_table(t.table, op.rope)) continue;
    l.cos = angles_.at(t.cos * 4), l.sin = angles_.at(t.sin * 4);
    a.rope_dims = uint32_t(op.rope.dims), a.flags |= kRope | (op.rope.pairs ? kRopePairs : 0u);
  }
  for (const Growth& g : growths_)
    if (op.growth.beta != 0 && same_growth(g.growth, op.growth)) l.growth = angles_.at(g.factors * 4), a.flags |= kGrowth;
  if (op.sinks) a.flags |= kSinks;
  return l;
}

void MetalProgram::encode(const AttentionOp& op) {
  AttentionLaunch l = prepare(op);
  if (op.k_bits > 0)
    attend_coded(op, l);
  else
    attend(op, l);
}

void MetalProgram::attend(const AttentionOp& op, AttentionLaunch& l) {
  AttentionArgs& a = l.args;
  const std::string type = op.cache_f32 ? "f32" : "f16";
  launch(*w_.context, "store_keys_" + type, a, {l.q, l.k, l.v, l.k_cache, l.v_cache, l.cos, l.sin, positions_, slots_, l.growth},
         {a.n_heads + a.n_kv_heads, uint32_t(rows_)}, 32);
  if (attends_by_runs(op))
    return launch(*w_.context, a.head_dim <= 64 ? "attend_runs_64" : "attend_runs_128", a,
                  {l.q, l.k_cache, l.v_cache, positions_, slots_, l.out, runs_at_, l.sinks}, {a.n_heads, uint32_t(runs_.size())},
                  kRunThreads);
  a.splits = attention_splits(op);
  launch(*w_.context, "attend_rows_" + type + "_d" + std::to_string(head_blocks(a.head_dim)), a,
         {l.q, l.k_cache, l.v_cache, positions_, slots_, l.out, w_.states.at(), l.sinks},
         {a.splits, uint32_t(row_groups(op.shape)), uint32_t(rows_)}, kAttentionThreads);
  if (a.splits > 1) launch(*w_.context, "attend_merge", a, {w_.states.at(), l.out, l.sinks}, {a.n_heads, uint32_t(rows_)}, 32);
}

// Row by row, in fixed spans of positions: what a row gives does not depend on its batch.
void MetalProgram::attend_coded(const AttentionOp& op, const AttentionLaunch& l) {
  const Rotation& rotation = *rotations_.at(op.shape.head_dim);
  CodedArgs c{};
  c.attention = l.args, c.rotation = rotation.args, c.k_bits = uint32_t(op.k_bits), c.v_bits = uint32_t(op.v_bits);
  c.attention.splits = uint32_t(spans_of(op.capacity));
  const uint32_t heads = l.args.n_heads, kv_heads = l.args.n_kv_heads, queries = heads == kv_heads ? 1 : 4;
  launch(*w_.context, "store_codes", c,
         {l.q, l.k, l.v, l.k_cache, l.v_cache, l.cos, l.sin, positions_, slots_, l.growth, rotation.signs(), rotation.hartley(),
          w_.q_codes.at(), w_.q_scale.at()},
         {heads + 2 * kv_heads, uint32_t(rows_)}, 32);
  const int32_t* positions = inputs_.data<int32_t>() + max_rows_;
  const int64_t at_once = coded_rows(op), last = *std::max_element(positions, positions + rows_);
  for (int64_t first = 0; first < rows_; first += at_once) {
    const auto rows = uint32_t(std::min(at_once, rows_ - first));
    c.first_row = uint32_t(first);
    launch(*w_.context, "attend_coded_n" + std::to_string(queries), c,
           {w_.q_codes.at(), w_.q_scale.at(), l.k_cache, l.v_cache, positions_, slots_, w_.states.at()},
           {uint32_t(spans_of(last)), kv_heads * pieces(heads / kv_heads, queries), rows}, kCodedThreads);
    launch(*w_.context, "finish_coded", c,
           {l.q, l.k, l.v, positions_, w_.states.at(), l.sinks, rotation.signs(), rotation.hartley(), l.out}, {heads, rows}, kCodedThreads);
  }
}

}  // namespace tq::metal
