// The engine on one page: a model's weights (Model), the memory of the sequences that it computes (Context), and how tokens become logits.
// config.h says what distinguishes one model from another, backend.h what a device must be able to do, graph.h which operations a model is.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "backend/backend.h"
#include "gguf/gguf.h"
#include "model/config.h"
#include "model/state.h"

namespace tq {

// Frequencies of a rotary embedding on one device, (dims / 2) float32, shared by the layers that turn alike.
struct RopeFrequencies {
  BufferPtr common;
  BufferPtr long_context;  // for contexts of more than RopeConfig::original_ctx positions; null where the file has no such factors
};

// In the comments below, (n_out, n_in) is the shape of a matrix; what an architecture does not have is null.
struct AttentionWeights {
  MatrixPtr q;     // (q_width, n_embd)
  MatrixPtr k, v;  // (kv_width, n_embd); v null: what k gives, before its norm, are also the values; both: AttentionConfig::kv_layer
  MatrixPtr gate;  // (q_width, n_embd) of AttentionConfig::output_gate
  MatrixPtr o;     // (n_embd, q_width): from the heads back to the residual stream
  BufferPtr q_bias, k_bias, v_bias, o_bias, gate_bias;
  BufferPtr q_norm, k_norm;         // weights of the norms that AttentionConfig::qk_norm says
  BufferPtr sinks;                  // (n_heads)
  BufferPtr key_mean, key_balance;  // (n_kv_heads * head_dim) AttentionConfig::key_statistics
  RopeFrequencies rope;
};
struct DeltaNetLayerWeights {
  MatrixPtr qkv;          // (conv_width, n_embd)
  MatrixPtr gate;         // (value_width, n_embd)
  MatrixPtr alpha, beta;  // (n_value_heads, n_embd)
  MatrixPtr out;          // (n_embd, value_width)
  BufferPtr conv, rate, dt_bias;
  BufferPtr norm;  // (value_dim)
};
using MixerWeights = std::variant<AttentionWeights, DeltaNetLayerWeights>;

struct GatedWeights {
  MatrixPtr gate, up;  // (n_ff, n_embd)
  MatrixPtr down;      // (n_embd, n_ff)
};
struct ExpertsWeights {
  MatrixPtr router;  // (n_experts, n_embd)
  std::vector<GatedWeights> experts;
  BufferPtr router_bias;                    // (n_experts)
  BufferPtr gate_bias, up_bias, down_bias;  // (n_experts, n_ff) twice, (n_experts, n_embd)
  MatrixPtr shared_router;                  // (1, n_embd): its sigmoid weights the shared expert; null: a weight of 1
  GatedWeights shared;                      // null without a shared expert
};
struct ParallelWeights {
  GatedWeights gated;
  ExpertsWeights experts;
  BufferPtr gated_post_norm, experts_norm, experts_post_norm;  // (n_embd)
};
using FeedForwardWeights = std::variant<GatedWeights, ExpertsWeights, ParallelWeights>;

// A layer's part of per-layer embeddings; null without them.
struct PerLayerWeights {
  MatrixPtr embed;         // (n_vocab, n_layers * n_embd_layer), the same for all layers: a layer reads its own columns
  MatrixPtr project;       // (n_embd_layer, n_embd)
  BufferPtr project_norm;  // (n_embd_layer)
  MatrixPtr gate;          // (n_embd_layer, n_embd)
  MatrixPtr expand;        // (n_embd, n_embd_layer)
  BufferPtr post_norm;     // (n_embd)
};

// The alternatives of `mixer` and `feed_forward` are those of the layer's LayerConfig.
struct Layer {
  BufferPtr mixer_norm, mixer_post_norm;  // (n_embd) before and after the mixer
  MixerWeights mixer;
  BufferPtr ffn_norm, ffn_post_norm;  // (n_embd) before and after the feed-forward
  FeedForwardWeights feed_forward;
  PerLayerWeights per_layer;
  float scale = 1;  // the stream is multiplied by it behind the layer
};

struct Weights {
  MatrixPtr embed;   // (n_vocab, n_embd)
  MatrixPtr output;  // (n_vocab, n_embd); the same object as `embed` where the two are tied and on one device
  BufferPtr output_norm;
  std::vector<Layer> layers;
};

struct ModelOptions {
  // Where the model runs: "cpu", "cuda", "metal"; "cuda:1" names the device's number (without one it is backend.device). Or a list of
  // parts, each with its number of layers: "cpu*8,cuda:0*12" puts the embedding and the first 8 layers on the CPU, the next 12 and the
  // output on the GPU. One part of a list may come without a number: it takes the layers that the others leave.
  std::string device = "cpu";
  BackendOptions backend;
  bool lock_memory = false;  // keep the file's data in RAM (mlock)
};

// A part of the model: the layers [first, last), on one device.
struct Part {
  std::unique_ptr<Backend> backend;
  int64_t first = 0, last = 0;
};

// A model file, opened. Nothing of it changes after open(), so that any number of contexts in any threads may use it; each device computes
// one forward pass at a time.
class Model {
 public:
  // Throws bad_file, unsupported, io or out_of_memory, naming the file and what is wrong with it.
  static std::shared_ptr<Model> open(const std::string& path, const ModelOptions& options);
  const Config& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  const gguf::File& file() const { return *file_; }
  std::shared_ptr<const gguf::File> shared_file() const { return file_; }
  Precision precision() const { return precision_; }
  std::span<const Part> parts() const { return parts_; }
  std::string backend_names() const;                  // "cpu (avx2, 2 threads)", separated by commas
  int64_t parameters() const { return parameters_; }  // elements of all matrices and vectors; a tied matrix counts once
  // Bytes of weights that computing one token reads: of a mixture's experts the share that a token uses, of an embedding that is not tied
  // to the output nothing.
  int64_t weight_bytes() const { return weight_bytes_; }

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

// The type of cached keys and values. automatic: float32 where activations are (Precision::f32) and every device can, else float16. k8v4:
// codes, 8 bits for keys and 4 for values (format/cache.h); and so on.
enum class CacheType : uint8_t { automatic, f16, f32, k8v8, k8v4, k4v8, k4v4 };

CacheElements elements_of(CacheType type);  // automatic: float16

struct ContextOptions {
  int64_t n_ctx = 0;      // positions that a slot can hold; 0: as many as the model was trained for
  int64_t n_slots = 1;    // independent sequences
  int64_t n_batch = 512;  // most rows of one forward pass
  CacheType cache = CacheType::automatic;
};

// What running sequences need beyond the model: each slot's state (state.h), the planes that a pass computes in, and the prepared programs.
// May be used from several threads; calls run one at a time.
//
// A slot holds n positions: those of the tokens that forward() or embed() computed in it. The rows of a batch for a slot stand in ascending
// order, at consecutive positions, and go on where the slot ends. They may also start at an earlier position p: then the slot goes back to
// its first p positions first, as rewind() does.
class Context {
 public:
  Context(std::shared_ptr<Model> model, const ContextOptions& options);
  ~Context();
  int64_t n_ctx() const { return options_.n_ctx; }
  int64_t n_slots() const { return options_.n_slots; }
  int64_t n_batch() const { return options_.n_batch; }
  CacheType cache() const { return options_.cache; }  // never automatic
  const Model& model() const { return *model_; }

  // One pass over 1 to n_batch rows. logits: (batch.output_rows, n_vocab) float32. Throws invalid_argument, before anything is computed,
  // that names the row and its token, slot or position that cannot be.
  void forward(const Batch& batch, std::span<float> logits);
  // The same pass, but of each output row only the best tokens: (batch.output_rows, kMaxCandidates), best first, of equal ones the lower
  // token first; kNoCandidate where there are no more with a logit above -inf.
  void forward_best(const Batch& batch, std::span<Candidate> best);
  // The logits (n_vocab) of output row `row` of the latest pass. That pass must have had at most 64 output rows: those of more are not
  // kept.
  void read_logits(int64_t row, std::span<float> logits) const;
  // The same pass, but of each output row the hidden state behind the output norm: (batch.output_rows, n_embd).
  void embed(const Batch& batch, std::span<float> hidden);

  int64_t positions(int64_t slot) const;  // that a slot holds
  // The slot forgets all but its first n positions. Refused (unsupported) where a layer's state cannot go back: it must then start again at
  // 0, or return to a snapshot.
  void rewind(int64_t slot, int64_t n);
  // Remembers the slot's present state. restore() puts that slot, or another, into this state; it throws invalid_argument once the slot of
  // the snapshot has, since then, held fewer positions.
  std::shared_ptr<Snapshot> snapshot(int64_t slot);
  void restore(int64_t slot, const Snapshot& snapshot);
  void copy_slot(int64_t from, int64_t to, int64_t n);  // slot `to` becomes the first n positions of slot `from`
  // The first n positions of a slot as bytes, for another context of the same model; load() throws bad_file when they do not fit this one.
  std::vector<uint8_t> save(int64_t slot, int64_t n) const;
  void load(int64_t slot, std::span<const uint8_t> state);
  int64_t state_bytes(int64_t n) const;  // of a state of n positions
  // A state of this context, or of one of the same model with another type of cache: its first n positions as a context with the type
  // `cache` (automatic: this context's) would have saved them. Codes are made of the numbers, numbers of what the codes stand for.
  std::vector<uint8_t> convert(std::span<const uint8_t> state, int64_t n, CacheType cache) const;
  void release(int64_t slot);  // rewind to 0, and the memory goes back to the system where the device can do that

  int64_t memory_bytes() const;  // of states and planes

 private:
  struct Impl;
  std::shared_ptr<Model> model_;
  ContextOptions options_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tq
