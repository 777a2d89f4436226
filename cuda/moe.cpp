#include "moe.h"

#include <cmath>

#include "backend/routing.h"

namespace tq::cuda {
namespace {

int64_t widest(const MoeOp& op) {
  int64_t n_ff = op.shared_gate ? op.shared_gate->n_out : 0;
  for (const Matrix* m : op.gate) n_ff = std::max(n_ff, m->n_out);
  return n_ff;
}

int per_row(const MoeOp& op) { return op.top_k + (op.shared_gate ? 1 : 0); }

}  // namespace

std::vector<MoeRunner::Expert> MoeRunner::experts(const MoeOp& op) {
  return experts_of<Expert>(
      op, [](const Buffer* table, size_t e, const Matrix* m) { return table ? data(table) + int64_t(e) * m->n_out : nullptr; });
}

void MoeRunner::reserve(const MoeOp& op, int64_t max_rows) {
  const int64_t n_embd = op.in.x.width;
  linear_.reserve({&cuda(op.router)}, max_rows);
  if (op.shared_router) linear_.reserve({&cuda(op.shared_router)}, max_rows);
  for (const Expert& e : experts(op)) {
    linear_.reserve({&cuda(e.gate), &cuda(e.up)}, max_rows);
    linear_.reserve({&cuda(e.down)}, max_rows);
  }
  w_.moe_x.reserve(max_rows * n_embd * 4), w_.moe_out.reserve(max_rows * n_embd * 4);
  w_.moe_gate.reserve(max_rows * widest(op) * 4), w_.moe_up.reserve(max_rows * widest(op) * 4);
  w_.moe_logits.reserve(max_rows * op.router->n_out * 4);
  w_.moe_routes.reserve(max_rows * per_row(op) * 8);
  device_.reserve(op, max_rows);
}

std::vector<float> MoeRunner::router_logits(const Matrix* router, const Buffer* bias, const SourceView& x, int rows) {
  std::vector<float> logits(size_t(rows * router->n_out));
  linear_.run(x, rows, {{&cuda(router), {w_.moe_logits.as<float>(), router->n_out, data(bias), 1, false}}});
  check(cudaMemcpyAsync(logits.data(), w_.moe_logits.as<void>(), logits.size() * 4, cudaMemcpyDeviceToHost, stream_), "router logits");
  check(cudaStreamSynchronize(stream_), "router");
  return logits;
}

MoeRunner::Routes MoeRunner::route(const MoeOp& op, const SourceView& x, const SourceView& router_x, int rows) {
  const size_t n = size_t(per_row(op)), n_experts = experts(op).size();
  std::vector<int32_t> chosen(size_t(rows) * n);
  std::vector<float> weight(chosen.size());
  std::vector<float> logits = router_logits(op.router, op.router_bias, router_x, rows);
  for (size_t r = 0; r < size_t(rows); r++)
    choose_experts(logits.data() + r * size_t(op.router->n_out), op.router->n_out, op.top_k, op.normalize, &chosen[r * n], &weight[r * n]);
  if (op.shared_gate) {
    const std::vector<float> shared =
        op.shared_router ? router_logits(op.shared_router, nullptr, x, rows) : std::vector<float>(size_t(rows), INFINITY);
    for (size_t r = 0; r < size_t(rows); r++)
      chosen[r * n + n - 1] = int32_t(n_experts) - 1, weight[r * n + n - 1] = shared_expert_weight(shared[r]);
  }
  Routes routes{{0}, w_.moe_routes.as<int32_t>(), w_.moe_routes.as<float>() + chosen.size()};
  std::vector<int32_t> sorted(2 * chosen.size());
  auto* weights = reinterpret_cast<float*>(sorted.data() + chosen.size());
  int count = 0;
  for (size_t e = 0; e < n_experts; e++) {
    for (size_t i = 0; i < chosen.size(); i++)
      if (chosen[i] == int32_t(e)) sorted[size_t(count)] = int32_t(i / n), weights[count++] = weight[i];
    routes.first.push_back(count);
  }
  check(cudaMemcpyAsync(w_.moe_routes.as<void>(), sorted.data(), sorted.size() * 4, cudaMemcpyHostToDevice, stream_), "expert routes");
  return routes;
}

void MoeRunner::run_expert(const MoeOp& op, const Expert& e, const SourceView& x, const int32_t* rows, const float* weights, int count) {
  float *gate = w_.moe_gate.as<float>(), *up = w_.moe_up.as<float>(), *out = w_.moe_out.as<float>();
  SourceView gathered = x;
  gathered.rows = rows;
  linear_.run(gathered, count,
              {{&cuda(e.gate), {gate, e.gate->n_out, e.gate_bias, 1, false}}, {&cuda(e.up), {up, e.up->n_out, e.up_bias, 1, false}}});
  SourceView gated;
  gated.kind = LinearInput::gated, gated.activation = op.activation, gated.x = gate, gated.up = up;
  linear_.run(gated, count, {{&cuda(e.down), {out, e.down->n_out, e.down_bias, 1, false}}});
  scatter_add(out, rows, weights, op.alpha, count, int(e.down->n_out), data(op.y.buffer), stream_);
}

void MoeRunner::run(const MoeOp& op, const SourceView& source, const SourceView& router_source, int rows) {
  InputView plain;
  plain.rows = rows, plain.n_in = int(op.in.x.width), plain.plain = w_.moe_x.as<float>();
  prepare_input(source, {}, plain, Element::f16, w_.vectors.as<float>(), stream_);
  SourceView x;
  x.x = plain.plain;
  const SourceView& router_x = op.router_in.x.buffer ? router_source : x;
  if (!needs_host(op, rows)) return device_.run(op, plain.plain, router_x, rows);
  const std::vector<Expert> all = experts(op);
  const Routes routes = route(op, x, router_x, rows);
  for (size_t e = 0; e < all.size(); e++) {
    const int first = routes.first[e], count = routes.first[e + 1] - first;
    if (count > 0) run_expert(op, all[e], x, routes.rows + first, routes.weights + first, count);
  }
}

}  // namespace tq::cuda
