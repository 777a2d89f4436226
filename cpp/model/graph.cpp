#include "model/graph.h"

#include "common/error.h"

namespace tq {
namespace {

Op linear_op(const LinearInput& in, std::vector<LinearOutput> out) {
  Op op{.kind = Op::linear};
  op.linear_op = {in, std::move(out), false};
  return op;
}

LinearOutput output(const MatrixPtr& matrix, const Plane& y, const BufferPtr& bias = nullptr) {
  return {.matrix = matrix.get(), .y = y, .bias = bias.get()};
}

LinearInput normed(const Plane& x, const BufferPtr& weight, float eps) {
  if (!weight) return {.x = x};
  return {.kind = LinearInput::rms_norm, .x = x, .weight = weight.get(), .eps = eps};
}

// A branch's last matrix adds to the residual stream, or, where a post norm follows, writes a plane that is then normed and added.
void add_branch(std::vector<Op>& ops, const Config& c, const Planes& p, const LinearInput& in, LinearOutput out,
                const BufferPtr& post_norm) {
  if (!post_norm) {
    out.y = p.x, out.alpha = c.residual_scale, out.add = true;
    ops.push_back(linear_op(in, {out}));
    return;
  }
  out.y = p.branch;
  ops.push_back(linear_op(in, {out}));
  Op norm{.kind = Op::add_norm};
  norm.add_norm_op = {.x = p.branch, .y = p.x, .weight = post_norm.get(), .eps = c.norm_eps, .alpha = c.residual_scale};
  ops.push_back(norm);
}

void add_head_norm(std::vector<Op>& ops, const Config& c, const Plane& x, const BufferPtr& weight, int heads) {
  if (!weight) return;
  Op norm{.kind = Op::norm};
  norm.norm_op = {.x = x, .groups = c.qk_norm == QkNorm::per_head ? heads : 1, .weight = weight.get(), .eps = c.norm_eps, .y = x};
  ops.push_back(norm);
}

AttentionOp attention_op(const Config& c, const Weights& w, const Planes& p, int64_t layer) {
  const RopeFrequencies& rope = w.layers[size_t(layer)].rope;
  const bool windowed = c.layer_is_windowed(layer), long_context = rope.long_context && p.capacity > c.rope_original_ctx;
  const BufferPtr& inv_freq = windowed && rope.local ? rope.local : long_context ? rope.long_context : rope.common;
  AttentionOp op{.q = p.q, .k = p.k, .v = p.v, .out = p.attn};
  op.rope = {inv_freq.get(), c.rope_dims, c.rope_magnitude, c.rope_pairs};
  op.shape = {c.n_heads, c.n_kv_heads, c.head_dim, c.attention_scale, c.attention_soft_cap};
  op.window = windowed ? c.window : 0;
  op.k_cache = p.k_cache[size_t(layer)].get(), op.v_cache = p.v_cache[size_t(layer)].get();
  op.capacity = p.capacity, op.cache_f32 = p.cache_f32;
  return op;
}

void add_attention(std::vector<Op>& ops, const Config& c, const Weights& w, const Planes& p, int64_t layer) {
  const Layer& l = w.layers[size_t(layer)];
  ops.push_back(linear_op(normed(p.x, l.attn_norm, c.norm_eps),
                          {output(l.q, p.q, l.q_bias), output(l.k, p.k, l.k_bias), output(l.v, p.v, l.v_bias)}));
  add_head_norm(ops, c, p.q, l.q_norm, c.n_heads);
  add_head_norm(ops, c, p.k, l.k_norm, c.n_kv_heads);
  Op attention{.kind = Op::attention};
  attention.attention_op = attention_op(c, w, p, layer);
  ops.push_back(attention);
  add_branch(ops, c, p, {.x = p.attn}, output(l.o, {}, l.o_bias), l.attn_post_norm);
}

void add_experts(std::vector<Op>& ops, const Config& c, const Layer& l, const Planes& p) {
  Op op{.kind = Op::moe};
  MoeOp& moe = op.moe_op;
  moe.in = normed(p.x, l.ffn_norm, c.norm_eps);
  moe.router = l.router.get();
  for (const MatrixPtr& m : l.expert_gate) moe.gate.push_back(m.get());
  for (const MatrixPtr& m : l.expert_up) moe.up.push_back(m.get());
  for (const MatrixPtr& m : l.expert_down) moe.down.push_back(m.get());
  moe.shared_router = l.shared_router.get(), moe.shared_gate = l.shared_gate.get();
  moe.shared_up = l.shared_up.get(), moe.shared_down = l.shared_down.get();
  moe.top_k = c.n_experts_used, moe.normalize = c.normalize_expert_weights;
  moe.activation = c.activation, moe.alpha = c.residual_scale, moe.y = p.x;
  ops.push_back(op);
}

void add_feed_forward(std::vector<Op>& ops, const Config& c, const Layer& l, const Planes& p) {
  ops.push_back(linear_op(normed(p.x, l.ffn_norm, c.norm_eps), {output(l.gate, p.gate), output(l.up, p.up)}));
  const LinearInput gated{.kind = LinearInput::gated, .x = p.gate, .up = p.up, .activation = c.activation};
  add_branch(ops, c, p, gated, output(l.down, {}), l.ffn_post_norm);
}

}  // namespace

bool use_f32_cache(const Model& model, CacheType type) {
  bool can = true;
  for (const Part& part : model.parts()) can = can && part.backend->has_f32_cache();
  if (type == CacheType::f32 && !can) throw Error(Cause::unsupported, "a float32 cache on " + model.backend_names());
  return type == CacheType::f32 || (type == CacheType::automatic && can && model.precision() == Precision::f32);
}

void add_embedding(std::vector<Op>& ops, const Config& c, const Weights& w, const Planes& p) {
  Op op{.kind = Op::embed};
  op.embed_op = {w.embed.get(), p.x, c.embed_scale};
  ops.push_back(op);
}

void add_layer(std::vector<Op>& ops, const Config& c, const Weights& w, const Planes& p, int64_t layer) {
  add_attention(ops, c, w, p, layer);
  if (c.n_experts > 0)
    add_experts(ops, c, w.layers[size_t(layer)], p);
  else
    add_feed_forward(ops, c, w.layers[size_t(layer)], p);
}

void add_output(std::vector<Op>& ops, const Config& c, const Weights& w, const Planes& p) {
  LinearOutput logits = output(w.output, p.logits);
  logits.alpha = c.logit_scale;
  ops.push_back(linear_op(normed(p.x, w.output_norm, c.norm_eps), {logits}));
  ops.back().linear_op.logits = true;
  if (c.logit_soft_cap <= 0) return;
  Op cap{.kind = Op::soft_cap};
  cap.soft_cap_op = {p.logits, c.logit_soft_cap};
  ops.push_back(cap);
}

void add_best(std::vector<Op>& ops, const Planes& p) {
  Op op{.kind = Op::top};
  op.top_op = {.x = p.logits, .k = kMaxCandidates, .best = p.best};
  ops.push_back(op);
}

void add_hidden(std::vector<Op>& ops, const Config& c, const Weights& w, const Planes& p) {
  Op op{.kind = Op::norm};
  op.norm_op = {.x = p.x, .groups = 1, .weight = w.output_norm.get(), .eps = c.norm_eps, .y = p.hidden};
  ops.push_back(op);
}

}  // namespace tq
