#include "model/architectures.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "common/error.h"

namespace tq {
namespace {

// One line for each architecture: what its name alone decides. The rest is in the file.
struct Architecture {
  std::string_view name;
  bool rope_pairs = false;
  QkNorm qk_norm = QkNorm::none;
  bool pre_norms = true, post_norms = false;
  bool gemma4 = false;           // scores are not scaled, values normed, windowed layers have heads of their own size
  bool gpt_oss = false;          // sinks, experts with biases, clamped swiglu
  bool gemma = false;            // gelu, embeddings scaled by sqrt(n_embd)
  int window_pattern = 0;        // where no key says otherwise
  int rope_pattern = 0;          // likewise
  bool plain_windows = false;    // windowed layers turn unscaled, by a base of their own
  float rope_base_windowed = 0;  // that base, where no key says otherwise; 0: that of the other layers
  bool normalize_expert_weights = true;
  bool delta_net = false;          // some layers are delta nets, the others have an output gate
  bool tiled_value_heads = false;  // DeltaNetShape::tiled
};

constexpr auto kArchitectures = std::to_array<Architecture>({
    {.name = "llama", .rope_pairs = true},  // and mistral, mixtral, smollm, yi
    {.name = "mistral", .rope_pairs = true},
    {.name = "granite", .rope_pairs = true},
    {.name = "qwen2"},
    {.name = "qwen2moe", .normalize_expert_weights = false},
    {.name = "qwen3", .qk_norm = QkNorm::per_head},
    {.name = "qwen3moe", .qk_norm = QkNorm::per_head},
    {.name = "phi3"},
    {.name = "olmo2", .qk_norm = QkNorm::full, .pre_norms = false, .post_norms = true, .plain_windows = true},  // and olmo3
    {.name = "smollm3", .rope_pairs = true, .rope_pattern = 4},
    {.name = "mistral3", .rope_pairs = true},
    {.name = "gpt-oss", .gpt_oss = true, .window_pattern = 2},
    {.name = "qwen35", .qk_norm = QkNorm::per_head, .delta_net = true, .tiled_value_heads = true},
    {.name = "qwen35moe", .qk_norm = QkNorm::per_head, .delta_net = true, .tiled_value_heads = true},
    {.name = "qwen3next", .qk_norm = QkNorm::per_head, .delta_net = true},
    {.name = "gemma", .gemma = true},
    {.name = "gemma2", .post_norms = true, .gemma = true, .window_pattern = 2},
    {.name = "gemma3",
     .qk_norm = QkNorm::per_head,
     .post_norms = true,
     .gemma = true,
     .window_pattern = 6,
     .plain_windows = true,
     .rope_base_windowed = 10000},
    {.name = "gemma4",
     .qk_norm = QkNorm::per_head,
     .post_norms = true,
     .gemma4 = true,
     .gemma = true,
     .window_pattern = 6,
     .plain_windows = true,
     .rope_base_windowed = 10000},
});

constexpr auto kNames = [] {
  std::array<std::string_view, kArchitectures.size()> names;
  for (size_t i = 0; i < names.size(); i++) names[i] = kArchitectures[i].name;
  return names;
}();

const Architecture& find_architecture(const gguf::File& file) {
  const std::string_view name = file.string("general.architecture");
  for (const Architecture& a : kArchitectures)
    if (a.name == name) return a;
  std::string known;
  for (std::string_view each : kNames) known += (known.empty() ? "" : ", ") + std::string(each);
  throw Error(Cause::unsupported, file.path() + ": architecture \"" + std::string(name) + "\" is not supported (supported: " + known + ")");
}

constexpr int64_t kMaxDim = 1 << 20, kMaxHeadDim = 1 << 12, kMaxLayers = 4096, kMaxContext = int64_t(1) << 30, kMaxExperts = 4096;

// Typed, range-checked access to the keys under the architecture's name.
class Keys {
 public:
  Keys(const gguf::File& file, std::string_view prefix) : file_(file), prefix_(std::string(prefix) + ".") {}

  bool has(std::string_view key) const { return file_.get(full(key)) != nullptr; }

  int64_t integer(std::string_view key, int64_t low, int64_t high) const { return check(key, file_.u64(full(key)), low, high); }
  int64_t integer(std::string_view key, int64_t low, int64_t high, int64_t fallback) const {
    return has(key) ? integer(key, low, high) : fallback;
  }

  // A number for each layer: a list has as many, a single number is that of all layers. Empty when the file does not have the key.
  std::vector<int64_t> integers(std::string_view key, int64_t n_layers, int64_t low, int64_t high) const {
    const gguf::Value* value = file_.get(full(key));
    if (!value) return {};
    const auto* list = std::get_if<gguf::Array>(&value->data);
    if (!list) return std::vector<int64_t>(size_t(n_layers), integer(key, low, high));
    if (list->count != uint64_t(n_layers))
      throw Error(Cause::bad_file,
                  where(key) + " has " + std::to_string(list->count) + " numbers for " + std::to_string(n_layers) + " layers");
    std::vector<int64_t> numbers;
    for (const uint64_t number : file_.u64s(full(key))) numbers.push_back(check(key, number, low, high));
    return numbers;
  }
  std::vector<int64_t> integers(std::string_view key, int64_t n_layers, int64_t low, int64_t high,
                                const std::vector<int64_t>& fallback) const {
    return has(key) ? integers(key, n_layers, low, high) : fallback;
  }

  // A choice for each layer. A list says it layer by layer; a number n chooses all layers but every n-th, and 0 all of them.
  std::vector<bool> pattern(std::string_view key, int64_t n_layers, int64_t fallback) const {
    const gguf::Value* value = file_.get(full(key));
    std::vector<bool> chosen(static_cast<size_t>(n_layers));
    if (value && std::holds_alternative<gguf::Array>(value->data)) {
      const std::vector<int64_t> list = integers(key, n_layers, 0, 1);
      for (size_t i = 0; i < list.size(); i++) chosen[i] = list[i] != 0;
      return chosen;
    }
    const int64_t n = integer(key, 0, kMaxLayers, fallback);
    for (int64_t i = 0; i < n_layers; i++) chosen[size_t(i)] = n == 0 || (i + 1) % n != 0;
    return chosen;
  }

  float real(std::string_view key, double low, double high, double fallback) const {
    const double value = file_.f64(full(key), fallback);
    if (!(value >= low && value <= high)) throw Error(Cause::bad_file, where(key) + " is " + std::to_string(value));
    return float(value);
  }

  std::string_view string(std::string_view key, std::string_view fallback) const { return file_.string(full(key), fallback); }
  bool boolean(std::string_view key, bool fallback) const { return file_.boolean(full(key), fallback); }
  std::string where(std::string_view key) const { return file_.path() + ": key " + full(key); }

 private:
  std::string full(std::string_view key) const { return prefix_ + std::string(key); }
  int64_t check(std::string_view key, uint64_t value, int64_t low, int64_t high) const {
    if (value >= uint64_t(low) && value <= uint64_t(high)) return int64_t(value);
    throw Error(Cause::bad_file,
                where(key) + " is " + std::to_string(value) + ", expected " + std::to_string(low) + " to " + std::to_string(high));
  }

  const gguf::File& file_;
  std::string prefix_;
};

constexpr int64_t kLeastTensors = 4;  // of a layer: the matrices of attention

// Files are hostile: before anything is made of a number of layers or experts, the file must have the tensors to fill them with.
void check_tensors(const gguf::File& file, const Keys& keys, std::string_view key, int64_t number, int64_t least_tensors) {
  const auto held = int64_t(file.tensors().size());
  if (least_tensors > held)
    throw Error(Cause::bad_file, keys.where(key) + " is " + std::to_string(number) + ", which takes " + std::to_string(least_tensors) +
                                     " tensors or more; the file has " + std::to_string(held));
}

int64_t read_shape(const gguf::File& file, const Keys& keys, Config& c) {
  const int64_t n_layers = keys.integer("block_count", 1, kMaxLayers);
  check_tensors(file, keys, "block_count", n_layers, n_layers * kLeastTensors);
  c.n_embd = keys.integer("embedding_length", 1, kMaxDim);
  c.n_ctx_train = keys.integer("context_length", 1, kMaxContext);
  c.norm_eps = keys.real("attention.layer_norm_rms_epsilon", 0, 1, 1e-5);
  return n_layers;
}

int64_t read_head_dim(const Keys& keys, const std::string& suffix, int64_t fallback) {
  const std::string key = "attention.key_length" + suffix, values = "attention.value_length" + suffix;
  const int64_t head_dim = keys.integer(key, 1, kMaxDim, fallback);
  if (head_dim < 2 || head_dim % 2 != 0) throw Error(Cause::bad_file, keys.where(key) + ": heads of " + std::to_string(head_dim));
  if (keys.integer(values, 1, kMaxDim, head_dim) != head_dim)
    throw Error(Cause::unsupported, keys.where(values) + " differs from the key length");
  return head_dim;
}

// windowed: of each layer, whether it has a window.
void read_heads(const Keys& keys, const Architecture& a, const std::vector<bool>& windowed, Config& c) {
  const std::vector<int64_t> heads = keys.integers("attention.head_count", c.n_layers(), 1, kMaxDim);
  if (heads.empty()) throw Error(Cause::bad_file, keys.where("attention.head_count") + " is missing");
  const std::vector<int64_t> kv_heads = keys.integers("attention.head_count_kv", c.n_layers(), 1, kMaxDim, heads);
  const int64_t head_dim = read_head_dim(keys, "", c.n_embd / heads[0]);
  const int64_t head_dim_windowed = a.gemma4 ? read_head_dim(keys, "_swa", head_dim) : head_dim;
  for (size_t i = 0; i < heads.size(); i++) {
    if (heads[i] % kv_heads[i] != 0)
      throw Error(Cause::bad_file, keys.where("attention.head_count_kv") + " is " + std::to_string(kv_heads[i]) +
                                       ", which does not divide " + std::to_string(heads[i]) + " heads");
    AttentionConfig attention;
    attention.n_heads = int(heads[i]), attention.n_kv_heads = int(kv_heads[i]),
    attention.head_dim = int(windowed[i] ? head_dim_windowed : head_dim);
    attention.qk_norm = a.qk_norm, attention.sinks = a.gpt_oss, attention.norm_values = a.gemma4;
    attention.output_gate = a.delta_net;
    c.layers[i].mixer = attention;
  }
}

void read_gated(const Keys& keys, GatedActivation activation, Config& c) {
  const std::vector<int64_t> n_ff = keys.integers("feed_forward_length", c.n_layers(), 1, kMaxDim);
  if (n_ff.empty()) throw Error(Cause::bad_file, keys.where("feed_forward_length") + " is missing");
  for (size_t i = 0; i < n_ff.size(); i++) c.layers[i].feed_forward = GatedConfig{.n_ff = n_ff[i], .activation = activation};
}

void read_experts(const gguf::File& file, const Keys& keys, const Architecture& a, GatedActivation activation, Config& c) {
  const int64_t n_experts = keys.integer("expert_count", 0, kMaxExperts, 0);
  if (n_experts == 0) return read_gated(keys, activation, c);
  check_tensors(file, keys, "expert_count", n_experts, c.n_layers() * n_experts * 3);
  ExpertsConfig experts{.n_experts = int(n_experts), .biases = a.gpt_oss, .activation = activation};
  experts.n_used = int(keys.integer("expert_used_count", 1, n_experts));
  experts.n_ff = keys.integer("expert_feed_forward_length", 1, kMaxDim, 0);
  if (experts.n_ff == 0) experts.n_ff = keys.integer("feed_forward_length", 1, kMaxDim);
  experts.n_ff_shared = keys.integer("expert_shared_feed_forward_length", 0, kMaxDim, 0);
  experts.normalize = keys.boolean("expert_weights_norm", a.normalize_expert_weights);
  if (a.gemma4) read_gated(keys, activation, c);
  for (LayerConfig& layer : c.layers)
    layer.feed_forward = a.gemma4 ? FeedForward(ParallelConfig{std::get<GatedConfig>(layer.feed_forward), experts}) : FeedForward(experts);
}

// Yarn, and the magnitude that belongs to it: llama.cpp's files give what it is multiplied by, or mscale_all_dim as yarn_log_multiplier.
void read_yarn(const Keys& keys, int64_t n_ctx_train, RopeConfig& rope) {
  YarnConfig& yarn = rope.yarn;
  yarn.factor = keys.real("rope.scaling.factor", 1e-3, 1e6, 1);
  yarn.beta_fast = keys.real("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32);
  yarn.beta_slow = keys.real("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1);
  yarn.original_ctx = keys.integer("rope.scaling.original_context_length", 1, kMaxContext, n_ctx_train);
  yarn.whole_pairs = keys.boolean("rope.scaling.yarn_truncate", true);
  if (rope.base <= 1)
    throw Error(Cause::bad_file, keys.where("rope.freq_base") + " is " + std::to_string(rope.base) + ", too small for yarn");
  const auto magnitude = [&](double multiplier) { return yarn.factor <= 1 ? 1 : 1 + .1 * multiplier * std::log(yarn.factor); };
  const float multiplier = keys.real("rope.scaling.yarn_log_multiplier", 0, 1e3, 0);
  rope.magnitude *= float(magnitude(1) / (multiplier > 0 ? magnitude(multiplier) : 1));
}

RopeConfig read_rope(const Keys& keys, const Architecture& a, int head_dim, int64_t n_ctx_train) {
  RopeConfig rope{.pairs = a.rope_pairs};
  rope.dims = int(keys.integer("rope.dimension_count", 2, head_dim, head_dim));
  if (rope.dims % 2 != 0) throw Error(Cause::bad_file, keys.where("rope.dimension_count") + " is odd");
  rope.base = keys.real("rope.freq_base", 1, 1e12, 10000);
  const std::string_view type = keys.string("rope.scaling.type", keys.has("rope.scale_linear") ? "linear" : "none");
  if (type == "linear")
    rope.linear_scale = keys.real("rope.scaling.factor", 1e-3, 1e6, keys.real("rope.scale_linear", 1e-3, 1e6, 1));
  else if (type != "none" && type != "longrope" && type != "yarn")
    throw Error(Cause::unsupported, keys.where("rope.scaling.type") + " is \"" + std::string(type) + "\"");
  rope.magnitude = keys.real("rope.scaling.attn_factor", 1e-3, 1e3, 1);
  if (type == "yarn") read_yarn(keys, n_ctx_train, rope);
  rope.original_ctx = keys.integer("rope.scaling.original_context_length", 0, kMaxContext, 0);
  return rope;
}

void read_scales(const Keys& keys, const Architecture& a, Config& c) {
  c.embed_scale = keys.real("embedding_scale", 0, 1e6, a.gemma ? std::sqrt(double(c.n_embd)) : 1);
  c.residual_scale = keys.real("residual_scale", 0, 1e6, 1);
  c.logit_scale = 1 / keys.real("logit_scale", 1e-6, 1e6, 1);
  c.logit_soft_cap = keys.real("final_logit_softcapping", 0, 1e6, 0);
}

// The size of heads in layers with a window, or in those without one; where there are no such layers, that of the others.
int largest_head(const Config& c, const std::vector<bool>& windowed, bool with_window) {
  int found = 0, other = 0;
  for (size_t i = 0; i < windowed.size(); i++) {
    int& most = windowed[i] == with_window ? found : other;
    most = std::max(most, std::get<AttentionConfig>(c.layers[i].mixer).head_dim);
  }
  return found > 0 ? found : other;
}

// The last layers see the keys and values of the last layer before them that has a window as they have, or none.
void read_shared_keys(const Keys& keys, Config& c) {
  const int64_t shared = keys.integer("attention.shared_kv_layers", 0, c.n_layers(), 0), first = c.n_layers() - shared;
  for (int64_t i = first; i < c.n_layers(); i++) {
    auto& a = std::get<AttentionConfig>(c.layers[size_t(i)].mixer);
    for (int64_t j = first - 1; j >= 0 && a.kv_layer < 0; j--)
      if ((std::get<AttentionConfig>(c.layers[size_t(j)].mixer).window > 0) == (a.window > 0)) a.kv_layer = int(j);
    if (a.kv_layer < 0)
      throw Error(Cause::bad_file, keys.where("attention.shared_kv_layers") + " is " + std::to_string(shared) + ": no layer before layer " +
                                       std::to_string(i) + " has keys that it could share");
    auto& own = std::get<AttentionConfig>(c.layers[size_t(a.kv_layer)].mixer);
    own.kv_shared = true, a.n_kv_heads = own.n_kv_heads;
    if (a.n_heads % a.n_kv_heads != 0)
      throw Error(Cause::bad_file, keys.where("attention.head_count_kv") + ": " + std::to_string(a.n_kv_heads) + " heads of layer " +
                                       std::to_string(a.kv_layer) + " do not divide the " + std::to_string(a.n_heads) + " of layer " +
                                       std::to_string(i) + ", which shares them");
  }
}

QueryGrowth read_growth(const Keys& keys, const RopeConfig& rope) {
  QueryGrowth growth;
  growth.beta = keys.real("attention.temperature_scale", 0, 1e3, 0);
  if (growth.beta == 0) return {};
  const int64_t original = std::max(rope.yarn.original_ctx, rope.original_ctx);
  growth.length = keys.integer("attention.temperature_length", 1, kMaxContext, original);
  if (growth.length == 0) throw Error(Cause::bad_file, keys.where("attention.temperature_length") + " is missing");
  return growth;
}

void read_attention(const Keys& keys, const Architecture& a, Config& c) {
  const int64_t window = keys.integer("attention.sliding_window", 0, kMaxContext, 0);
  std::vector<bool> windowed = keys.pattern("attention.sliding_window_pattern", c.n_layers(), a.window_pattern);
  if (window == 0) windowed.assign(windowed.size(), false);
  read_heads(keys, a, windowed, c);
  const RopeConfig rope = read_rope(keys, a, largest_head(c, windowed, false), c.n_ctx_train);
  RopeConfig local = rope;
  if (a.plain_windows) {
    local = {.use_factors = false, .dims = rope.dims, .pairs = rope.pairs};
    local.base = keys.real("rope.freq_base_swa", 1, 1e12, a.rope_base_windowed > 0 ? a.rope_base_windowed : rope.base);
  }
  // The 27 B models of gemma 2 and 3 divide by the root of n_embd / n_heads, which no key says.
  const bool gemma_27b = (a.name == "gemma2" && c.n_layers() == 46) || (a.name == "gemma3" && c.n_layers() == 62);
  if (a.gemma4) {
    const int64_t head_dim = largest_head(c, windowed, true);
    local.dims = int(keys.integer("rope.dimension_count_swa", 2, head_dim, head_dim));
    if (local.dims % 2 != 0) throw Error(Cause::bad_file, keys.where("rope.dimension_count_swa") + " is odd");
  }
  const std::vector<bool> turns = keys.pattern("rope.layer_pattern", c.n_layers(), a.rope_pattern);
  const QueryGrowth growth = read_growth(keys, rope);
  for (int64_t i = 0; i < c.n_layers(); i++) {
    auto& attention = std::get<AttentionConfig>(c.layers[size_t(i)].mixer);
    attention.scale = keys.real("attention.scale", 0, 1e6, a.gemma4 ? 1 : 1 / std::sqrt(double(attention.head_dim)));
    if (gemma_27b && !keys.has("attention.scale")) attention.scale = float(1 / std::sqrt(double(c.n_embd) / attention.n_heads));
    attention.soft_cap = keys.real("attn_logit_softcapping", 0, 1e6, 0);
    attention.window = windowed[size_t(i)] ? window : 0;
    attention.rope = windowed[size_t(i)] ? local : rope;
    attention.growth = growth;
    if (!turns[size_t(i)]) attention.rope = {.dims = 0};
  }
}

// Layers that are delta nets in place of attention.
void read_delta_nets(const Keys& keys, const Architecture& a, Config& c) {
  DeltaNetConfig d{.tiled = a.tiled_value_heads};
  d.n_key_heads = int(keys.integer("ssm.group_count", 1, kMaxDim));
  d.n_value_heads = int(keys.integer("ssm.time_step_rank", 1, kMaxDim));
  d.key_dim = int(keys.integer("ssm.state_size", 1, kMaxHeadDim));
  const int64_t values = keys.integer("ssm.inner_size", 1, kMaxDim);
  d.taps = int(keys.integer("ssm.conv_kernel", 2, kMaxTaps));
  if (values % d.n_value_heads != 0 || values / d.n_value_heads > kMaxHeadDim)
    throw Error(Cause::bad_file, keys.where("ssm.inner_size") + " is " + std::to_string(values) + ", expected " +
                                     std::to_string(d.n_value_heads) + " heads of at most " + std::to_string(kMaxHeadDim));
  if (d.n_value_heads % d.n_key_heads != 0)
    throw Error(Cause::bad_file, keys.where("ssm.group_count") + " is " + std::to_string(d.n_key_heads) + ", which does not divide " +
                                     std::to_string(d.n_value_heads) + " heads");
  d.value_dim = int(values / d.n_value_heads);
  const std::vector<bool> recurrent =
      keys.pattern("attention.recurrent_layers", c.n_layers(), keys.integer("full_attention_interval", 0, kMaxLayers, 4));
  for (size_t i = 0; i < recurrent.size(); i++)
    if (recurrent[i]) c.layers[i].mixer = d;
}

}  // namespace

std::span<const std::string_view> supported_architectures() { return kNames; }

Config read_config(const gguf::File& file) {
  const Architecture& a = find_architecture(file);
  const Keys keys(file, a.name);
  Config c;
  c.architecture = a.name;
  c.pre_norms = a.pre_norms, c.post_norms = a.post_norms;
  if (a.gemma4) c.n_embd_layer = keys.integer("embedding_length_per_layer_input", 0, kMaxDim, 0);
  c.layers.resize(size_t(read_shape(file, keys, c)));
  read_attention(keys, a, c);
  if (a.gemma4) read_shared_keys(keys, c);
  const GatedActivation activation = a.gpt_oss ? GatedActivation::clamped_swiglu : GatedActivation::silu;
  if (a.delta_net) read_delta_nets(keys, a, c);
  read_experts(file, keys, a, a.gemma ? GatedActivation::gelu_tanh : activation, c);
  read_scales(keys, a, c);
  return c;
}

}  // namespace tq
