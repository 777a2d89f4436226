// What a list of operations says: which matrices read the same input, which write to the residual stream, which planes are still needed.
#include <algorithm>

#include "model/graph.h"

namespace tq {
namespace {

class SiteList {
 public:
  explicit SiteList(const Buffer& stream) : stream_(&stream) {}

  void add(const Op& op) {
    if (op.kind == Op::linear)
      add_linear(op.linear_op);
    else if (op.kind == Op::moe)
      add_experts(op.moe_op);
    else if (op.kind == Op::add_norm && op.add_norm_op.y.buffer == stream_ && op.add_norm_op.x.buffer == written_)
      sites_.back().writes_to = reader_;
  }

  std::vector<InputSite> take() { return std::move(sites_); }

 private:
  InputSite& add_site(const std::vector<const Matrix*>& matrices) {
    InputSite site;
    site.name = site.group = site_name(*matrices[0]);
    for (const Matrix* m : matrices)
      if (m) site.matrices.push_back(m->name);
    sites_.push_back(std::move(site));
    return sites_.back();
  }

  void add_linear(const LinearOp& op) {
    std::vector<const Matrix*> matrices;
    for (const LinearOutput& out : op.out) matrices.push_back(out.matrix);
    InputSite& site = add_site(matrices);
    if (op.in.x.buffer == stream_) reader_ = site.name;
    const LinearOutput& out = op.out[0];
    written_ = out.y.buffer;
    if (written_ == stream_) site.writes_to = reader_, site.adds_directly = out.add && out.alpha == 1;
  }

  void add_experts(const MoeOp& op) {
    add_site({op.router, op.shared_router});
    for (size_t e = 0; e < op.gate.size(); e++) {
      add_site({op.gate[e], op.up[e]}).group = group_of(*op.gate[0]);
      add_site({op.down[e]}).group = group_of(*op.down[0]);
    }
    if (!op.shared_gate) return;
    add_site({op.shared_gate, op.shared_up});
    add_site({op.shared_down});
  }

  // "blk.3.ffn_gate" of the first expert's "blk.3.ffn_gate.0.weight".
  static std::string group_of(const Matrix& first_expert) {
    const std::string name = site_name(first_expert);
    return name.substr(0, name.rfind('.'));
  }

  const Buffer* stream_;
  const Buffer* written_ = nullptr;  // by the latest linear operation
  std::string reader_;               // the site that read the stream last
  std::vector<InputSite> sites_;
};

}  // namespace

std::string site_name(const Matrix& first) { return first.name.substr(0, first.name.rfind(".weight")); }

std::vector<InputSite> input_sites(const std::vector<Op>& ops, const Buffer& stream) {
  SiteList list(stream);
  for (const Op& op : ops) list.add(op);
  return list.take();
}

namespace {

std::vector<Plane> reads(const Op& op) {
  switch (op.kind) {
    case Op::embed:
      return {};
    case Op::linear: {
      std::vector<Plane> planes{op.linear_op.in.x, op.linear_op.in.up};
      for (const LinearOutput& out : op.linear_op.out)
        if (out.add) planes.push_back(out.y);
      return planes;
    }
    case Op::norm:
      return {op.norm_op.x};
    case Op::add_norm:
      return {op.add_norm_op.x, op.add_norm_op.y};
    case Op::attention:
      return {op.attention_op.q, op.attention_op.k, op.attention_op.v};
    case Op::soft_cap:
      return {op.soft_cap_op.x};
    case Op::top:
      return {op.top_op.x};
    case Op::moe:
      return {op.moe_op.in.x, op.moe_op.router_in.x, op.moe_op.add ? op.moe_op.y : Plane{}};
    case Op::delta_net:
      return {op.delta_net_op.qkv, op.delta_net_op.alpha, op.delta_net_op.beta};
  }
  return {};
}

std::vector<Plane> writes(const Op& op) {
  switch (op.kind) {
    case Op::embed:
      return {op.embed_op.y};
    case Op::linear: {
      std::vector<Plane> planes;
      for (const LinearOutput& out : op.linear_op.out) planes.push_back(out.y);
      return planes;
    }
    case Op::norm:
      return {op.norm_op.y};
    case Op::attention:
      return {op.attention_op.out};
    case Op::moe:
      return {op.moe_op.y};
    case Op::delta_net:
      return {op.delta_net_op.out};
    case Op::add_norm:  // what it writes it has read
    case Op::soft_cap:
    case Op::top:
      return {};
  }
  return {};
}

}  // namespace

std::vector<Plane> planes_needed(std::span<const Op> ops, const Planes& planes) {
  std::vector<const Buffer*> known{nullptr, planes.x.get(), planes.embedded.get()};
  const auto is_known = [&](const Plane& p) { return std::find(known.begin(), known.end(), p.buffer) != known.end(); };
  std::vector<Plane> needed;
  for (const Op& op : ops) {
    for (const Plane& plane : reads(op))
      if (!is_known(plane)) needed.push_back(plane), known.push_back(plane.buffer);
    for (const Plane& plane : writes(op)) known.push_back(plane.buffer);
  }
  return needed;
}

}  // namespace tq
