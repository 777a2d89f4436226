#include "moe.h"

#include <cmath>

#include "backend/routing.h"

namespace tq::metal {
namespace {

using namespace metal_args;

constexpr int64_t kDeviceRows = 32;                // up to this many rows are routed on the device
constexpr int64_t kTableCopy = int64_t(64) << 20;  // bytes of one table that may be copied where the file cannot be shown
constexpr int64_t kSparseTable = 16;               // a view may show the experts' other matrices too
static_assert(kDeviceRows * kMaxChoices <= kMaxRoutes);

int64_t widest(const MoeOp& op) {
  int64_t n_ff = op.shared_gate ? op.shared_gate->n_out : 0;
  for (const Matrix* m : op.gate) n_ff = std::max(n_ff, m->n_out);
  return n_ff;
}
int64_t per_row(const MoeOp& op) { return op.top_k + (op.shared_gate ? 1 : 0); }
int64_t max_groups(int64_t routes, int64_t n_experts) { return std::min(routes, n_experts + routes / kGroupRows); }

Operand operand(const Buffer* buffer, int64_t offset = 0) { return buffer ? Operand{memory_of(*buffer).at(offset), true} : Operand{}; }
Target whole(const Matrix* m, const Bound& y, const Operand& bias = {}) { return {&metal(m), y, m->n_out, 0, bias, 1, false}; }

// Bytes in Workspace::routes while the device routes: counts first, then four lists.
struct RouteMemory {
  explicit RouteMemory(const Workspace& w, int64_t routes)
      : n_groups(w.routes.at()),
        weights(w.routes.at(256)),
        place(w.routes.at(256 + 4 * routes)),
        rows(w.routes.at(256 + 8 * routes)),
        groups(w.routes.at(256 + 12 * routes)) {}
  static int64_t bytes(int64_t routes) { return 256 + routes * (12 + int64_t(sizeof(ExpertGroup))); }
  Bound n_groups, weights, place, rows, groups;
};

}  // namespace

std::vector<MoeRunner::Expert> MoeRunner::experts(const MoeOp& op) {
  return experts_of<Expert>(op, [](const Buffer* table, size_t e, const Matrix* m) { return operand(table, int64_t(e) * m->n_out * 4); });
}

void MoeRunner::reserve(const MoeOp& op, int64_t max_rows) {
  const int64_t n_embd = op.in.x.width, routed = std::min(max_rows, kDeviceRows) * op.top_k, wide = std::max(max_rows, routed);
  linear_.reserve({&metal(op.router)}, max_rows);
  if (op.shared_router) linear_.reserve({&metal(op.shared_router)}, max_rows);
  for (const Expert& e : experts(op)) {
    linear_.reserve({&metal(e.gate), &metal(e.up)}, wide);
    linear_.reserve({&metal(e.down)}, wide);
  }
  w_.moe_x.reserve(max_rows * n_embd * 4), w_.moe_out.reserve(wide * n_embd * 4), w_.moe_shared.reserve(max_rows * n_embd * 4);
  w_.moe_gate.reserve(wide * widest(op) * 4), w_.moe_up.reserve(wide * widest(op) * 4);
  w_.moe_logits.reserve(max_rows * op.router->n_out * 4), w_.moe_shared_logits.reserve(max_rows * 4);
  w_.routes.reserve(std::max(max_rows * per_row(op) * 8, RouteMemory::bytes(routed)));
  auto tables = std::make_unique<OnDevice>(w_.context);
  const bool fits = !linear_.float_path() && int64_t(op.gate.size()) <= kMaxExperts && op.top_k <= int(kMaxChoices);
  if (fits && make_table(op.gate, tables->gate) && make_table(op.up, tables->up) && make_table(op.down, tables->down) &&
      tables->gate.any->rotation == tables->up.any->rotation)
    on_device_[&op] = std::move(tables);
}

bool MoeRunner::make_table(const std::vector<Matrix*>& matrices, Table& table) {
  std::vector<Planes::Place> places;
  table.any = &metal(matrices[0]);
  for (const Matrix* matrix : matrices) {
    const MetalMatrix& m = metal(matrix);
    if (!m.packed() || m.n_out != table.any->n_out || m.n_in != table.any->n_in || m.rotation != table.any->rotation) return false;
    for (const Planes::Place& p : places_of(m.host.tqn)) places.push_back(p);
    table.outliers |= m.has_outliers();
    if (std::find(table.formats.begin(), table.formats.end(), m.host.tqn.k) == table.formats.end()) table.formats.push_back(m.host.tqn.k);
  }
  if (!table.planes.show(places, kSparseTable, kTableCopy)) return false;
  table.entries.reserve(int64_t(matrices.size() * sizeof(ExpertMatrix)));
  auto* entry = table.entries.data<ExpertMatrix>();
  for (const Matrix* matrix : matrices) {
    const MetalMatrix& m = metal(matrix);
    const TqnMatrix& w = m.host.tqn;
    const auto at = [&](const void* plane) { return uint64_t(table.planes.offset(plane)); };
    *entry++ = {at(w.codes),
                at(w.row_scale),
                at(w.codebook),
                at(m.has_outliers() ? w.outliers.ptr : nullptr),
                at(m.has_outliers() ? m.columns() : nullptr),
                at(m.has_outliers() ? w.outliers.val : nullptr),
                w.scale,
                m.outlier_flags(),
                uint32_t(w.k),
                0};
  }
  return true;
}

// The routes' rows of the input, which LinearRunner::prepare has made, times the experts that the device chose.
void MoeRunner::multiply(const Table& t, const Bound& y, int64_t routes, int64_t groups, const Buffer* biases) {
  const RouteMemory route(w_, routes);
  LinearArgs a{};
  a.n_out = uint32_t(t.any->n_out), a.n_in = uint32_t(t.any->n_in), a.rows = uint32_t(routes), a.x_stride = a.n_in, a.y_stride = a.n_out;
  a.splits = 1, a.alpha = 1;
  for (const int k : t.formats)
    launch(*w_.context, "experts_k" + std::to_string(k), a,
           {t.planes.start(), t.entries.at(), w_.quantized.at(), w_.scale.at(), y, w_.plain.at(), route.groups, route.n_groups},
           {t.any->strips(), 1, uint32_t(groups)}, kGemvThreads);
  if (!biases) return;
  RouteArgs b{};
  b.width = a.n_out;
  launch(*w_.context, "expert_bias", b, {y, memory_of(*biases).at(), route.groups, route.n_groups},
         {pieces(a.n_out, kRowThreads), uint32_t(groups)}, kRowThreads);
}

void MoeRunner::run_shared(const MoeOp& op, int64_t rows) {
  const Source x{.x = w_.moe_x.at()};
  if (op.shared_router) linear_.run(x, rows, {whole(op.shared_router, w_.moe_shared_logits.at())});
  linear_.run(x, rows, {whole(op.shared_gate, w_.moe_gate.at()), whole(op.shared_up, w_.moe_up.at())});
  const Source gated{.kind = LinearInput::gated, .activation = op.activation, .x = w_.moe_gate.at(), .up = {w_.moe_up.at(), true}};
  linear_.run(gated, rows, {whole(op.shared_down, w_.moe_shared.at())});
}

void MoeRunner::run_on_device(const MoeOp& op, const OnDevice& t, const Source& router_source, int64_t rows) {
  const int64_t routes = rows * op.top_k, n_experts = int64_t(op.gate.size()), groups = max_groups(routes, n_experts);
  const RouteMemory route(w_, routes);
  linear_.run(router_source, rows, {whole(op.router, w_.moe_logits.at(), operand(op.router_bias))});
  RouteArgs a{};
  a.rows = uint32_t(rows), a.n_experts = uint32_t(n_experts), a.top_k = uint32_t(op.top_k), a.width = uint32_t(op.y.width);
  a.alpha = op.alpha;
  a.flags = (op.normalize ? kNormalize : 0u) | (op.shared_gate ? kShared : 0u) | (op.shared_router ? kSharedLogits : 0u);
  launch(*w_.context, "route", a, {w_.moe_logits.at(), route.weights, route.place, route.rows, route.groups, route.n_groups}, {},
         kRouteThreads);
  if (op.shared_gate) run_shared(op, rows);
  const uint32_t plain = t.gate.outliers || t.up.outliers ? uint32_t(kPlain) : 0u;
  linear_.prepare({.x = w_.moe_x.at(), .rows = {route.rows, true}}, routes, t.gate.any->n_in, t.gate.any->rotation.get(),
                  kQuantized | plain);
  multiply(t.gate, w_.moe_gate.at(), routes, groups, op.gate_bias);
  multiply(t.up, w_.moe_up.at(), routes, groups, op.up_bias);
  const Source gated{.kind = LinearInput::gated, .activation = op.activation, .x = w_.moe_gate.at(), .up = {w_.moe_up.at(), true}};
  linear_.prepare(gated, routes, t.down.any->n_in, t.down.any->rotation.get(), kQuantized | (t.down.outliers ? uint32_t(kPlain) : 0u));
  multiply(t.down, w_.moe_out.at(), routes, groups, op.down_bias);
  launch(*w_.context, "combine", a,
         {w_.moe_out.at(), route.weights, route.place, w_.moe_shared.at(), w_.moe_shared_logits.at(), memory_of(*op.y.buffer).at()},
         {pieces(op.y.width, kRowThreads), uint32_t(rows)}, kRowThreads);
}

std::vector<float> MoeRunner::router_logits(const Source& source, const Matrix* router, const Buffer* bias, int64_t rows) {
  linear_.run(source, rows, {whole(router, w_.moe_logits.at(), operand(bias))});
  w_.context->device->wait();
  const float* from = w_.moe_logits.data<float>();
  return {from, from + rows * router->n_out};
}

MoeRunner::Routes MoeRunner::route(const MoeOp& op, const Source& router_source, int64_t rows) {
  const auto n = size_t(per_row(op)), n_experts = op.gate.size() + (op.shared_gate ? 1 : 0);
  std::vector<int32_t> chosen(size_t(rows) * n);
  std::vector<float> weight(chosen.size());
  std::vector<float> logits = router_logits(router_source, op.router, op.router_bias, rows);
  for (size_t r = 0; r < size_t(rows); r++)
    choose_experts(logits.data() + r * size_t(op.router->n_out), op.router->n_out, op.top_k, op.normalize, &chosen[r * n], &weight[r * n]);
  if (op.shared_gate) {
    const std::vector<float> shared = op.shared_router ? router_logits({.x = w_.moe_x.at()}, op.shared_router, nullptr, rows)
                                                       : std::vector<float>(size_t(rows), INFINITY);
    for (size_t r = 0; r < size_t(rows); r++)
      chosen[r * n + n - 1] = int32_t(n_experts) - 1, weight[r * n + n - 1] = shared_expert_weight(shared[r]);
  }
  Routes routes{{0}, int64_t(chosen.size())};
  auto* sorted = w_.routes.data<int32_t>();
  auto* weights = w_.routes.data<float>() + chosen.size();
  int64_t count = 0;
  for (size_t e = 0; e < n_experts; e++) {
    for (size_t i = 0; i < chosen.size(); i++)
      if (chosen[i] == int32_t(e)) sorted[count] = int32_t(i / n), weights[count++] = weight[i];
    routes.first.push_back(count);
  }
  return routes;
}

void MoeRunner::run_expert(const MoeOp& op, const Expert& e, const Routes& routes, size_t expert) {
  const int64_t first = routes.first[expert], count = routes.first[expert + 1] - first;
  if (count == 0) return;
  const Bound rows = w_.routes.at(first * 4), weights = w_.routes.at((routes.count + first) * 4);
  linear_.run({.x = w_.moe_x.at(), .rows = {rows, true}}, count,
              {whole(e.gate, w_.moe_gate.at(), e.gate_bias), whole(e.up, w_.moe_up.at(), e.up_bias)});
  const Source gated{.kind = LinearInput::gated, .activation = op.activation, .x = w_.moe_gate.at(), .up = {w_.moe_up.at(), true}};
  linear_.run(gated, count, {whole(e.down, w_.moe_out.at(), e.down_bias)});
  NormArgs a{};
  a.n = uint32_t(e.down->n_out), a.alpha = op.alpha;
  launch(*w_.context, "scatter_add", a, {w_.moe_out.at(), rows, weights, memory_of(*op.y.buffer).at()},
         {pieces(a.n, kRowThreads), uint32_t(count)}, kRowThreads);
}

void MoeRunner::run(const MoeOp& op, const Source& source, const Source& router_source, int64_t rows) {
  // A plain copy: y, to which the mixture is added, may be the source.
  linear_.prepare(source, rows, op.in.x.width, nullptr, kPlain);
  w_.context->device->copy(w_.plain.at(), w_.moe_x.at(), rows * op.in.x.width * 4);
  const Source router_x = op.router_in.x.buffer ? router_source : Source{.x = w_.moe_x.at()};
  const auto tables = on_device_.find(&op);
  if (tables != on_device_.end() && rows <= kDeviceRows) return run_on_device(op, *tables->second, router_x, rows);
  const Routes routes = route(op, router_x, rows);
  const std::vector<Expert> all = experts(op);
  for (size_t e = 0; e < all.size(); e++) run_expert(op, all[e], routes, e);
}

}  // namespace tq::metal
