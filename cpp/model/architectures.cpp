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
  bool gemma = false;  // gelu, embeddings scaled by sqrt(n_embd)
  int window_pattern = 0;
  float rope_base_local = 0;
  bool normalize_expert_weights = true;
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
    {.name = "olmo2", .qk_norm = QkNorm::full, .pre_norms = false, .post_norms = true},
    {.name = "gemma", .gemma = true},
    {.name = "gemma2", .post_norms = true, .gemma = true, .window_pattern = 2},
    {.name = "gemma3", .qk_norm = QkNorm::per_head, .post_norms = true, .gemma = true, .window_pattern = 6, .rope_base_local = 10000},
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

// Typed, range-checked access to the keys under the architecture's name.
class Keys {
 public:
  Keys(const gguf::File& file, std::string_view prefix) : file_(file), prefix_(std::string(prefix) + ".") {}

  bool has(std::string_view key) const { return file_.get(full(key)) != nullptr; }

  // Lists with one number a layer are accepted when all are equal.
  int64_t integer(std::string_view key, int64_t low, int64_t high) const {
    const std::vector<uint64_t> values = file_.u64s(full(key));
    if (values.empty()) return check(key, file_.u64(full(key)), low, high);
    if (std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) != values.end())
      throw Error(Cause::unsupported, where(key) + " differs between layers");
    return check(key, values[0], low, high);
  }
  int64_t integer(std::string_view key, int64_t low, int64_t high, int64_t fallback) const {
    return has(key) ? integer(key, low, high) : fallback;
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

constexpr int64_t kMaxDim = 1 << 20, kMaxLayers = 4096, kMaxContext = int64_t(1) << 30, kMaxExperts = 4096;

void read_shape(const Keys& keys, Config& c) {
  c.n_layers = keys.integer("block_count", 1, kMaxLayers);
  c.n_embd = keys.integer("embedding_length", 1, kMaxDim);
  c.n_ctx_train = keys.integer("context_length", 1, kMaxContext);
  c.n_heads = int(keys.integer("attention.head_count", 1, kMaxDim));
  c.n_kv_heads = int(keys.integer("attention.head_count_kv", 1, kMaxDim, c.n_heads));
  if (c.n_heads % c.n_kv_heads != 0)
    throw Error(Cause::bad_file, keys.where("attention.head_count_kv") + " is " + std::to_string(c.n_kv_heads) +
                                     ", which does not divide " + std::to_string(c.n_heads) + " heads");
  c.head_dim = int(keys.integer("attention.key_length", 1, kMaxDim, c.n_embd / c.n_heads));
  if (c.head_dim < 2 || c.head_dim % 2 != 0)
    throw Error(Cause::bad_file, keys.where("attention.key_length") + ": heads of " + std::to_string(c.head_dim));
  if (keys.integer("attention.value_length", 1, kMaxDim, c.head_dim) != c.head_dim)
    throw Error(Cause::unsupported, keys.where("attention.value_length") + " differs from the key length");
  c.norm_eps = keys.real("attention.layer_norm_rms_epsilon", 0, 1, 1e-5);
}

void read_experts(const Keys& keys, const Architecture& a, Config& c) {
  c.n_experts = int(keys.integer("expert_count", 0, kMaxExperts, 0));
  c.n_ff = keys.integer("feed_forward_length", 0, kMaxDim, 0);
  if (c.n_experts == 0) {
    if (c.n_ff == 0) throw Error(Cause::bad_file, keys.where("feed_forward_length") + " is absent or 0");
    return;
  }
  c.n_experts_used = int(keys.integer("expert_used_count", 1, c.n_experts));
  c.n_ff_expert = keys.integer("expert_feed_forward_length", 1, kMaxDim, c.n_ff);
  if (c.n_ff_expert == 0) throw Error(Cause::bad_file, keys.where("expert_feed_forward_length") + " is absent or 0");
  c.n_ff_shared = keys.integer("expert_shared_feed_forward_length", 0, kMaxDim, 0);
  c.normalize_expert_weights = keys.boolean("expert_weights_norm", a.normalize_expert_weights);
}

void read_rope(const Keys& keys, const Architecture& a, Config& c) {
  c.rope_pairs = a.rope_pairs;
  c.rope_dims = int(keys.integer("rope.dimension_count", 2, c.head_dim, c.head_dim));
  if (c.rope_dims % 2 != 0) throw Error(Cause::bad_file, keys.where("rope.dimension_count") + " is odd");
  c.rope_base = keys.real("rope.freq_base", 1, 1e12, 10000);
  if (a.rope_base_local > 0) c.rope_base_local = keys.real("rope.freq_base_swa", 1, 1e12, a.rope_base_local);
  const std::string_view type = keys.string("rope.scaling.type", keys.has("rope.scale_linear") ? "linear" : "none");
  if (type == "linear")
    c.rope_linear_scale = keys.real("rope.scaling.factor", 1e-3, 1e6, keys.real("rope.scale_linear", 1e-3, 1e6, 1));
  else if (type != "none" && type != "longrope")
    throw Error(Cause::unsupported, keys.where("rope.scaling.type") + " is \"" + std::string(type) + "\"");
  c.rope_magnitude = keys.real("rope.scaling.attn_factor", 1e-3, 1e3, 1);
  c.rope_original_ctx = keys.integer("rope.scaling.original_context_length", 0, kMaxContext, 0);
}

void read_scales(const Keys& keys, const Architecture& a, Config& c) {
  c.embed_scale = keys.real("embedding_scale", 0, 1e6, a.gemma ? std::sqrt(double(c.n_embd)) : 1);
  c.residual_scale = keys.real("residual_scale", 0, 1e6, 1);
  c.logit_scale = 1 / keys.real("logit_scale", 1e-6, 1e6, 1);
  c.attention_scale = keys.real("attention.scale", 0, 1e6, 1 / std::sqrt(double(c.head_dim)));
  c.attention_soft_cap = keys.real("attn_logit_softcapping", 0, 1e6, 0);
  c.logit_soft_cap = keys.real("final_logit_softcapping", 0, 1e6, 0);
  // The 27 B models of gemma 2 and 3 divide by the root of n_embd / n_heads, which no key says.
  const bool gemma_27b = (a.name == "gemma2" && c.n_layers == 46) || (a.name == "gemma3" && c.n_layers == 62);
  if (gemma_27b && !keys.has("attention.scale")) c.attention_scale = float(1 / std::sqrt(double(c.n_embd) / c.n_heads));
}

void read_window(const Keys& keys, const Architecture& a, Config& c) {
  c.window = keys.integer("attention.sliding_window", 0, kMaxContext, 0);
  c.window_pattern = int(keys.integer("attention.sliding_window_pattern", 0, kMaxLayers, a.window_pattern));
}

}  // namespace

std::span<const std::string_view> supported_architectures() { return kNames; }

Config read_config(const gguf::File& file) {
  const Architecture& a = find_architecture(file);
  const Keys keys(file, a.name);
  Config c;
  c.architecture = a.name;
  c.pre_norms = a.pre_norms, c.post_norms = a.post_norms, c.qk_norm = a.qk_norm;
  c.activation = a.gemma ? GatedActivation::gelu_tanh : GatedActivation::silu;
  read_shape(keys, c);
  read_experts(keys, a, c);
  read_rope(keys, a, c);
  read_scales(keys, a, c);
  read_window(keys, a, c);
  return c;
}

}  // namespace tq
