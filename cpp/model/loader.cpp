// Opening a model: metadata -> Config, tensors -> Weights. Shapes are checked one by one; missing tensors are reported all at once.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

#include "common/error.h"
#include "common/text.h"
#include "format/cache.h"
#include "model/architectures.h"
#include "model/model.h"
#include "model/placement.h"
#include "model/state.h"

namespace tq {
namespace {

using gguf::Tensor;

std::string shape_text(std::initializer_list<int64_t> shape) {
  std::string text;
  for (int64_t n : shape) text += (text.empty() ? "(" : ", ") + std::to_string(n);
  return text + ")";
}

std::string shape_text(const Tensor& tensor) {  // as NumPy says it: slowest dimension first
  std::string text;
  for (auto n = tensor.shape.rbegin(); n != tensor.shape.rend(); ++n) text += (text.empty() ? "(" : ", ") + std::to_string(*n);
  return text + ")";
}

bool dense_type(uint32_t type, kernels::DType* out) {
  switch (type) {
    case gguf::kF32:
      *out = kernels::DType::f32;
      return true;
    case gguf::kF16:
      *out = kernels::DType::f16;
      return true;
    case gguf::kBF16:
      *out = kernels::DType::bf16;
      return true;
    default:
      return false;
  }
}

std::string type_text(const Tensor& tensor) { return std::string("the type ") + gguf::type_layout(tensor.type)->name; }

float element(const uint8_t* data, kernels::DType type, int64_t i) {
  if (type == kernels::DType::f32) return reinterpret_cast<const float*>(data)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[i];
  return type == kernels::DType::f16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

}  // namespace

struct Loader {
  Loader(const std::string& path, const ModelOptions& options) : model(new Model) {
    model->file_ = gguf::File::open(path);
    model->packed_ = std::make_unique<gguf::TqnTensors>(model->file_);
    c = read_config(file());
    model->parts_ = make_parts(file().path(), options, c.n_layers());
    model->precision_ = options.backend.precision;
    if (options.lock_memory && !file().lock())
      throw Error(Cause::out_of_memory, path + ": the system refuses to lock " + std::to_string(file().size()) + " bytes");
    file().prefetch();
  }

  std::shared_ptr<Model> load() {
    Weights& w = model->weights_;
    load_ends(w);
    for (const Part& part : model->parts_) {
      device = part.backend.get();
      ropes.clear(), layer_embed = nullptr, project_norm = nullptr;
      for (int64_t i = part.first; i < part.last; i++) {
        if (kv_layer(c, i) < part.first)
          throw Error(Cause::unsupported, file().path() + ": layer " + std::to_string(i) + " sees the keys of layer " +
                                              std::to_string(kv_layer(c, i)) + ", which is on another device; put both on one");
        w.layers.push_back(load_layer("blk." + std::to_string(i) + ".", c.layers[size_t(i)]));
      }
    }
    if (!missing.empty()) throw Error(Cause::bad_file, file().path() + ": missing tensors: " + missing);
    check_key_statistics();
    model->config_ = c;
    return model;
  }

 private:
  const gguf::File& file() const { return *model->file_; }
  void miss(const std::string& name) { missing += (missing.empty() ? "" : ", ") + name; }
  bool has(const std::string& name) const { return model->packed_->find(name) || file().find(name); }

  [[noreturn]] void fail_shape(const std::string& name, const std::string& found, const std::string& expected) const {
    throw Error(Cause::bad_file, file().path() + ": tensor " + name + " has the shape " + found + ", expected " + expected);
  }

  HostMatrix host_matrix(const std::string& name, const Tensor& tensor) const {
    HostMatrix host{.name = name, .packed = false, .tqn = {}, .dense = {}};
    if (tensor.shape.empty() || tensor.shape.size() > 2) fail_shape(name, shape_text(tensor), "one or two dimensions");
    if (!dense_type(tensor.type, &host.dense.type))
      throw Error(Cause::unsupported, file().path() + ": tensor " + name + " has " + type_text(tensor) +
                                          "; only F32, F16, BF16 and TQN matrices can be run: convert the file first");
    host.dense.n_out = tensor.shape.size() == 2 ? int64_t(tensor.shape[1]) : 1;  // a router to one expert may be stored as a vector
    host.dense.n_in = int64_t(tensor.shape[0]);
    host.dense.data = tensor.data.data();
    return host;
  }

  // n_out < 0: any. Null, and noted as missing, when the file does not have it.
  MatrixPtr matrix(const std::string& name, int64_t n_out, int64_t n_in, double read_share = 1, bool only_looked_up = false) {
    const TqnMatrix* packed = model->packed_->find(name);
    const Tensor* tensor = packed ? nullptr : file().find(name);
    if (!packed && !tensor) return miss(name), nullptr;
    HostMatrix host = packed ? HostMatrix{.name = name, .packed = true, .tqn = *packed, .dense = {}} : host_matrix(name, *tensor);
    host.only_looked_up = only_looked_up;
    if ((n_out >= 0 && host.n_out() != n_out) || host.n_in() != n_in)
      fail_shape(name, shape_text({host.n_out(), host.n_in()}),
                 n_out < 0 ? "(any, " + std::to_string(n_in) + ")" : shape_text({n_out, n_in}));
    model->parameters_ += host.n_out() * host.n_in();
    model->weight_bytes_ += int64_t(read_share * double(host_bytes(host)));
    MatrixPtr loaded = device->matrix(host);
    loaded->name = name;
    return loaded;
  }

  static int64_t host_bytes(const HostMatrix& host) {
    if (!host.packed) return host.n_out() * host.n_in() * (host.dense.type == kernels::DType::f32 ? 4 : 2);
    tqn::PlaneBytes planes;
    tqn::plane_bytes(uint64_t(host.tqn.n_out), uint64_t(host.tqn.n_in), host.tqn.k, &planes);
    const int64_t entry = 2 + (host.tqn.outliers.col16 ? 2 : 4);
    return int64_t(planes.codes + planes.row_scale) + host.tqn.outliers.count * entry;
  }

  // (n), or (rows, n).
  std::vector<float> floats(const std::string& name, int64_t n, int64_t rows = 1) {
    const Tensor* tensor = file().find(name);
    if (!tensor) return miss(name), std::vector<float>{};
    kernels::DType type;
    if (!dense_type(tensor->type, &type))
      throw Error(Cause::unsupported, file().path() + ": tensor " + name + " has " + type_text(*tensor) + ", expected F32, F16 or BF16");
    if (tensor->elements() != uint64_t(n * rows) || tensor->shape.empty() || tensor->shape[0] != uint64_t(n))
      fail_shape(name, shape_text(*tensor), rows == 1 ? shape_text({n}) : shape_text({rows, n}));
    std::vector<float> values(static_cast<size_t>(n * rows));
    for (int64_t i = 0; i < n * rows; i++) {
      values[size_t(i)] = element(tensor->data.data(), type, i);
      if (!std::isfinite(values[size_t(i)]))
        throw Error(Cause::bad_file,
                    file().path() + ": tensor " + name + " is not finite at " + std::to_string(i) + ": " + number(values[size_t(i)]));
    }
    return values;
  }

  BufferPtr upload(const std::vector<float>& values) {
    const int64_t bytes = int64_t(values.size() * sizeof(float));
    BufferPtr buffer = device->allocate(bytes);
    device->upload(*buffer, 0, values.data(), bytes);
    return buffer;
  }

  BufferPtr vector(const std::string& name, int64_t n, int64_t rows = 1) {
    const std::vector<float> values = floats(name, n, rows);
    if (values.empty()) return nullptr;
    model->parameters_ += n * rows;
    BufferPtr loaded = upload(values);
    loaded->name = name;
    return loaded;
  }
  BufferPtr optional_vector(const std::string& name, int64_t n) { return has(name) ? vector(name, n) : nullptr; }

  // The embedding on the first device, the output on the last; a tied matrix is one object only where these are the same.
  void load_ends(Weights& w) {
    Backend* const last = model->parts_.back().backend.get();
    device = model->parts_.front().backend.get();
    const bool tied = !has("output.weight"), shared = tied && device == last;
    w.embed = matrix("token_embd.weight", -1, c.n_embd, shared ? 1 : 0);
    c.n_vocab = w.embed ? w.embed->n_out : 0;
    device = last;
    w.output = shared ? w.embed : matrix(tied ? "token_embd.weight" : "output.weight", c.n_vocab, c.n_embd);
    w.output_norm = vector("output_norm.weight", c.n_embd);
    if (tied && !shared && w.output) model->parameters_ -= w.output->n_out * w.output->n_in;  // counted once
  }

  // How much of pair i's frequency yarn divides: 0 to 1, for each pair.
  static std::vector<double> yarn_shares(const RopeConfig& rope) {
    const YarnConfig& yarn = rope.yarn;
    const auto pair_of = [&](double turns) {  // the pair that turns so often
      return rope.dims * std::log(double(yarn.original_ctx) / (turns * 2 * std::numbers::pi)) / (2 * std::log(double(rope.base)));
    };
    double low = pair_of(yarn.beta_fast), high = pair_of(yarn.beta_slow);
    if (yarn.whole_pairs) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.), high = std::min(high, double(rope.dims - 1));
    if (low == high) high += .001;
    std::vector<double> shares(size_t(rope.dims / 2));
    for (size_t i = 0; i < shares.size(); i++) shares[i] = std::clamp((double(i) - low) / (high - low), 0., 1.);
    return shares;
  }

  std::vector<float> inv_freq(const RopeConfig& rope, const char* factors_name) {
    const std::vector<float> factors = factors_name ? floats(factors_name, rope.dims / 2) : std::vector<float>{};
    const std::vector<double> shares = rope.yarn.factor == 1 ? std::vector<double>(size_t(rope.dims / 2)) : yarn_shares(rope);
    std::vector<float> values(size_t(rope.dims / 2));
    for (size_t i = 0; i < values.size(); i++) {
      const double factor = factors.empty() ? 1 : factors[i];
      if (!(factor > 0))
        throw Error(Cause::bad_file, file().path() + ": rope factor " + std::to_string(i) + " is " + std::to_string(factor));
      const double yarn = 1 - shares[i] + shares[i] / rope.yarn.factor;
      values[i] = float(std::pow(rope.base, -2.0 * double(i) / rope.dims) / (rope.linear_scale * factor) * yarn);
    }
    return values;
  }

  // Layers that turn alike share their frequencies, so that a pass computes its angles once.
  RopeFrequencies load_rope(const RopeConfig& rope) {
    for (const auto& [config, loaded] : ropes)
      if (config == rope) return loaded;
    const auto factors = [&](const char* name) { return rope.use_factors && has(name) ? name : nullptr; };
    const char *short_factors = factors("rope_factors_short.weight"), *long_factors = factors("rope_factors_long.weight");
    RopeFrequencies loaded;
    loaded.common = upload(inv_freq(rope, short_factors ? short_factors : factors("rope_freqs.weight")));
    if (long_factors) loaded.long_context = upload(inv_freq(rope, long_factors));
    return ropes.emplace_back(rope, loaded).second;
  }

  Layer load_layer(const std::string& blk, LayerConfig& layer) {
    Layer l;
    if (c.pre_norms) l.mixer_norm = vector(blk + "attn_norm.weight", c.n_embd), l.ffn_norm = vector(blk + "ffn_norm.weight", c.n_embd);
    if (c.post_norms) {
      l.mixer_post_norm = vector(blk + "post_attention_norm.weight", c.n_embd);
      l.ffn_post_norm = vector(blk + "post_ffw_norm.weight", c.n_embd);
    }
    if (c.post_norms && has(blk + "layer_output_scale.weight")) {
      const std::vector<float> scale = floats(blk + "layer_output_scale.weight", 1);
      if (!scale.empty()) l.scale = scale[0];
    }
    l.mixer = std::visit([&](auto& mixer) { return MixerWeights(load_mixer(blk, mixer)); }, layer.mixer);
    l.feed_forward = std::visit([&](const auto& part) { return FeedForwardWeights(load_feed_forward(blk, part)); }, layer.feed_forward);
    if (c.n_embd_layer > 0) l.per_layer = load_per_layer(blk);
    return l;
  }

  // The table of all layers' embeddings is read by rows: it counts as read nowhere.
  PerLayerWeights load_per_layer(const std::string& blk) {
    const char *table = "per_layer_token_embd.weight", *norm = "per_layer_proj_norm.weight";
    if (model->packed_->find(table))
      throw Error(Cause::unsupported, file().path() + ": tensor " + table + " is quantized; it must stay in 16 bit");
    const int64_t before = model->parameters_;
    if (!layer_embed) layer_embed = matrix(table, c.n_vocab, c.n_layers() * c.n_embd_layer, 0, true);
    if (!project_norm) project_norm = vector(norm, c.n_embd_layer);
    if (counted_layer_embed) model->parameters_ = before;
    counted_layer_embed = true;
    PerLayerWeights w;
    w.embed = layer_embed, w.project_norm = project_norm;
    w.project = matrix(blk + "per_layer_model_proj.weight", c.n_embd_layer, c.n_embd);
    w.gate = matrix(blk + "inp_gate.weight", c.n_embd_layer, c.n_embd);
    w.expand = matrix(blk + "proj.weight", c.n_embd, c.n_embd_layer);
    w.post_norm = vector(blk + "post_norm.weight", c.n_embd);
    return w;
  }

  // Of a layer's keys, F32 from `least` to `most`; empty where the file has none.
  std::vector<float> key_statistic(const std::string& name, const AttentionConfig& a, float least, float most) {
    if (!has(name)) return {};
    const Tensor* tensor = file().find(name);
    if (!tensor || tensor->type != gguf::kF32)
      throw Error(Cause::bad_file,
                  file().path() + ": tensor " + name + " has " + (tensor ? type_text(*tensor) : "codes") + ", expected F32");
    std::vector<float> values = floats(name, a.head_dim, a.n_kv_heads);
    for (size_t i = 0; i < values.size(); i++)
      if (!(values[i] >= least && values[i] <= most))
        throw Error(Cause::bad_file, file().path() + ": tensor " + name + " is " + number(values[i]) + " at " + std::to_string(i) +
                                         ", expected " + number(least) + " to " + number(most));
    return values;
  }

  // Layers that never keep codes have no use for them.
  void load_key_statistics(const std::string& blk, AttentionConfig& a, AttentionWeights& w) {
    const std::string mean = blk + "attn_k_cache_mean.weight", balance = blk + "attn_k_cache_balance.weight";
    if (a.kv_layer < 0) key_statistics.insert({mean, balance});
    if (!may_keep_codes(a)) return;
    LayerKeyStatistics s;
    s.mean = key_statistic(mean, a, -kMaxKeyMean, kMaxKeyMean);
    s.balance = key_statistic(balance, a, 1 / kMaxBalance, kMaxBalance);
    if (!s.mean.empty() && (a.soft_cap > 0 || a.sinks))
      throw Error(Cause::bad_file, file().path() + ": tensor " + mean + ": a layer with " +
                                       (a.sinks ? "sinks" : "a soft cap of its scores") +
                                       " cannot have means of keys: they would change its results");
    check_balanced_means(mean, s);
    if (s.mean.empty() && s.balance.empty()) return;
    if (!s.mean.empty()) w.key_mean = upload(s.mean);
    if (!s.balance.empty()) w.key_balance = upload(s.balance);
    a.key_statistics = std::make_shared<const LayerKeyStatistics>(std::move(s));
  }

  // A key near 0 becomes -mean / balance: scales of codes must hold that, too.
  void check_balanced_means(const std::string& name, const LayerKeyStatistics& s) const {
    if (s.balance.empty()) return;
    for (size_t i = 0; i < s.mean.size(); i++)
      if (const float balanced = s.mean[i] / s.balance[i]; !(std::fabs(balanced) <= kMaxKeyMean))
        throw Error(Cause::bad_file, file().path() + ": tensor " + name + " is " + number(s.mean[i]) + " at " + std::to_string(i) +
                                         ", divided by the balance there, " + number(s.balance[i]) + ", " + number(balanced) +
                                         ", expected " + number(-kMaxKeyMean) + " to " + number(kMaxKeyMean));
  }

  void check_key_statistics() const {
    for (const Tensor& tensor : file().tensors()) {
      const std::string name(tensor.name);
      if (name.find(".attn_k_cache_") != std::string::npos && !key_statistics.contains(name))
        throw Error(Cause::bad_file, file().path() + ": tensor " + name + ": the model has no layer whose keys that could describe");
    }
  }

  AttentionWeights load_mixer(const std::string& blk, AttentionConfig& a) {
    AttentionWeights w;
    w.q = matrix(blk + "attn_q.weight", a.q_width(), c.n_embd);
    const bool own = a.kv_layer < 0;
    if (own) w.k = matrix(blk + "attn_k.weight", a.kv_width(), c.n_embd);
    if (own && (!a.norm_values || has(blk + "attn_v.weight"))) w.v = matrix(blk + "attn_v.weight", a.kv_width(), c.n_embd);
    w.o = matrix(blk + "attn_output.weight", c.n_embd, a.q_width());
    w.q_bias = optional_vector(blk + "attn_q.bias", a.q_width());
    w.k_bias = optional_vector(blk + "attn_k.bias", a.kv_width());
    w.v_bias = optional_vector(blk + "attn_v.bias", a.kv_width());
    w.o_bias = optional_vector(blk + "attn_output.bias", c.n_embd);
    if (a.rope.dims > 0) w.rope = load_rope(a.rope);
    load_key_statistics(blk, a, w);
    if (a.sinks) w.sinks = vector(blk + "attn_sinks.weight", a.n_heads);
    if (a.output_gate) {
      w.gate = matrix(blk + "attn_gate.weight", a.q_width(), c.n_embd);
      w.gate_bias = optional_vector(blk + "attn_gate.bias", a.q_width());
    }
    if (a.qk_norm == QkNorm::none) return w;
    const bool per_head = a.qk_norm == QkNorm::per_head;
    w.q_norm = vector(blk + "attn_q_norm.weight", per_head ? a.head_dim : a.q_width());
    if (own) w.k_norm = vector(blk + "attn_k_norm.weight", per_head ? a.head_dim : a.kv_width());
    return w;
  }

  DeltaNetLayerWeights load_mixer(const std::string& blk, const DeltaNetConfig& d) {
    DeltaNetLayerWeights w;
    w.qkv = matrix(blk + "attn_qkv.weight", d.conv_width(), c.n_embd);
    w.gate = matrix(blk + "attn_gate.weight", d.value_width(), c.n_embd);
    w.alpha = matrix(blk + "ssm_alpha.weight", d.n_value_heads, c.n_embd);
    w.beta = matrix(blk + "ssm_beta.weight", d.n_value_heads, c.n_embd);
    w.out = matrix(blk + "ssm_out.weight", c.n_embd, d.value_width());
    w.conv = convolution(blk + "ssm_conv1d.weight", d);
    w.rate = vector(blk + "ssm_a", d.n_value_heads);
    w.dt_bias = vector(blk + "ssm_dt.bias", d.n_value_heads);
    w.norm = vector(blk + "ssm_norm.weight", d.value_dim);
    return w;
  }

  // A file has the taps of a channel side by side, the engine the channels of a tap.
  BufferPtr convolution(const std::string& name, const DeltaNetConfig& d) {
    const std::vector<float> stored = floats(name, d.taps, d.conv_width());
    if (stored.empty()) return nullptr;
    model->parameters_ += int64_t(stored.size());
    std::vector<float> turned(stored.size());
    const auto width = size_t(d.conv_width()), taps = size_t(d.taps);
    for (size_t channel = 0; channel < width; channel++)
      for (size_t tap = 0; tap < taps; tap++) turned[tap * width + channel] = stored[channel * taps + tap];
    return upload(turned);
  }

  // read_share: the part of its bytes that an average token reads.
  GatedWeights load_gated(const std::string& blk, const std::string& suffix, int64_t n_ff, double read_share = 1) {
    GatedWeights w;
    w.gate = matrix(blk + "ffn_gate" + suffix, n_ff, c.n_embd, read_share);
    w.up = matrix(blk + "ffn_up" + suffix, n_ff, c.n_embd, read_share);
    w.down = matrix(blk + "ffn_down" + suffix, c.n_embd, n_ff, read_share);
    return w;
  }

  GatedWeights load_feed_forward(const std::string& blk, const GatedConfig& f) { return load_gated(blk, ".weight", f.n_ff); }

  ExpertsWeights load_feed_forward(const std::string& blk, const ExpertsConfig& e) {
    ExpertsWeights w;
    w.router = matrix(blk + "ffn_gate_inp.weight", e.n_experts, c.n_embd);
    for (int i = 0; i < e.n_experts; i++) {
      std::string suffix = std::to_string(i);
      suffix = '.' + suffix + ".weight";
      w.experts.push_back(load_gated(blk, suffix, e.n_ff, double(e.n_used) / e.n_experts));
    }
    if (e.biases) {
      w.router_bias = vector(blk + "ffn_gate_inp.bias", e.n_experts);
      w.gate_bias = vector(blk + "ffn_gate_exps.bias", e.n_ff, e.n_experts),
      w.up_bias = vector(blk + "ffn_up_exps.bias", e.n_ff, e.n_experts);
      w.down_bias = vector(blk + "ffn_down_exps.bias", c.n_embd, e.n_experts);
    }
    if (e.n_ff_shared == 0) return w;
    w.shared = load_gated(blk, "_shexp.weight", e.n_ff_shared);
    if (has(blk + "ffn_gate_inp_shexp.weight")) w.shared_router = matrix(blk + "ffn_gate_inp_shexp.weight", 1, c.n_embd);
    return w;
  }

  ParallelWeights load_feed_forward(const std::string& blk, const ParallelConfig& f) {
    return {.gated = load_feed_forward(blk, f.gated),
            .experts = load_feed_forward(blk, f.experts),
            .gated_post_norm = vector(blk + "post_ffw_norm_1.weight", c.n_embd),
            .experts_norm = vector(blk + "pre_ffw_norm_2.weight", c.n_embd),
            .experts_post_norm = vector(blk + "post_ffw_norm_2.weight", c.n_embd)};
  }

  std::shared_ptr<Model> model;
  Config c;
  Backend* device = nullptr;                                  // what is loaded now goes here
  std::vector<std::pair<RopeConfig, RopeFrequencies>> ropes;  // on that device so far
  MatrixPtr layer_embed;                                      // on that device
  BufferPtr project_norm;                                     // likewise
  bool counted_layer_embed = false;
  std::set<std::string> key_statistics;  // names that layers may have
  std::string missing;
};

std::string Model::backend_names() const {
  std::string names;
  for (const Part& part : parts_) names += (names.empty() ? "" : ", ") + part.backend->name();
  return names;
}

std::shared_ptr<Model> Model::open(const std::string& path, const ModelOptions& options) { return Loader(path, options).load(); }

}  // namespace tq
