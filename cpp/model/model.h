// The engine on one page: what a model is (Config, Weights), what a running one remembers (Context), and how tokens become logits.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "gguf/gguf.h"

namespace tq {

enum class QkNorm : uint8_t {
  none,
  per_head,
  full
};  // RMS norm of q and k before the rope: each head by itself (weight head_dim), all heads as one

// Everything that distinguishes one architecture from another; filled from the file's metadata and the table in architectures.cpp.
struct Config {
  std::string architecture;  // GGUF's name: "llama", "qwen2", "gemma2", ...
  int64_t n_layers = 0, n_embd = 0, n_ff = 0, n_vocab = 0, n_ctx_train = 0;
  int n_heads = 0, n_kv_heads = 0, head_dim = 0;
  float norm_eps = 0;
  float embed_scale = 1, residual_scale = 1, logit_scale = 1;
  float attention_scale = 0;  // 0: 1 / sqrt(head_dim)
  float attention_soft_cap = 0, logit_soft_cap = 0;
  GatedActivation activation = GatedActivation::silu;
  bool pre_norms = true, post_norms = false;  // of attention and feed-forward: before, after (gemma 2: both; olmo 2: after only)
  QkNorm qk_norm = QkNorm::none;
  // Rotary embedding; `local` is the second base of models that alternate window and full attention (gemma 3).
  float rope_base = 10000, rope_base_local = 0, rope_linear_scale = 1, rope_magnitude = 1;
  int64_t rope_original_ctx = 0;  // of models with rope factors for long and short contexts (phi 3): contexts above it use the long ones
  int rope_dims = 0;
  bool rope_pairs = false;  // llama.cpp's permuted layout: neighbours (2i, 2i + 1)
  int64_t window = 0;       // sliding window of the windowed layers; 0: none
  int window_pattern = 0;   // every pattern-th layer is full; 0: all layers windowed when window > 0
  // Mixture of experts; n_experts 0: dense.
  int n_experts = 0, n_experts_used = 0;
  int64_t n_ff_expert = 0, n_ff_shared = 0;
  bool normalize_expert_weights = true;
  bool layer_is_windowed(int64_t layer) const { return window > 0 && (window_pattern == 0 || (layer + 1) % window_pattern != 0); }
};

// Inverse frequencies, (rope_dims / 2); local: of windowed layers, long: of contexts above rope_original_ctx; null where the model has
// none.
struct RopeFrequencies {
  BufferPtr common, local, long_context;
};

struct Layer {
  BufferPtr attn_norm, q_norm, k_norm, attn_post_norm, ffn_norm, ffn_post_norm;  // null where the architecture has none
  MatrixPtr q, k, v, o;
  RopeFrequencies rope;  // the same for all layers on one device
  BufferPtr q_bias, k_bias, v_bias, o_bias;
  MatrixPtr gate, up, down;
  MatrixPtr router, shared_router, shared_gate, shared_up, shared_down;
  std::vector<MatrixPtr> expert_gate, expert_up, expert_down;
};

struct Weights {
  MatrixPtr embed, output;  // output == embed when tied
  BufferPtr output_norm;
  std::vector<Layer> layers;
};

struct ModelOptions {
  // "cpu", "cuda", "metal", "cuda:1" (a device number; else backend.device), or several parts, each with its number of layers:
  // "cpu*8,cuda:0*12". One part may come without a number and takes the layers that the others leave. The embedding is on the first part,
  // the output on the last.
  std::string device = "cpu";
  BackendOptions backend;
  bool lock_memory = false;
};

// The layers [first, last) on one device.
struct Part {
  std::unique_ptr<Backend> backend;
  int64_t first = 0, last = 0;
};

// Immutable after open; any number of contexts may use it, from any threads (forward passes on one backend run one at a time).
class Model {
 public:
  static std::shared_ptr<Model> open(const std::string& path, const ModelOptions& options);
  const Config& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  const gguf::File& file() const { return *file_; }
  std::shared_ptr<const gguf::File> shared_file() const { return file_; }
  Precision precision() const { return precision_; }
  std::span<const Part> parts() const { return parts_; }
  std::string backend_names() const;
  int64_t parameters() const { return parameters_; }      // elements of all matrices and vectors
  int64_t weight_bytes() const { return weight_bytes_; }  // bytes that one decoded token must read: all but the embedding's unused rows

 private:
  std::shared_ptr<const gguf::File> file_;
  std::unique_ptr<gguf::TqnTensors> packed_;
  std::vector<Part> parts_;
  Config config_;
  Weights weights_;
  Precision precision_ = Precision::int8;
  int64_t parameters_ = 0, weight_bytes_ = 0;
  friend struct Loader;
};

enum class CacheType : uint8_t { automatic, f16, f32 };  // automatic: float32 on the float path where the backend can, else float16

struct ContextOptions {
  int64_t n_ctx = 0;      // positions per slot; 0: the model's
  int64_t n_slots = 1;    // independent sequences
  int64_t n_batch = 512;  // most rows of one forward pass
  CacheType cache = CacheType::automatic;
};

// The memory of running sequences: KV cache, activations and the prepared program. One forward pass at a time.
class Context {
 public:
  Context(std::shared_ptr<Model> model, const ContextOptions& options);
  ~Context();
  int64_t n_ctx() const { return options_.n_ctx; }
  int64_t n_slots() const { return options_.n_slots; }
  int64_t n_batch() const { return options_.n_batch; }
  const Model& model() const { return *model_; }
  // One pass over at most n_batch rows; logits: (output_rows, n_vocab) float32 or empty when no rows are asked for.
  // Throws invalid_argument naming the row and value for a token, slot or position out of range.
  void forward(const Batch& batch, std::span<float> logits);
  // The same, but of each output row only the best tokens: (output_rows, kMaxCandidates), descending, ties to the lower token, kNoCandidate
  // where there are no more above -inf.
  void forward_best(const Batch& batch, std::span<Candidate> best);
  // The logits (n_vocab) of output row `row` of the latest pass, which must have had at most 64 of them.
  void read_logits(int64_t row, std::span<float> logits) const;
  // Final hidden states (after the output norm) of the output rows instead of logits, (output_rows, n_embd).
  void embed(const Batch& batch, std::span<float> hidden);
  // Cache of one slot's first n positions as bytes (save_state), and back.
  std::vector<uint8_t> save(int64_t slot, int64_t n) const;
  void load(int64_t slot, std::span<const uint8_t> state);  // bad_file when it does not fit this model
  void copy_slot(int64_t from, int64_t to, int64_t n);      // share a prefix
  int64_t memory_bytes() const;

 private:
  struct Impl;
  std::shared_ptr<Model> model_;
  ContextOptions options_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tq
