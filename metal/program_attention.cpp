// Attention of a program: which kernels, and in how many pieces.
#include "format/cache.h"
#include "program.h"

namespace tq::metal {
namespace {

using namespace metal_args;

constexpr int64_t kMinRunRows = 16;       // prompts in shorter runs attend row by row
constexpr int64_t kFewRows = 32;          // up to this many rows, positions are split among thread-groups
constexpr int64_t kSplitPositions = 64;   // of a range, at least
constexpr int64_t kAttentionGroups = 80;  // thread-groups that fill a GPU, where it does not say how many cores it has

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

}  // namespace

void MetalProgram::reserve_attention(const AttentionOp& op) {
  const int64_t dim = op.shape.head_dim;
  if (!op.k.buffer && op.k_bits > 0) unsupported("layers that share keys and values keep numbers, no codes");
  if (dim > int64_t(kMaxHeadDim)) unsupported("head size " + std::to_string(dim) + " is above " + std::to_string(kMaxHeadDim));
  const int64_t state = op.shape.n_heads * (dim + 2) * 4;
  if (op.k_bits == 0) return w_.states.reserve(std::min(max_rows_, kFewRows) * int64_t(kMaxSplits) * state);
  w_.states.reserve(std::min(max_rows_, coded_rows(op)) * spans_of(op.capacity) * state);
  w_.q_codes.reserve(max_rows_ * op.shape.n_heads * tqn::cache::padded(dim));
  w_.q_scale.reserve(max_rows_ * op.shape.n_heads * 4);
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
                    op.k.buffer ? at(op.k) : nothing,
                    op.k.buffer ? at(op.v) : nothing,
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
         {a.n_heads + (op.k.buffer ? a.n_kv_heads : 0), uint32_t(rows_)}, 32);  // without keys: queries alone
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
  c.attention.flags |= (op.key_mean ? kKeyMean : 0u) | (op.key_balance ? kKeyBalance : 0u);
  const Bound nothing = w_.nothing().bound;
  const uint32_t heads = l.args.n_heads, kv_heads = l.args.n_kv_heads, queries = heads == kv_heads ? 1 : 4;
  launch(*w_.context, "store_codes", c,
         {l.q, l.k, l.v, l.k_cache, l.v_cache, l.cos, l.sin, positions_, slots_, l.growth, rotation.signs(), rotation.hartley(),
          w_.q_codes.at(), w_.q_scale.at(), op.key_mean ? memory_of(*op.key_mean).at() : nothing,
          op.key_balance ? memory_of(*op.key_balance).at() : nothing},
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
