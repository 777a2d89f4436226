#include "moe_device.h"

#include <algorithm>

namespace tq::cuda {
namespace {

// One table serves them: packed, of one shape, behind one rotation.
bool alike(const std::vector<const std::vector<Matrix*>*>& lists) {
  const CudaMatrix& first = cuda(lists[0]->at(0));
  for (const auto* list : lists)
    for (const Matrix* each : *list) {
      const CudaMatrix& m = cuda(each);
      if (!m.packed || m.rotation != first.rotation || m.n_out != first.n_out || m.n_in != first.n_in) return false;
    }
  return true;
}

bool fits(const MoeOp& op) {
  const size_t n = op.gate.size();
  if (n == 0 || n > size_t(kMaxDeviceExperts) || op.router->n_out != int64_t(n) || op.top_k < 1 || op.top_k > kMaxChoices) return false;
  return alike({&op.gate, &op.up}) && alike({&op.down}) && op.down[0]->n_in == op.gate[0]->n_out;
}

OutputView whole(float* y, const Matrix* m, const Buffer* bias = nullptr) { return {y, m->n_out, data(bias), 1, false}; }

}  // namespace

DeviceMoe::Table DeviceMoe::make_table(const std::vector<const std::vector<Matrix*>*>& lists) {
  Table t;
  std::vector<PackedView> views;
  for (const auto* list : lists)
    for (const Matrix* m : *list) {
      views.push_back(cuda(m).tqn);
      t.outliers = t.outliers || views.back().outliers.ptr;
      if (std::find(t.formats.begin(), t.formats.end(), views.back().k) == t.formats.end()) t.formats.push_back(views.back().k);
    }
  const int64_t bytes = int64_t(views.size() * sizeof(PackedView));
  t.views = DeviceMemory(bytes);
  check(cudaMemcpyAsync(t.views.as<void>(), views.data(), size_t(bytes), cudaMemcpyHostToDevice, stream_), "table of experts");
  check(cudaStreamSynchronize(stream_), "table of experts");
  t.any = &cuda(lists[0]->at(0));
  t.product.count = int(lists.size()), t.product.shape = t.any->tqn;
  for (size_t i = 0; i < lists.size(); i++) t.product.matrix[i] = t.views.as<PackedView>() + i * lists[0]->size();
  return t;
}

void DeviceMoe::reserve_table(const Table& t, int routes, int n_experts) {
  w_.reserve_quantized(int(t.any->n_in), routes);
  if (t.outliers) w_.plain.reserve(routes * t.any->n_in * 4);
  const int64_t strips = int64_t(max_groups(routes, n_experts)) * t.product.count * t.product.shape.strips;
  w_.sums.reserve(strips * kGroupRows * tqn::kTileRows * 4);
  w_.arrived.reserve(strips * 4);
}

void DeviceMoe::reserve(const MoeOp& op, int64_t max_rows) {
  if (linear_.float_path() || !fits(op)) return;
  Experts& e = experts_.emplace(&op, Experts{make_table({&op.gate, &op.up}), make_table({&op.down})}).first->second;
  const int64_t rows = std::min<int64_t>(max_rows, kDeviceMoeRows), routes = rows * op.top_k;
  const int n_experts = int(op.gate.size());
  reserve_table(e.gate_up, int(routes), n_experts), reserve_table(e.down, int(routes), n_experts);
  const int64_t n_ff = op.gate[0]->n_out, n_embd = op.down[0]->n_out;
  w_.moe_gate.reserve(routes * n_ff * 4), w_.moe_up.reserve(routes * n_ff * 4), w_.moe_out.reserve(routes * n_embd * 4);
  if (op.shared_gate) w_.moe_shared.reserve(rows * n_embd * 4), w_.moe_shared_logits.reserve(rows * 4);
  w_.moe_routes.reserve(routes * 3 * 4 + max_groups(int(routes), n_experts) * int64_t(sizeof(ExpertGroup)) + 4);
}

// n_groups, weights, place, rows, groups; all of four bytes.
RouteView DeviceMoe::route_view(int routes) const {
  int32_t* at = w_.moe_routes.as<int32_t>();
  RouteView view;
  view.n_groups = at, view.weights = reinterpret_cast<float*>(at + 1);
  view.place = at + 1 + routes, view.rows = at + 1 + 2 * routes;
  view.groups = reinterpret_cast<ExpertGroup*>(at + 1 + 3 * routes);
  return view;
}

InputView DeviceMoe::input(const Table& t, const SourceView& source, int routes) {
  InputView in;
  in.rows = routes, in.n_in = int(t.any->n_in);
  in.quantized = w_.quantized.as<int8_t>(), in.scale = w_.scale.as<float>();
  if (t.outliers) in.plain = w_.plain.as<float>();
  prepare_input(source, rotation_of(*t.any), in, Element::f16, w_.vectors.as<float>(), stream_);
  return in;
}

void DeviceMoe::multiply(const Table& t, const InputView& in, const RouteView& route, std::initializer_list<float*> y) {
  ExpertProduct product = t.product;
  product.in = in, product.groups = route.groups, product.n_groups = route.n_groups, product.split = w_.split();
  std::copy(y.begin(), y.end(), product.y);
  for (const int k : t.formats) experts(product, k, stream_);
}

SharedExpert DeviceMoe::run_shared(const MoeOp& op, const SourceView& x, int rows) {
  if (!op.shared_gate) return {};
  float *gate = w_.moe_gate.as<float>(), *up = w_.moe_up.as<float>(), *out = w_.moe_shared.as<float>();
  SharedExpert shared{out, nullptr};
  if (op.shared_router) {
    float* logits = w_.moe_shared_logits.as<float>();
    linear_.run(x, rows, {{&cuda(op.shared_router), whole(logits, op.shared_router)}});
    shared.logits = logits;
  }
  linear_.run(x, rows, {{&cuda(op.shared_gate), whole(gate, op.shared_gate)}, {&cuda(op.shared_up), whole(up, op.shared_up)}});
  const SourceView gated{.kind = LinearInput::gated, .activation = op.activation, .x = gate, .up = up};
  linear_.run(gated, rows, {{&cuda(op.shared_down), whole(out, op.shared_down)}});
  return shared;
}

void DeviceMoe::run(const MoeOp& op, const float* x, const SourceView& router_x, int rows) {
  const Experts& e = experts_.at(&op);
  const int routes = rows * op.top_k, n_experts = int(op.gate.size());
  const RouteView routed = route_view(routes);
  const SourceView source{.x = x};
  float *logits = w_.moe_logits.as<float>(), *gate = w_.moe_gate.as<float>(), *up = w_.moe_up.as<float>(), *out = w_.moe_out.as<float>();
  linear_.run(router_x, rows, {{&cuda(op.router), whole(logits, op.router, op.router_bias)}});
  route(logits, rows, n_experts, op.top_k, op.normalize, routed, stream_);
  const SharedExpert shared = run_shared(op, source, rows);
  multiply(e.gate_up, input(e.gate_up, {.x = x, .rows = routed.rows}, routes), routed, {gate, up});
  const int groups = max_groups(routes, n_experts), n_ff = int(op.gate[0]->n_out), n_embd = int(op.down[0]->n_out);
  if (op.gate_bias) add_expert_bias(gate, data(op.gate_bias), routed, groups, n_ff, stream_);
  if (op.up_bias) add_expert_bias(up, data(op.up_bias), routed, groups, n_ff, stream_);
  const SourceView gated{.kind = LinearInput::gated, .activation = op.activation, .x = gate, .up = up};
  multiply(e.down, input(e.down, gated, routes), routed, {out});
  if (op.down_bias) add_expert_bias(out, data(op.down_bias), routed, groups, n_embd, stream_);
  combine(out, routed, rows, op.top_k, shared, op.alpha, n_embd, data(op.y.buffer), stream_);
}

}  // namespace tq::cuda
