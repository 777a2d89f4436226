// The operations of a model as Python objects: what the engine computes, for those who compute it again and differentiate it.
#include <map>

#include "bindings/bindings.h"
#include "bindings/handles.h"
#include "model/graph.h"

namespace tq::bindings {
namespace {

// Operations as dicts. Planes are called as in Planes, matrices and vectors as their tensors.
class GraphDescriber {
 public:
  GraphDescriber(const Model& model, int64_t n_ctx) : c_(model.config()), backend_(*model.parts()[0].backend) {
    const CacheElements elements = cache_elements(model, CacheType::automatic);
    for (const LayerConfig& layer : c_.layers) states_.emplace_back(backend_, state_shape(layer, elements), 1, 1);
    planes_ = allocate_planes(backend_, c_, {.first_layer = 0, .last_layer = c_.n_layers(), .rows = 1, .logit_rows = 1});
    names_ = {{planes_.x.get(), "x"},           {planes_.q.get(), "q"},
              {planes_.k.get(), "k"},           {planes_.v.get(), "v"},
              {planes_.gate.get(), "gate"},     {planes_.attended.get(), "attended"},
              {planes_.branch.get(), "branch"}, {planes_.up.get(), "up"},
              {planes_.logits.get(), "logits"}, {planes_.output_gate.get(), "output_gate"}};
    const Graph g{c_, model.weights(), planes_, n_ctx};
    parts_.resize(size_t(c_.n_layers()) + 2);
    add_embedding(parts_.front(), g);
    for (int64_t i = 0; i < c_.n_layers(); i++) add_layer(parts_[size_t(i) + 1], g, i, states_[size_t(kv_layer(c_, i))]);
    add_output(parts_.back(), g);
  }

  py::list describe() const {
    py::list all;
    for (const std::vector<Op>& part : parts_) {
      py::list ops;
      for (const Op& op : part) ops.append(describe(op));
      all.append(ops);
    }
    return all;
  }

 private:
  static py::object name(const Matrix* m) { return m ? py::object(py::str(m->name)) : py::none(); }
  static py::object name(const Buffer* b) { return b ? py::object(py::str(b->name)) : py::none(); }
  const char* name(const Plane& plane) const {
    const auto found = names_.find(plane.buffer);
    if (found == names_.end()) throw unknown("planes of recurrent layers");
    return found->second;
  }
  static const char* name(GatedActivation activation) {
    constexpr const char* kNames[] = {"silu", "gelu_tanh", "clamped_swiglu", "sigmoid"};
    return kNames[size_t(activation)];
  }

  py::dict describe(const Op& op) const {
    switch (op.kind) {
      case Op::embed:
        return describe(op.embed_op);
      case Op::linear:
        return describe(op.linear_op);
      case Op::norm:
        return describe(op.norm_op);
      case Op::add_norm:
        return describe(op.add_norm_op);
      case Op::attention:
        return describe(op.attention_op);
      case Op::soft_cap:
        return describe(op.soft_cap_op);
      case Op::moe:
        return describe(op.moe_op);
      case Op::delta_net:
        throw unknown("recurrent layers");
      case Op::top:
        break;  // chooses tokens: no part of what the logits depend on
    }
    throw unknown("an operation");
  }

  static Error unknown(const std::string& what) { return {Cause::unsupported, "the graph in Python does not know " + what}; }

  static py::dict titled(const char* title) {
    py::dict d;
    d["op"] = title;
    return d;
  }

  py::dict describe(const EmbedOp& op) const {
    py::dict d = titled("embed");
    d["matrix"] = name(op.matrix), d["y"] = name(op.y), d["scale"] = op.scale;
    return d;
  }

  py::dict describe(const LinearInput& in) const {
    py::dict d;
    d["x"] = name(in.x);
    d["up"] = in.kind == LinearInput::gated ? py::object(py::str(name(in.up))) : py::none();
    d["norm"] = in.kind == LinearInput::rms_norm ? name(in.weight) : py::none();
    d["eps"] = in.eps, d["activation"] = name(in.activation);
    return d;
  }

  py::dict describe(const LinearOp& op) const {
    py::dict d = titled("linear");
    py::list outputs;
    for (const LinearOutput& out : op.out) {
      py::dict each;
      each["matrix"] = name(out.matrix), each["y"] = name(out.y), each["bias"] = name(out.bias);
      each["alpha"] = out.alpha, each["add"] = out.add;
      outputs.append(each);
    }
    d["in"] = describe(op.in), d["out"] = outputs;
    return d;
  }

  py::dict describe(const NormOp& op) const {
    py::dict d = titled("norm");
    d["x"] = name(op.x), d["y"] = name(op.y), d["groups"] = op.groups, d["weight"] = name(op.weight), d["eps"] = op.eps;
    return d;
  }

  py::dict describe(const AddNormOp& op) const {
    py::dict d = titled("add_norm");
    d["x"] = name(op.x), d["y"] = name(op.y), d["weight"] = name(op.weight), d["eps"] = op.eps, d["alpha"] = op.alpha;
    d["scale"] = op.scale;
    return d;
  }

  py::dict describe(const AttentionOp& op) const {
    py::dict d = titled("attention");
    d["q"] = name(op.q), d["k"] = name(op.k), d["v"] = name(op.v), d["y"] = name(op.out);
    d["n_heads"] = op.shape.n_heads, d["n_kv_heads"] = op.shape.n_kv_heads, d["head_dim"] = op.shape.head_dim;
    d["scale"] = op.shape.scale, d["soft_cap"] = op.shape.soft_cap, d["window"] = op.window;
    d["sinks"] = name(op.sinks), d["growth_beta"] = op.growth.beta, d["growth_length"] = op.growth.length;
    py::array_t<float> frequencies(op.rope.inv_freq ? op.rope.dims / 2 : 0);
    if (op.rope.inv_freq) backend_.download(*op.rope.inv_freq, 0, frequencies.mutable_data(), int64_t(frequencies.nbytes()));
    d["rope_frequencies"] = frequencies, d["rope_magnitude"] = op.rope.magnitude, d["rope_pairs"] = op.rope.pairs;
    return d;
  }

  py::dict describe(const SoftCapOp& op) const {
    py::dict d = titled("soft_cap");
    d["x"] = name(op.x), d["cap"] = op.cap;
    return d;
  }

  static py::list names(const std::vector<Matrix*>& matrices) {
    py::list all;
    for (const Matrix* m : matrices) all.append(name(m));
    return all;
  }

  py::dict describe(const MoeOp& op) const {
    py::dict d = titled("moe");
    d["in"] = describe(op.in), d["router"] = name(op.router);
    d["gate"] = names(op.gate), d["up"] = names(op.up), d["down"] = names(op.down);
    d["shared_gate"] = name(op.shared_gate), d["shared_up"] = name(op.shared_up), d["shared_down"] = name(op.shared_down);
    d["shared_router"] = name(op.shared_router), d["router_bias"] = name(op.router_bias);
    d["gate_bias"] = name(op.gate_bias), d["up_bias"] = name(op.up_bias), d["down_bias"] = name(op.down_bias);
    d["top_k"] = op.top_k, d["normalize"] = op.normalize, d["activation"] = name(op.activation), d["alpha"] = op.alpha, d["y"] = name(op.y);
    return d;
  }

  const Config& c_;
  Backend& backend_;
  std::vector<LayerState> states_;
  Planes planes_;
  std::map<const Buffer*, const char*> names_;
  std::vector<std::vector<Op>> parts_;
};

py::list graph(const ModelHandle& handle, int64_t n_ctx) {
  const std::shared_ptr<Model> model = handle.get();
  if (model->parts().size() > 1) throw Error(Cause::unsupported, "the graph of a model on several devices: " + model->backend_names());
  if (n_ctx < 1) throw Error(Cause::invalid_argument, "n_ctx: " + std::to_string(n_ctx));
  return GraphDescriber(*model, n_ctx).describe();
}

}  // namespace

void bind_graph(py::module_& m) { m.def("graph", &graph, py::arg("model"), py::arg("n_ctx")); }

}  // namespace tq::bindings
