#include "model/graph.h"

#include <algorithm>
#include <cmath>

#include "common/error.h"

namespace tq {
namespace {

Op linear_op(const LinearInput& in, std::vector<LinearOutput> out) {
  Op op{.kind = Op::linear};
  op.linear_op = {in, std::move(out), false};
  return op;
}

// A buffer as a plane of rows as wide as a matrix's output.
LinearOutput output(const MatrixPtr& matrix, const BufferPtr& y, const BufferPtr& bias = nullptr) {
  return {.matrix = matrix.get(), .y = {y.get(), matrix->n_out}, .bias = bias.get()};
}

LinearInput normed(const Plane& x, const BufferPtr& weight, float eps) {
  if (!weight) return {.x = x};
  return {.kind = LinearInput::rms_norm, .x = x, .weight = weight.get(), .eps = eps};
}

Plane stream(const Graph& g) { return {g.planes.x.get(), g.config.n_embd}; }

// y = scale * (y + alpha * RMS norm of x)
void add_normed(std::vector<Op>& ops, const Graph& g, const Plane& x, const BufferPtr& weight, const Plane& y, float alpha, float scale) {
  Op op{.kind = Op::add_norm};
  op.add_norm_op = {.x = x, .y = y, .weight = weight.get(), .eps = g.config.norm_eps, .alpha = alpha, .scale = scale};
  ops.push_back(op);
}

// A branch's last matrix adds to the residual stream, or, where a post norm follows, writes a plane that is then normed and added.
void add_branch(std::vector<Op>& ops, const Graph& g, const LinearInput& in, const MatrixPtr& matrix, const BufferPtr& bias,
                const BufferPtr& post_norm, float scale = 1) {
  const Config& c = g.config;
  LinearOutput out = output(matrix, post_norm ? g.planes.branch : g.planes.x, bias);
  if (!post_norm) out.alpha = c.residual_scale, out.add = true;
  ops.push_back(linear_op(in, {out}));
  if (!post_norm) return;
  add_normed(ops, g, out.y, post_norm, stream(g), c.residual_scale, scale);
}

void add_qk_norm(std::vector<Op>& ops, const Graph& g, const AttentionConfig& a, const Plane& x, const BufferPtr& weight, int heads) {
  if (!weight) return;
  Op norm{.kind = Op::norm};
  norm.norm_op = {.x = x, .groups = a.qk_norm == QkNorm::per_head ? heads : 1, .weight = weight.get(), .eps = g.config.norm_eps, .y = x};
  ops.push_back(norm);
}

AttentionOp attention_op(const Graph& g, const AttentionConfig& a, const AttentionWeights& w, const LayerState& state) {
  const Planes& p = g.planes;
  const RopeFrequencies& rope = w.rope;
  const bool long_context = rope.long_context && g.n_ctx > a.rope.original_ctx;
  AttentionOp op{.q = {p.q.get(), a.q_width()},
                 .k = {a.kv_layer < 0 ? p.k.get() : nullptr, a.kv_width()},
                 .v = {a.kv_layer < 0 ? p.v.get() : nullptr, a.kv_width()},
                 .out = {p.attended.get(), a.q_width()}};
  op.rope = {(long_context ? rope.long_context : rope.common).get(), a.rope.dims, a.rope.magnitude, a.rope.pairs};
  op.shape = {a.n_heads, a.n_kv_heads, a.head_dim, a.scale, a.soft_cap};
  op.growth = a.growth;
  op.sinks = w.sinks.get();
  op.window = a.window;
  op.k_cache = state.k_cache().get(), op.v_cache = state.v_cache().get();
  const auto& shape = std::get<AttentionState>(state.shape());
  op.cache_f32 = shape.k.type == CacheElement::f32;
  op.k_bits = bits_of(shape.k.type), op.v_bits = bits_of(shape.v.type);
  if (op.k_bits > 0) op.key_mean = w.key_mean.get(), op.key_balance = w.key_balance.get();
  op.capacity = g.n_ctx;
  return op;
}

void add_mixer(std::vector<Op>& ops, const Graph& g, const Layer& layer, const AttentionConfig& a, const LayerState& state) {
  const auto& w = std::get<AttentionWeights>(layer.mixer);
  const Planes& p = g.planes;
  std::vector<LinearOutput> products{output(w.q, p.q, w.q_bias)};
  if (w.k) products.push_back(output(w.k, p.k, w.k_bias));
  if (w.v) products.push_back(output(w.v, p.v, w.v_bias));
  if (a.output_gate) products.push_back(output(w.gate, p.output_gate, w.gate_bias));
  ops.push_back(linear_op(normed(stream(g), layer.mixer_norm, g.config.norm_eps), std::move(products)));
  Op attention{.kind = Op::attention};
  attention.attention_op = attention_op(g, a, w, state);
  if (a.norm_values && a.kv_layer < 0) {
    const AttentionOp& op = attention.attention_op;
    Op norm{.kind = Op::norm};
    norm.norm_op = {.x = w.v ? op.v : op.k, .groups = a.n_kv_heads, .eps = g.config.norm_eps, .y = op.v};
    ops.push_back(norm);
  }
  add_qk_norm(ops, g, a, attention.attention_op.q, w.q_norm, a.n_heads);
  add_qk_norm(ops, g, a, attention.attention_op.k, w.k_norm, a.n_kv_heads);
  ops.push_back(attention);
  LinearInput heads{.x = attention.attention_op.out};
  if (a.output_gate)
    heads = {.kind = LinearInput::gated, .x = {p.output_gate.get(), a.q_width()}, .up = heads.x, .activation = GatedActivation::sigmoid};
  add_branch(ops, g, heads, w.o, w.o_bias, layer.mixer_post_norm);
}

void add_mixer(std::vector<Op>& ops, const Graph& g, const Layer& layer, const DeltaNetConfig& d, const LayerState& state) {
  const auto& w = std::get<DeltaNetLayerWeights>(layer.mixer);
  const Planes& p = g.planes;
  ops.push_back(linear_op(normed(stream(g), layer.mixer_norm, g.config.norm_eps),
                          {output(w.qkv, p.q), output(w.gate, p.output_gate), output(w.alpha, p.alpha), output(w.beta, p.beta)}));
  const Plane heads{p.attended.get(), d.value_width()};
  Op delta{.kind = Op::delta_net};
  delta.delta_net_op = {.shape = d,
                        .qkv = {p.q.get(), d.conv_width()},
                        .alpha = {p.alpha.get(), d.n_value_heads},
                        .beta = {p.beta.get(), d.n_value_heads},
                        .conv = w.conv.get(),
                        .rate = w.rate.get(),
                        .dt_bias = w.dt_bias.get(),
                        .state = state.recurrent().get(),
                        .convolved = {p.convolved.get(), d.conv_width()},
                        .out = heads};
  ops.push_back(delta);
  Op norm{.kind = Op::norm};
  norm.norm_op = {.x = heads, .groups = d.n_value_heads, .weight = w.norm.get(), .eps = g.config.norm_eps, .y = heads};
  ops.push_back(norm);
  add_branch(ops, g, {.kind = LinearInput::gated, .x = {p.output_gate.get(), d.value_width()}, .up = heads}, w.out, nullptr,
             layer.mixer_post_norm);
}

// What a mixture adds to `y`, but for its input.
MoeOp moe_op(const ExpertsWeights& w, const ExpertsConfig& e, float alpha, const Plane& y) {
  MoeOp moe;
  moe.router = w.router.get();
  for (const GatedWeights& expert : w.experts) {
    moe.gate.push_back(expert.gate.get()), moe.up.push_back(expert.up.get());
    moe.down.push_back(expert.down.get());
  }
  moe.shared_router = w.shared_router.get(), moe.shared_gate = w.shared.gate.get();
  moe.shared_up = w.shared.up.get(), moe.shared_down = w.shared.down.get();
  moe.router_bias = w.router_bias.get(), moe.gate_bias = w.gate_bias.get();
  moe.up_bias = w.up_bias.get(), moe.down_bias = w.down_bias.get();
  moe.top_k = e.n_used, moe.normalize = e.normalize;
  moe.activation = e.activation, moe.alpha = alpha, moe.y = y;
  return moe;
}

// gate and up of a gated feed-forward; returns what its down reads.
LinearInput add_gate(std::vector<Op>& ops, const Graph& g, const Layer& layer, const GatedWeights& w, const GatedConfig& f) {
  const LinearOutput gate = output(w.gate, g.planes.gate), up = output(w.up, g.planes.up);
  ops.push_back(linear_op(normed(stream(g), layer.ffn_norm, g.config.norm_eps), {gate, up}));
  return {.kind = LinearInput::gated, .x = gate.y, .up = up.y, .activation = f.activation};
}

// scale: of the stream behind it.
void add_feed_forward(std::vector<Op>& ops, const Graph& g, const Layer& layer, const ExpertsConfig& e, float) {
  Op op{.kind = Op::moe};
  op.moe_op = moe_op(std::get<ExpertsWeights>(layer.feed_forward), e, g.config.residual_scale, stream(g));
  op.moe_op.in = normed(stream(g), layer.ffn_norm, g.config.norm_eps);
  ops.push_back(op);
}

void add_feed_forward(std::vector<Op>& ops, const Graph& g, const Layer& layer, const GatedConfig& f, float scale) {
  const auto& w = std::get<GatedWeights>(layer.feed_forward);
  add_branch(ops, g, add_gate(ops, g, layer, w, f), w.down, nullptr, layer.ffn_post_norm, scale);
}

void add_feed_forward(std::vector<Op>& ops, const Graph& g, const Layer& layer, const ParallelConfig& f, float scale) {
  const Config& c = g.config;
  const auto& w = std::get<ParallelWeights>(layer.feed_forward);
  const Plane experts{g.planes.experts.get(), c.n_embd}, branch{g.planes.branch.get(), c.n_embd};
  Op moe{.kind = Op::moe};
  moe.moe_op = moe_op(w.experts, f.experts, 1, experts);
  moe.moe_op.in = normed(stream(g), w.experts_norm, c.norm_eps), moe.moe_op.add = false;
  moe.moe_op.router_in = {.kind = LinearInput::rms_norm, .x = stream(g), .eps = c.norm_eps};
  ops.push_back(moe);
  const LinearInput gated = add_gate(ops, g, layer, w.gated, f.gated);
  ops.push_back(linear_op(gated, {output(w.gated.down, g.planes.branch)}));
  Op norm{.kind = Op::norm};
  norm.norm_op = {.x = branch, .groups = 1, .weight = w.gated_post_norm.get(), .eps = c.norm_eps, .y = branch};
  ops.push_back(norm);
  add_normed(ops, g, experts, w.experts_post_norm, branch, 1, 1);
  add_normed(ops, g, branch, layer.ffn_post_norm, stream(g), c.residual_scale, scale);
}

void add_per_layer(std::vector<Op>& ops, const Graph& g, int64_t index, const Layer& layer) {
  const Config& c = g.config;
  const PerLayerWeights& w = layer.per_layer;
  const Plane own{g.planes.per_layer.get(), c.n_embd_layer}, projected{g.planes.projected.get(), c.n_embd_layer};
  const LinearOutput gate = output(w.gate, g.planes.gate);
  ops.push_back(linear_op({.x = stream(g)}, {gate}));
  Op embed{.kind = Op::embed};
  embed.embed_op = {w.embed.get(), own, float(std::sqrt(double(c.n_embd_layer))), index * c.n_embd_layer};
  ops.push_back(embed);
  LinearOutput project = output(w.project, g.planes.projected);
  project.alpha = float(1 / std::sqrt(double(c.n_embd)));
  ops.push_back(linear_op({.x = {g.planes.embedded.get(), c.n_embd}}, {project}));
  add_normed(ops, g, projected, w.project_norm, own, 1, float(std::sqrt(.5)));
  add_branch(ops, g, {.kind = LinearInput::gated, .x = gate.y, .up = own, .activation = GatedActivation::gelu_tanh}, w.expand, nullptr,
             w.post_norm, layer.scale);
}

// What the layers that run on a device need at most.
struct Widest {
  int64_t q = 0, kv = 0, heads = 0, output_gate = 0, n_ff = 0, convolved = 0, value_heads = 0;
  bool beside = false;  // a mixture beside a gated feed-forward
  void note(const AttentionConfig& a) {
    q = std::max(q, a.q_width()), kv = std::max(kv, a.kv_width()), heads = std::max(heads, a.q_width());
    if (a.output_gate) output_gate = std::max(output_gate, a.q_width());
  }
  void note(const DeltaNetConfig& d) {
    q = std::max(q, d.conv_width()), heads = std::max(heads, d.value_width()), output_gate = std::max(output_gate, d.value_width());
    convolved = std::max(convolved, d.conv_width()), value_heads = std::max<int64_t>(value_heads, d.n_value_heads);
  }
  void note(const GatedConfig& f) { n_ff = std::max(n_ff, f.n_ff); }
  void note(const ExpertsConfig&) {}
  void note(const ParallelConfig& f) { note(f.gated), beside = true; }
};

}  // namespace

int64_t Planes::bytes() const {
  int64_t total = 0;
  for (const BufferPtr* buffer : {&x, &embedded, &per_layer, &projected, &experts, &q, &k, &v, &attended, &output_gate, &alpha, &beta,
                                  &convolved, &gate, &up, &branch, &hidden, &logits, &best})
    if (*buffer) total += (*buffer)->bytes;
  return total;
}

BufferPtr allocate_plane(Backend& backend, int64_t rows, int64_t width) {
  return width > 0 ? backend.allocate(rows * width * int64_t(sizeof(float))) : nullptr;
}

// The planes of the layers [first, last), but for those of logits, and how wide each is; 0: there is none.
static std::vector<std::pair<BufferPtr Planes::*, int64_t>> plane_widths(const Config& c, int64_t first, int64_t last) {
  Widest widest{.n_ff = c.n_embd_layer};
  for (int64_t i = first; i < last; i++) {
    const LayerConfig& layer = c.layers[size_t(i)];
    std::visit([&](const auto& part) { widest.note(part); }, layer.mixer);
    std::visit([&](const auto& part) { widest.note(part); }, layer.feed_forward);
  }
  return {{&Planes::x, c.n_embd},
          {&Planes::q, widest.q},
          {&Planes::k, widest.kv},
          {&Planes::v, widest.kv},
          {&Planes::attended, widest.heads},
          {&Planes::output_gate, widest.output_gate},
          {&Planes::convolved, widest.convolved},
          {&Planes::alpha, widest.value_heads},
          {&Planes::beta, widest.value_heads},
          {&Planes::gate, widest.n_ff},
          {&Planes::up, widest.n_ff},
          {&Planes::branch, c.post_norms ? c.n_embd : 0},
          {&Planes::experts, widest.beside ? c.n_embd : 0},
          {&Planes::embedded, c.n_embd_layer > 0 ? c.n_embd : 0},
          {&Planes::per_layer, c.n_embd_layer},
          {&Planes::projected, c.n_embd_layer}};
}

int64_t plane_floats(const Config& c) {
  int64_t total = 0;
  for (const auto& [plane, width] : plane_widths(c, 0, c.n_layers())) total += width;
  return total;
}

Planes allocate_planes(Backend& backend, const Config& c, const PlaneNeeds& needs) {
  Planes p;
  for (const auto& [plane, width] : plane_widths(c, needs.first_layer, needs.last_layer))
    p.*plane = allocate_plane(backend, needs.rows, width);
  if (needs.logit_rows == 0) return p;
  p.logits = allocate_plane(backend, needs.logit_rows, c.n_vocab);
  p.best = backend.allocate(needs.logit_rows * kMaxCandidates * int64_t(sizeof(Candidate)));
  return p;
}

CacheElements elements_of(CacheType type) {
  switch (type) {
    case CacheType::automatic:
    case CacheType::f16:
      return {CacheElement::f16, CacheElement::f16};
    case CacheType::f32:
      return {CacheElement::f32, CacheElement::f32};
    case CacheType::k8v8:
      return {CacheElement::q8, CacheElement::q8};
    case CacheType::k8v4:
      return {CacheElement::q8, CacheElement::q4};
    case CacheType::k4v8:
      return {CacheElement::q4, CacheElement::q8};
    case CacheType::k4v4:
      return {CacheElement::q4, CacheElement::q4};
  }
  throw Error(Cause::invalid_argument, "cache type " + std::to_string(int(type)));
}

CacheElements cache_elements(const Model& model, CacheType type) {
  bool can_float = true, can_code = true;
  for (const Part& part : model.parts()) {
    can_float = can_float && part.backend->has_f32_cache();
    can_code = can_code && part.backend->has_coded_cache();
  }
  if (type == CacheType::automatic && can_float && model.precision() == Precision::f32) type = CacheType::f32;
  const CacheElements elements = elements_of(type);
  if (elements.k == CacheElement::f32 && !can_float) throw Error(Cause::unsupported, "a float32 cache on " + model.backend_names());
  if (bits_of(elements.k) && !can_code) throw Error(Cause::unsupported, "a quantized cache on " + model.backend_names());
  return elements;
}

void add_embedding(std::vector<Op>& ops, const Graph& g) {
  Op op{.kind = Op::embed};
  op.embed_op = {g.weights.embed.get(), stream(g), g.config.embed_scale};
  ops.push_back(op);
}

void add_first_stream(std::vector<Op>& ops, const Graph& g) {
  add_embedding(ops, g);
  ops.back().embed_op.y.buffer = g.planes.embedded.get();
}

void add_layer(std::vector<Op>& ops, const Graph& g, int64_t layer, const LayerState& state) {
  const LayerConfig& c = g.config.layers[size_t(layer)];
  const Layer& w = g.weights.layers[size_t(layer)];
  std::visit([&](const auto& mixer) { add_mixer(ops, g, w, mixer, state); }, c.mixer);
  const bool more = g.config.n_embd_layer > 0;
  std::visit([&](const auto& feed_forward) { add_feed_forward(ops, g, w, feed_forward, more ? 1 : w.scale); }, c.feed_forward);
  if (more) add_per_layer(ops, g, layer, w);
}

void add_output(std::vector<Op>& ops, const Graph& g) {
  const Config& c = g.config;
  LinearOutput logits = output(g.weights.output, g.planes.logits);
  logits.alpha = c.logit_scale;
  ops.push_back(linear_op(normed(stream(g), g.weights.output_norm, c.norm_eps), {logits}));
  ops.back().linear_op.logits = true;
  if (c.logit_soft_cap <= 0) return;
  Op cap{.kind = Op::soft_cap};
  cap.soft_cap_op = {logits.y, c.logit_soft_cap};
  ops.push_back(cap);
}

void add_best(std::vector<Op>& ops, const Graph& g) {
  Op op{.kind = Op::top};
  op.top_op = {.x = {g.planes.logits.get(), g.config.n_vocab}, .k = kMaxCandidates, .best = g.planes.best.get()};
  ops.push_back(op);
}

void add_hidden(std::vector<Op>& ops, const Graph& g) {
  Op op{.kind = Op::norm};
  op.norm_op = {.x = stream(g),
                .groups = 1,
                .weight = g.weights.output_norm.get(),
                .eps = g.config.norm_eps,
                .y = {g.planes.hidden.get(), g.config.n_embd}};
  ops.push_back(op);
}

}  // namespace tq
