// What a device must be able to do to run a model. The model is a list of operations built once; a backend runs the whole list for a batch
// of tokens on its own device (CPU: one parallel region with a barrier between operations; CUDA: one graph; Metal: one command buffer).
// Nothing in the list copies to the host: tokens, positions and cache slots are inputs in device memory, logits are read back only when
// asked for.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/candidates.h"
#include "kernels/kernels.h"  // DenseMatrix, AttentionShape

namespace tq {

using kernels::DenseMatrix;

// A matrix as the loader found it, in host memory (usually the mapped file, which outlives the backend).
struct HostMatrix {
  std::string name;
  bool packed = false;
  TqnMatrix tqn;      // when packed
  DenseMatrix dense;  // when not
  int64_t n_out() const { return packed ? tqn.n_out : dense.n_out; }
  int64_t n_in() const { return packed ? tqn.n_in : dense.n_in; }
};

// Handles owned by a backend; the model holds them and never looks inside.
class Matrix {
 public:
  virtual ~Matrix() = default;
  std::string name;  // of the tensor; set by the loader
  int64_t n_out = 0, n_in = 0;
};
class Buffer {
 public:
  virtual ~Buffer() = default;
  int64_t bytes = 0;
};
using MatrixPtr = std::shared_ptr<Matrix>;
using BufferPtr = std::shared_ptr<Buffer>;

// A float32 plane (rows of the batch, `width` wide, packed), or a vector when it holds one row.
struct Plane {
  Buffer* buffer = nullptr;
  int64_t width = 0;
  explicit operator bool() const { return buffer != nullptr; }
};

enum class GatedActivation : uint8_t { silu, gelu_tanh };

// What a linear operation reads: a plane; its RMS norm; or activation(gate) * up.
struct LinearInput {
  enum Kind : uint8_t { plain, rms_norm, gated } kind = plain;
  Plane x{};                 // plain, rms_norm: the input; gated: the gate
  Plane up{};                // gated
  Buffer* weight = nullptr;  // rms_norm: (width)
  float eps = 0;
  GatedActivation activation = GatedActivation::silu;
};
struct LinearOutput {
  Matrix* matrix = nullptr;
  Plane y{};  // (rows, n_out) at column y_offset of a plane that may be wider
  int64_t y_offset = 0;
  Buffer* bias = nullptr;  // (n_out)
  float alpha = 1;         // y (+)= alpha * (W x + bias)
  bool add = false;        // the residual
};

// y = scale * rows of matrix at the batch's tokens
struct EmbedOp {
  Matrix* matrix = nullptr;
  Plane y{};
  float scale = 1;
};
// Logits: only the batch's output rows, packed, through `in`
struct LinearOp {
  LinearInput in;
  std::vector<LinearOutput> out;
  bool logits = false;
};
// y = rms_norm over each of `groups` equal parts of a row (q/k norm: heads)
struct NormOp {
  Plane x{};
  int64_t groups = 1;
  Buffer* weight = nullptr;
  float eps = 0;
  Plane y{};
};
// y += alpha * rms_norm(x) (post norms)
struct AddNormOp {
  Plane x{}, y{};
  Buffer* weight = nullptr;
  float eps = 0;
  float alpha = 1;
};
// (dims / 2) inverse frequencies; pairs: (2i, 2i + 1)
struct RopeTable {
  Buffer* inv_freq = nullptr;
  int dims = 0;
  float magnitude = 1;
  bool pairs = false;
};
// Ropes q and k, writes k and v to the cache at (slot, position), then attends: out = softmax(q k^T) v over positions
// max(0, pos + 1 - window) .. pos of the row's slot.
struct AttentionOp {
  Plane q{}, k{}, v{}, out{};
  RopeTable rope{};  // inv_freq null: no rope
  kernels::AttentionShape shape{};
  int64_t window = 0;                             // 0: all
  Buffer *k_cache = nullptr, *v_cache = nullptr;  // (slots, n_kv_heads, capacity, head_dim)
  bool cache_f32 = false;                         // float32 instead of float16: where Backend::has_f32_cache
  int64_t capacity = 0;
};
// The logits: the first output_rows.size() rows of x
struct SoftCapOp {
  Plane x{};
  float cap = 0;
};
// The best `k` (1 to kMaxCandidates) tokens of each output row of x: best (output rows, k) Candidate, descending, ties to the lower token,
// kNoCandidate where a row has no more numbers above -inf.
struct TopOp {
  Plane x{};
  int k = 1;
  Buffer* best = nullptr;
};
// Mixture of experts: route = softmax or sigmoid of router x, the top_k experts' gated layers, weighted; y += sum.
struct MoeOp {
  LinearInput in;
  Matrix* router = nullptr;
  std::vector<Matrix*> gate, up, down;                                                                    // per expert
  Matrix *shared_router = nullptr, *shared_gate = nullptr, *shared_up = nullptr, *shared_down = nullptr;  // qwen2_moe; may be null
  int top_k = 0;
  bool normalize = true;  // the chosen weights sum to 1
  GatedActivation activation = GatedActivation::silu;
  float alpha = 1;
  Plane y;
};
struct Op {
  enum Kind : uint8_t { embed, linear, norm, add_norm, attention, soft_cap, top, moe } kind;
  EmbedOp embed_op{};
  LinearOp linear_op{};
  NormOp norm_op{};
  AddNormOp add_norm_op{};
  AttentionOp attention_op{};
  SoftCapOp soft_cap_op{};
  TopOp top_op{};
  MoeOp moe_op{};
};

// The inputs of one forward pass: one row per token. Rows of one slot stand in ascending position; every position below a row's is in the
// cache already or in this batch.
struct Batch {
  std::span<const int32_t> tokens, positions, slots;
  std::span<const int32_t> output_rows;  // rows whose logits are wanted, ascending; may be empty
};

enum class Precision : uint8_t { int8, f32 };  // how activations enter packed matrices

struct BackendOptions {
  int threads = 0;  // CPU: 0 = all cores this process may use
  int device = 0;
  Precision precision = Precision::int8;
};

class Program {  // a prepared list of operations
 public:
  virtual ~Program() = default;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;                  // "cpu (avx512vbmi, 2 threads)"
  virtual MatrixPtr matrix(const HostMatrix& host) = 0;  // may keep a view of `host`'s memory
  virtual BufferPtr allocate(int64_t bytes) = 0;         // zeroed
  virtual void upload(Buffer& to, int64_t offset, const void* from, int64_t bytes) = 0;
  virtual void download(const Buffer& from, int64_t offset, void* to, int64_t bytes) = 0;
  // `max_rows`: the largest batch; every buffer that the operations name must outlive the program. Planes keep their contents from one run
  // to the next, so that a second program (the output layer alone) can go on where a first one stopped.
  virtual std::unique_ptr<Program> prepare(std::vector<Op> ops, int64_t max_rows) = 0;
  virtual void run(Program& program, const Batch& batch) = 0;  // results are complete on return for download()
  virtual void set_threads(int decode, int prompt) { (void)decode, (void)prompt; }
  // Seconds since the last call by kind of work ("linear", "attention", "norms", ..., "barrier"), and whether to measure from now on.
  virtual std::vector<std::pair<std::string, double>> profile(bool on) { return (void)on, std::vector<std::pair<std::string, double>>{}; }
  virtual bool has_f32_cache() const { return false; }
  virtual int64_t memory_bytes() const = 0;  // what this backend holds beyond the mapped file
};

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);
// These throw Error(unsupported) with the reason when the backend is not built in, has no device or no driver.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);
std::unique_ptr<Backend> make_metal_backend(const BackendOptions& options);
std::string cuda_status();  // "available: NVIDIA H200, ..." or "unsupported: why"
std::string metal_status();

}  // namespace tq
