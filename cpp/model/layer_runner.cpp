#include "model/layer_runner.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "backend/routing.h"
#include "common/error.h"
#include "format/matrix.h"
#include "model/graph.h"

namespace tq {
namespace {

constexpr int64_t kPassRows = 512;  // windows shorter than this share a pass
constexpr int64_t kLogitRows = 64;

void check_size(const char* what, size_t size, size_t unit) {
  if (unit == 0 || size % unit != 0)
    throw Error(Cause::invalid_argument,
                std::string(what) + ": " + std::to_string(size) + " values are no multiple of " + std::to_string(unit));
}

}  // namespace

struct LayerRunner::Impl {
  Impl(std::shared_ptr<Model> shared, int64_t seq) : model(std::move(shared)), c(model->config()), w(model->weights()), seq_len(seq) {
    if (model->parts().size() > 1) throw Error(Cause::unsupported, "a layer runner over several devices: " + model->backend_names());
    if (seq_len < 1 || seq_len > (1 << 20)) throw Error(Cause::invalid_argument, "seq_len: " + std::to_string(seq_len));
    pass_rows = std::max<int64_t>(kPassRows / seq_len, 1) * seq_len;
    for (int32_t r = 0; r < pass_rows; r++)
      positions.push_back(int32_t(r % seq_len)), slots.push_back(int32_t(r / seq_len)), rows.push_back(r);
    planes = allocate_planes(backend(), c, {.first_layer = 0, .last_layer = c.n_layers(), .rows = pass_rows, .logit_rows = kLogitRows});
    name_matrices();
    place_extras();
  }

  void place_extras() {
    if (c.n_embd_layer > 0) token_at = row_width++;
    if (token_at >= 0 && c.n_vocab >= (int64_t(1) << 24))
      throw Error(Cause::unsupported, "a layer runner with per-layer embeddings of " + std::to_string(c.n_vocab) + " tokens");
    for (int64_t layer = 0; layer < c.n_layers(); layer++) {
      const auto* a = std::get_if<AttentionConfig>(&c.layers[size_t(layer)].mixer);
      if (a && a->kv_shared) keys_at[layer] = row_width, row_width += 2 * a->kv_width();
    }
  }

  Backend& backend() const { return *model->parts()[0].backend; }

  Graph graph() const { return {c, w, planes, seq_len}; }
  Plane stream() const { return {planes.x.get(), c.n_embd}; }

  void note(MatrixPtr& m) {
    if (m) places[m->name].push_back(&m);
  }
  void note(GatedWeights& f) { note(f.gate), note(f.up), note(f.down); }
  void note(ExpertsWeights& e) {
    note(e.router), note(e.shared_router), note(e.shared);
    for (GatedWeights& expert : e.experts) note(expert);
  }
  void note(ParallelWeights& p) { note(p.gated), note(p.experts); }
  void note(PerLayerWeights& p) { note(p.project), note(p.gate), note(p.expand); }
  void note(AttentionWeights& a) { note(a.q), note(a.k), note(a.v), note(a.gate), note(a.o); }
  void note(DeltaNetLayerWeights& d) { note(d.qkv), note(d.gate), note(d.alpha), note(d.beta), note(d.out); }

  void name_matrices() {
    note(w.embed), note(w.output);
    for (Layer& l : w.layers) {
      std::visit([this](auto& mixer) { note(mixer); }, l.mixer);
      std::visit([this](auto& feed_forward) { note(feed_forward); }, l.feed_forward);
      note(l.per_layer);
    }
    for (const auto& [name, all] : places) originals[name] = *all[0];
  }

  void set_matrix(const std::string& name, std::span<const float> values) {
    const auto original = originals.find(name);
    if (original == originals.end()) throw Error(Cause::invalid_argument, "the model has no matrix \"" + name + "\"");
    MatrixPtr m = original->second;
    if (values.empty()) {
      replaced.erase(name);
    } else {
      if (values.size() != size_t(m->n_out) * size_t(m->n_in))
        throw Error(Cause::invalid_argument, name + ": " + std::to_string(values.size()) + " values, expected (" +
                                                 std::to_string(m->n_out) + ", " + std::to_string(m->n_in) + ")");
      std::vector<float>& copy = replaced[name];
      copy.assign(values.begin(), values.end());
      HostMatrix host{.name = name, .packed = false, .tqn = {}, .dense = {kernels::DType::f32, m->n_out, m->n_in, copy.data()}};
      m = backend().matrix(host);
      m->name = name;
    }
    for (MatrixPtr* place : places[name]) *place = m;
  }

  Batch batch(int64_t n) const {
    const auto first = [n](const std::vector<int32_t>& all) { return std::span<const int32_t>(all).first(size_t(n)); };
    return {first(rows), first(positions), first(slots), {}};
  }

  void run(std::vector<Op> ops, const Batch& b) { backend().run(*backend().prepare(std::move(ops), int64_t(b.tokens.size())), b); }

  void put(const Plane& to, const float* from, int64_t n) { backend().upload(*to.buffer, 0, from, n * to.width * int64_t(sizeof(float))); }
  std::vector<float> get(const Plane& from, int64_t n) const {
    std::vector<float> values(size_t(n * from.width));
    backend().download(*from.buffer, 0, values.data(), n * from.width * int64_t(sizeof(float)));
    return values;
  }

  // What the matrices of an operation see, in the original basis.
  std::vector<float> input_rows(const LinearInput& in, int64_t n) const {
    const kernels::Kernels& k = kernels::kernels();
    std::vector<float> x = get(in.x, n), extra;
    const int64_t width = in.x.width;
    if (in.kind == LinearInput::rms_norm) {
      extra = row_of(in.weight, 0, width);
      const float* weight = extra.empty() ? nullptr : extra.data();
      for (int64_t r = 0; r < n; r++) k.rms_norm(x.data() + r * width, weight, width, in.eps, x.data() + r * width);
    } else if (in.kind == LinearInput::gated) {
      extra = get(in.up, n);
      gated_kernel(k, in.activation)(x.data(), extra.data(), n * width, x.data());
    }
    return x;
  }

  // False: a tap wanted the rows left before the operation.
  bool run_tapped(const Op& op, const Batch& b, const Tap& tap) {
    const int64_t n = int64_t(b.tokens.size());
    if (op.kind == Op::moe) return run_experts(op.moe_op, b, tap);
    if (op.kind == Op::linear) {
      const LinearInput& in = op.linear_op.in;
      const std::string site = site_name(*op.linear_op.out[0].matrix);
      bool stop = in.kind == LinearInput::rms_norm && tap(site + "/residual", get(in.x, n).data(), n, in.x.width);
      stop |= tap(site, input_rows(in, n).data(), n, in.x.width);
      if (stop) return false;
    }
    run({op}, b);
    return true;
  }

  // y = W x for rows of x, through the backend.
  std::vector<float> product(Matrix* m, const std::vector<float>& x) {
    const int64_t n = int64_t(x.size()) / m->n_in;
    const BufferPtr in = backend().allocate(int64_t(x.size() * sizeof(float))),
                    out = backend().allocate(n * m->n_out * int64_t(sizeof(float)));
    Op op{.kind = Op::linear};
    op.linear_op = {{.x = {in.get(), m->n_in}}, {{.matrix = m, .y = {out.get(), m->n_out}}}, false};
    put({in.get(), m->n_in}, x.data(), n);
    run({op}, batch(n));
    return get({out.get(), m->n_out}, n);
  }

  // The mixture's operation taken apart, so that each expert's inputs can be seen: all of them, also when a tap says stop.
  bool run_experts(const MoeOp& moe, const Batch& b, const Tap& tap) {
    const int64_t n = int64_t(b.tokens.size()), width = moe.in.x.width;
    const std::vector<float> x = input_rows(moe.in, n);
    const std::vector<float> routed = moe.router_in.x.buffer ? input_rows(moe.router_in, n) : x;
    std::vector<float> y = moe.add ? get(moe.y, n) : std::vector<float>(size_t(n * moe.y.width));
    bool stop = false;
    const Tap seen = [&](const std::string& site, const float* rows, int64_t count, int64_t columns) {
      return stop |= tap(site, rows, count, columns);
    };
    seen(site_name(*moe.router), routed.data(), n, width);
    std::vector<float> logits = product(moe.router, routed);
    add_bias(logits, row_of(moe.router_bias, 0, moe.router->n_out));
    std::vector<int32_t> experts(size_t(n * moe.top_k));
    std::vector<float> weights(experts.size());
    for (int64_t r = 0; r < n; r++)
      choose_experts(&logits[size_t(r * moe.router->n_out)], moe.router->n_out, moe.top_k, moe.normalize, &experts[size_t(r * moe.top_k)],
                     &weights[size_t(r * moe.top_k)]);
    for (size_t e = 0; e < moe.gate.size(); e++) {
      std::vector<Assignment> assigned;
      for (size_t i = 0; i < experts.size(); i++)
        if (experts[i] == int32_t(e)) assigned.push_back({int64_t(i) / moe.top_k, weights[i] * moe.alpha});
      const Expert expert{.gate = moe.gate[e],
                          .up = moe.up[e],
                          .down = moe.down[e],
                          .gate_bias = row_of(moe.gate_bias, e, moe.gate[e]->n_out),
                          .up_bias = row_of(moe.up_bias, e, moe.up[e]->n_out),
                          .down_bias = row_of(moe.down_bias, e, moe.down[e]->n_out)};
      run_expert(expert, moe.activation, assigned, x, y, seen);
    }
    if (moe.shared_gate) run_shared(moe, x, y, seen);
    if (!stop) put(moe.y, y.data(), n);
    return !stop;
  }

  struct Assignment {
    int64_t row;
    float weight;
  };
  struct Expert {
    Matrix *gate, *up, *down;
    std::vector<float> gate_bias{}, up_bias{}, down_bias{};  // empty: none
  };

  // A row of a table on the device; empty where there is none.
  std::vector<float> row_of(const Buffer* table, size_t row, int64_t width) const {
    std::vector<float> values(table ? size_t(width) : 0);
    const int64_t bytes = int64_t(values.size() * sizeof(float));
    if (table) backend().download(*table, int64_t(row) * bytes, values.data(), bytes);
    return values;
  }
  static void add_bias(std::vector<float>& rows, const std::vector<float>& bias) {
    for (size_t i = 0; !bias.empty() && i < rows.size(); i++) rows[i] += bias[i % bias.size()];
  }

  void run_shared(const MoeOp& moe, const std::vector<float>& x, std::vector<float>& y, const Tap& tap) {
    std::vector<Assignment> all;
    const std::vector<float> logits = moe.shared_router ? product(moe.shared_router, x) : std::vector<float>{};
    for (int64_t r = 0; r < int64_t(x.size()) / moe.in.x.width; r++)
      all.push_back({r, moe.alpha * (logits.empty() ? 1 : shared_expert_weight(logits[size_t(r)]))});
    run_expert({.gate = moe.shared_gate, .up = moe.shared_up, .down = moe.shared_down}, moe.activation, all, x, y, tap);
  }

  // y[row] += weight * expert(x[row]) for the rows assigned to it.
  void run_expert(const Expert& e, GatedActivation activation, const std::vector<Assignment>& assigned, const std::vector<float>& x,
                  std::vector<float>& y, const Tap& tap) {
    if (assigned.empty()) return;
    const kernels::Kernels& k = kernels::kernels();
    const int64_t n = int64_t(assigned.size()), n_in = e.gate->n_in, n_out = e.down->n_out;
    std::vector<float> mine;
    for (const Assignment& a : assigned) mine.insert(mine.end(), x.begin() + a.row * n_in, x.begin() + (a.row + 1) * n_in);
    tap(site_name(*e.gate), mine.data(), n, n_in);
    std::vector<float> hidden = product(e.gate, mine);
    std::vector<float> up = product(e.up, mine);
    add_bias(hidden, e.gate_bias), add_bias(up, e.up_bias);
    gated_kernel(k, activation)(hidden.data(), up.data(), int64_t(hidden.size()), hidden.data());
    tap(site_name(*e.down), hidden.data(), n, e.down->n_in);
    std::vector<float> out = product(e.down, hidden);
    add_bias(out, e.down_bias);
    for (int64_t i = 0; i < n; i++)
      k.add_scaled(&y[size_t(assigned[size_t(i)].row * n_out)], &out[size_t(i * n_out)], assigned[size_t(i)].weight, n_out);
  }

  // The operations of a layer. Layers run one at a time, so that only one has a state.
  std::vector<Op> layer_ops(int64_t layer) {
    const int64_t owner = kv_layer(c, layer);
    if (state_layer != owner) {
      state.reset();
      state.emplace(backend(), state_shape(c.layers[size_t(owner)], cache_elements(*model, CacheType::automatic)), pass_rows / seq_len,
                    seq_len);
      state_layer = owner;
    }
    std::vector<Op> ops;
    add_layer(ops, graph(), layer, *state);
    return ops;
  }

  std::vector<InputSite> sites(int64_t layer) {
    check_layer(layer);
    return tq::input_sites(layer_ops(layer), *planes.x);
  }

  void check_layer(int64_t layer) const {
    if (layer < 0 || layer >= c.n_layers())
      throw Error(Cause::invalid_argument, "layer " + std::to_string(layer) + " is not in 0 .. " + std::to_string(c.n_layers() - 1));
  }

  void run(LayerPass& pass, const Tap& tap, const HeadsTap& heads = {}) {
    const std::vector<Op> ops = layer_ops(pass.layer);
    for (size_t i = 0; i < pass.halts.size(); i++) {
      const int64_t at = int64_t(i) * pass_rows, n = std::min(pass_rows, int64_t(pass.hidden.size()) / row_width - at);
      float* rows = &pass.hidden[size_t(at * row_width)];
      LayerPass::Halt& halt = pass.halts[i];
      if (halt.op == ops.size()) continue;
      put_columns(rows, n);
      const std::vector<int32_t> tokens = tokens_of(rows, n);
      Batch b = batch(n);
      if (token_at >= 0) b.tokens = tokens, run(first_stream(), b);
      if (kv_layer(c, pass.layer) != pass.layer) put_keys(kv_layer(c, pass.layer), rows, n);
      const size_t before = halt.op;
      if (heads) show_heads(pass.layer, ops, halt, b, heads);
      go_on(ops, halt, b, tap);
      take_columns(rows, n);
      const auto attends = [](const Op& op) { return op.kind == Op::attention; };
      if (keys_at.contains(pass.layer) && std::any_of(ops.begin() + int64_t(before), ops.begin() + int64_t(halt.op), attends))
        take_keys(pass.layer, rows, n);
    }
  }

  // From the layer's begin to its attention.
  void show_heads(int64_t layer, const std::vector<Op>& ops, LayerPass::Halt& halt, const Batch& b, const HeadsTap& heads) {
    const auto at = std::find_if(ops.begin(), ops.end(), [](const Op& op) { return op.kind == Op::attention; });
    if (at == ops.end() || !at->attention_op.k.buffer) return;
    const AttentionOp& op = at->attention_op;
    const int64_t n = int64_t(b.tokens.size());
    run({ops.begin(), at}, b);
    heads({std::get<AttentionConfig>(c.layers[size_t(layer)].mixer), row_of(op.rope.inv_freq, 0, op.rope.dims / 2), get(op.q, n),
           get(op.k, n)});
    halt.op = size_t(at - ops.begin());
    for (const Plane& plane : planes_needed(std::span(ops).subspan(halt.op), planes)) halt.planes.push_back(get(plane, n));
  }

  void go_on(const std::vector<Op>& ops, LayerPass::Halt& halt, const Batch& b, const Tap& tap) {
    const int64_t n = int64_t(b.tokens.size());
    const auto needed = [&] { return planes_needed(std::span(ops).subspan(halt.op), planes); };
    if (halt.op > 0) {
      const std::vector<Plane> kept = needed();
      for (size_t i = 0; i < kept.size(); i++) put(kept[i], halt.planes[i].data(), n);
    }
    if (!tap) {
      run({ops.begin() + int64_t(halt.op), ops.end()}, b);
      halt = {ops.size(), {}};
      return;
    }
    while (halt.op < ops.size() && run_tapped(ops[halt.op], b, tap)) halt.op++;
    halt.planes.clear();
    if (halt.op == 0) return;  // everything is in the rows
    for (const Plane& plane : needed()) halt.planes.push_back(get(plane, n));
  }

  // --- rows

  void put_columns(const float* rows, int64_t n) {
    std::vector<float> x;
    for (int64_t r = 0; r < n; r++) x.insert(x.end(), rows + r * row_width, rows + r * row_width + c.n_embd);
    put(stream(), x.data(), n);
  }
  void take_columns(float* rows, int64_t n) const {
    const std::vector<float> x = get(stream(), n);
    for (int64_t r = 0; r < n; r++) std::copy_n(&x[size_t(r * c.n_embd)], c.n_embd, rows + r * row_width);
  }

  std::vector<int32_t> tokens_of(const float* rows, int64_t n) const {
    std::vector<int32_t> tokens;
    for (int64_t r = 0; token_at >= 0 && r < n; r++) {
      const float token = rows[r * row_width + token_at];
      if (!(token >= 0 && token < float(c.n_vocab)))
        throw Error(Cause::invalid_argument, "hidden: row " + std::to_string(r) + " has no token");
      tokens.push_back(int32_t(token));
    }
    return tokens;
  }
  std::vector<Op> first_stream() const {
    std::vector<Op> ops;
    add_first_stream(ops, graph());
    return ops;
  }

  // Calls f(element of a cache, column of a row's keys and values) for each.
  template <class F>
  void for_keys(int64_t layer, int64_t n, const F& f) const {
    const auto& a = std::get<AttentionConfig>(c.layers[size_t(layer)].mixer);
    for (int64_t r = 0; r < n; r++)
      for (int64_t head = 0; head < a.n_kv_heads; head++) {
        const int64_t at = ((slots[size_t(r)] * a.n_kv_heads + head) * seq_len + positions[size_t(r)]) * a.head_dim;
        for (int64_t d = 0; d < a.head_dim; d++) f(at + d, r * row_width + keys_at.at(layer) + head * a.head_dim + d);
      }
  }
  bool caches_floats() const { return std::get<AttentionState>(state->shape()).k.type == CacheElement::f32; }

  void take_keys(int64_t layer, float* rows, int64_t n) const {
    const int64_t width = std::get<AttentionConfig>(c.layers[size_t(layer)].mixer).kv_width();
    for (const BufferPtr& cache : {state->k_cache(), state->v_cache()}) {
      std::vector<uint8_t> bytes(size_t(cache->bytes));
      backend().download(*cache, 0, bytes.data(), cache->bytes);
      const auto* floats = reinterpret_cast<const float*>(bytes.data());
      const auto* halves = reinterpret_cast<const uint16_t*>(bytes.data());
      const bool wide = caches_floats();
      for_keys(layer, n, [&](int64_t from, int64_t to) { rows[to] = wide ? floats[from] : f16_to_f32(halves[from]); });
      rows += width;
    }
  }

  void put_keys(int64_t layer, const float* rows, int64_t n) {
    const int64_t width = std::get<AttentionConfig>(c.layers[size_t(layer)].mixer).kv_width();
    for (const BufferPtr& cache : {state->k_cache(), state->v_cache()}) {
      std::vector<uint8_t> bytes(size_t(cache->bytes));
      auto* floats = reinterpret_cast<float*>(bytes.data());
      auto* halves = reinterpret_cast<uint16_t*>(bytes.data());
      const bool wide = caches_floats();
      for_keys(layer, n, [&](int64_t to, int64_t from) {
        if (wide)
          floats[to] = rows[from];
        else
          halves[to] = f32_to_f16(rows[from]);
      });
      backend().upload(*cache, 0, bytes.data(), cache->bytes);
      rows += width;
    }
  }

  void embed(std::span<const int32_t> tokens, std::span<float> hidden) {
    for (const int32_t token : tokens)
      if (token < 0 || token >= c.n_vocab)
        throw Error(Cause::invalid_argument, "token " + std::to_string(token) + " is not in 0 .. " + std::to_string(c.n_vocab - 1));
    std::vector<Op> ops;
    add_embedding(ops, graph());
    for (int64_t at = 0, total = int64_t(tokens.size()); at < total; at += pass_rows) {
      const int64_t n = std::min(pass_rows, total - at);
      Batch b = batch(n);
      b.tokens = tokens.subspan(size_t(at), size_t(n));
      run(ops, b);
      float* rows = &hidden[size_t(at * row_width)];
      std::fill_n(rows, n * row_width, 0.f);
      take_columns(rows, n);
      for (int64_t r = 0; token_at >= 0 && r < n; r++) rows[r * row_width + token_at] = float(b.tokens[size_t(r)]);
    }
  }

  void head(std::span<const float> hidden, std::span<float> logits, const Tap& tap) {
    std::vector<Op> ops;
    add_output(ops, graph());
    const int64_t most = std::min(kLogitRows, pass_rows);
    for (int64_t at = 0, total = int64_t(hidden.size()) / row_width; at < total; at += most) {
      const int64_t n = std::min(most, total - at);
      put_columns(&hidden[size_t(at * row_width)], n);
      if (tap && tap("output", input_rows(ops[0].linear_op.in, n).data(), n, c.n_embd)) continue;
      Batch b = batch(n);
      b.output_rows = b.tokens;
      run(ops, b);
      backend().download(*planes.logits, 0, &logits[size_t(at * c.n_vocab)], n * c.n_vocab * int64_t(sizeof(float)));
    }
  }

  std::shared_ptr<Model> model;
  const Config& c;
  Weights w;  // the model's, or replaced
  int64_t seq_len, pass_rows = 0;
  int64_t row_width = c.n_embd;
  int64_t token_at = -1;                        // the token's column; -1: none
  std::map<int64_t, int64_t> keys_at;           // layer whose keys others share -> the first column of its keys, then values
  std::vector<int32_t> rows, positions, slots;  // of a full pass; rows 0, 1, ... stand in for tokens where none are read
  Planes planes;
  std::optional<LayerState> state;
  int64_t state_layer = -1;
  std::map<std::string, std::vector<MatrixPtr*>> places;  // where a matrix stands in w: twice when embedding and output are tied
  std::map<std::string, MatrixPtr> originals;
  std::map<std::string, std::vector<float>> replaced;
};

LayerRunner::LayerRunner(std::shared_ptr<Model> model, int64_t seq_len) : impl_(std::make_unique<Impl>(std::move(model), seq_len)) {}
LayerRunner::~LayerRunner() = default;
int64_t LayerRunner::seq_len() const { return impl_->seq_len; }
const Config& LayerRunner::config() const { return impl_->c; }
int64_t LayerRunner::row_width() const { return impl_->row_width; }
std::vector<InputSite> LayerRunner::input_sites(int64_t layer) const { return impl_->sites(layer); }
void LayerRunner::set_matrix(const std::string& name, std::span<const float> w) { impl_->set_matrix(name, w); }

void LayerRunner::embed(std::span<const int32_t> tokens, std::span<float> hidden) {
  check_size("tokens", tokens.size(), size_t(impl_->seq_len));
  if (hidden.size() != tokens.size() * size_t(impl_->row_width))
    throw Error(Cause::invalid_argument, "hidden: " + std::to_string(hidden.size()) + " values for " + std::to_string(tokens.size()) +
                                             " tokens of " + std::to_string(impl_->row_width));
  impl_->embed(tokens, hidden);
}

LayerPass LayerRunner::enter(int64_t layer, std::span<const float> hidden) const {
  impl_->check_layer(layer);
  check_size("hidden", hidden.size(), size_t(impl_->seq_len * impl_->row_width));
  const size_t together = size_t(impl_->pass_rows * impl_->row_width);
  return {layer, {hidden.begin(), hidden.end()}, std::vector<LayerPass::Halt>((hidden.size() + together - 1) / together)};
}

void LayerRunner::run(LayerPass& pass, const Tap& tap) { impl_->run(pass, tap); }
void LayerRunner::run_heads(LayerPass& pass, const HeadsTap& heads) { impl_->run(pass, {}, heads); }

void LayerRunner::head(std::span<const float> hidden, std::span<float> logits, const Tap& tap) {
  check_size("hidden", hidden.size(), size_t(impl_->row_width));
  if (logits.size() / size_t(impl_->c.n_vocab) != hidden.size() / size_t(impl_->row_width))
    throw Error(Cause::invalid_argument, "logits: " + std::to_string(logits.size()) + " values for " +
                                             std::to_string(hidden.size() / size_t(impl_->row_width)) + " rows of " +
                                             std::to_string(impl_->c.n_vocab));
  impl_->head(hidden, logits, tap);
}

}  // namespace tq
