// What a device must be able to do to run a model. The model is a list of operations (Op), built once. A backend prepares the list
// (Program) and runs all of it for a batch of tokens (Batch): on the CPU in one parallel region with a barrier after each operation, on a
// GPU kernel by kernel in one stream. What operations give stays on the device; the host reads what it wants by download().
//
// A batch has one row per token. Every operation works on all of its rows, except where "output rows" are named.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/candidates.h"
#include "format/delta_net.h"
#include "kernels/kernels.h"  // DenseMatrix, AttentionShape

namespace tq {

using kernels::DenseMatrix;

// A matrix as the loader found it, in host memory. The memory, usually the mapped file, must outlive the backend.
struct HostMatrix {
  std::string name;     // of its tensor in the file
  bool packed = false;  // codes (tqn) or numbers (dense)
  TqnMatrix tqn;
  DenseMatrix dense;
  bool only_looked_up = false;  // rows of it are read, never a product: a device may leave it in host memory
  int64_t n_out() const { return packed ? tqn.n_out : dense.n_out; }
  int64_t n_in() const { return packed ? tqn.n_in : dense.n_in; }
};

// A matrix on a device, and memory on a device. A backend makes them and knows what is behind them; the model only holds them.
class Matrix {
 public:
  virtual ~Matrix() = default;
  std::string name;  // HostMatrix::name
  int64_t n_out = 0, n_in = 0;
};
class Buffer {
 public:
  virtual ~Buffer() = default;
  std::string name;  // of the tensor it was loaded from; empty: of none
  int64_t bytes = 0;
};
using MatrixPtr = std::shared_ptr<Matrix>;
using BufferPtr = std::shared_ptr<Buffer>;

// Float32 rows, one for each row of the batch, without gaps: row r begins at element r * width of the buffer.
struct Plane {
  Buffer* buffer = nullptr;
  int64_t width = 0;
};

enum class GatedActivation : uint8_t { silu, gelu_tanh, clamped_swiglu, sigmoid };
// The CPU's function for activation(gate) * up; of clamped_swiglu: as it combines the two.
inline auto gated_kernel(const kernels::Kernels& k, GatedActivation activation) {
  if (activation == GatedActivation::clamped_swiglu) return k.clamped_swiglu;
  if (activation == GatedActivation::sigmoid) return k.sigmoid_mul;
  return activation == GatedActivation::silu ? k.silu_mul : k.gelu_mul;
}

// What the matrices of a linear operation multiply, made of planes while it runs.
struct LinearInput {
  // plain: x itself. rms_norm: x / sqrt(mean(x^2) + eps) * weight. gated: activation(x) * up.
  enum Kind : uint8_t { plain, rms_norm, gated } kind = plain;
  Plane x{};
  Plane up{};                                          // gated
  Buffer* weight = nullptr;                            // rms_norm: (width)
  float eps = 0;                                       // rms_norm
  GatedActivation activation = GatedActivation::silu;  // gated
};
// One of these matrices W, and where its product goes: y = (add ? y : 0) + alpha * (W input + bias).
struct LinearOutput {
  Matrix* matrix = nullptr;
  Plane y{};  // written at columns [y_offset, y_offset + n_out)
  int64_t y_offset = 0;
  Buffer* bias = nullptr;  // (n_out); null: none
  float alpha = 1;
  bool add = false;
};

// y = scale * the rows of `matrix` that the batch's tokens name. Of a dense matrix wider than y: its columns from `column` on.
struct EmbedOp {
  Matrix* matrix = nullptr;
  Plane y{};
  float scale = 1;
  int64_t column = 0;
};
// Several matrices that read one input: it is prepared (normed, rotated, rounded) once for all of them.
struct LinearOp {
  LinearInput in;
  std::vector<LinearOutput> out;
  bool logits = false;  // true: only for the batch's output rows; y has one row for each of them
};
// y = RMS norm of x, over each of `groups` equal parts of a row by itself, all with the same weight (width / groups). y may be x.
struct NormOp {
  Plane x{};
  int64_t groups = 1;
  Buffer* weight = nullptr;
  float eps = 0;
  Plane y{};
};
// y = scale * (y + alpha * RMS norm of x).
struct AddNormOp {
  Plane x{}, y{};
  Buffer* weight = nullptr;
  float eps = 0;
  float alpha = 1;
  float scale = 1;
};
// Rotary embedding: pair i of the first `dims` elements of a head turns by position * inv_freq[i].
struct RopeTable {
  Buffer* inv_freq = nullptr;  // (dims / 2)
  int dims = 0;
  float magnitude = 1;  // cos and sin are multiplied by it
  bool pairs = false;   // pair i is elements (2 i, 2 i + 1); else (i, i + dims / 2)
};
// Queries behind their rotary embedding, at position p, are multiplied by 1 + beta * log(1 + floor(p / length)).
struct QueryGrowth {
  float beta = 0;  // 0: they stay as they are
  int64_t length = 0;
};
// Turns q and k (in place), writes k and v into the caches at the row's slot and position, then attends: each head of a row becomes the sum
// of the cached values at positions max(0, p + 1 - window) to p of its slot, weighted by softmax(scale * q . k). p: the row's position.
// Without k and v (buffers null) the caches are another layer's, which has written this batch's rows already.
struct AttentionOp {
  Plane q{}, k{}, v{}, out{};
  RopeTable rope{};  // inv_freq null: nothing turns
  kernels::AttentionShape shape{};
  int64_t window = 0;                             // 0: all positions up to p
  Buffer *k_cache = nullptr, *v_cache = nullptr;  // (slots, n_kv_heads, capacity, head_dim)
  bool cache_f32 = false;                         // their type: float32, for which has_f32_cache() must say yes, or float16
  // Or both hold codes of so many bits, 8 or 4 (format/cache.h; has_coded_cache() must say yes): (slots, n_kv_heads, tiles of the
  // capacity).
  int k_bits = 0, v_bits = 0;
  // KeyStatistics of all key/value heads, (n_kv_heads, head_dim) each; null: none. Of caches in codes alone; no mean beside a soft cap or
  // sinks, whose part of a softmax does not move with the other scores.
  Buffer *key_mean = nullptr, *key_balance = nullptr;
  int64_t capacity = 0;  // positions of a slot
  QueryGrowth growth{};
  // (n_heads) scores of a position that has no value: it takes its part of each softmax and adds nothing. Null: there is none.
  Buffer* sinks = nullptr;
};
// x = cap * tanh(x / cap) for logits: one row for each of the batch's output rows.
struct SoftCapOp {
  Plane x{};
  float cap = 0;
};
// The k (1 to kMaxCandidates) best tokens of logits x: best (output rows, k) Candidate, best first, of equal ones the lower token first;
// kNoCandidate where a row has no more numbers above -inf.
struct TopOp {
  Plane x{};
  int k = 1;
  Buffer* best = nullptr;
};
// Mixture of experts. Each row goes to the top_k experts with the highest softmax(router input), of equal ones to the lower index, and
//   y = (add ? y : 0) + alpha * sum over them of their probability * down (activation(gate input) * up input)
// and, where there is a shared expert, alpha * sigmoid(shared_router input) times what it gives.
struct MoeOp {
  LinearInput in;
  LinearInput router_in{};  // of the router alone; without a plane: it reads `in` too
  Matrix* router = nullptr;
  std::vector<Matrix*> gate, up, down;                                          // one an expert
  Matrix *shared_gate = nullptr, *shared_up = nullptr, *shared_down = nullptr;  // null: no shared expert
  Matrix* shared_router = nullptr;                                              // null: the shared expert counts 1
  // Added to what the matrices give; null: nothing. (n_experts), then (n_experts, n_out) each; the shared expert has none.
  Buffer *router_bias = nullptr, *gate_bias = nullptr, *up_bias = nullptr, *down_bias = nullptr;
  int top_k = 0;
  bool normalize = true;  // the chosen experts' probabilities are divided by their sum
  GatedActivation activation = GatedActivation::silu;
  float alpha = 1;
  bool add = true;
  Plane y;
};
// A gated delta net (format/delta_net.h) over the rows of each slot. A row at position 0 starts from a state of zeros, whatever was there.
struct DeltaNetOp {
  DeltaNetShape shape{};
  Plane qkv{}, alpha{}, beta{};  // (conv_width), (n_value_heads), (n_value_heads); alpha and beta are used up
  Buffer *conv = nullptr, *rate = nullptr, *dt_bias = nullptr;  // DeltaNetWeights
  Buffer* state = nullptr;                                      // (slots, state_floats)
  Plane convolved{}, out{};                                     // (conv_width): scratch; (value_width)
};
// One operation: `kind` says which of the others holds it.
struct Op {
  enum Kind : uint8_t { embed, linear, norm, add_norm, attention, soft_cap, top, moe, delta_net } kind;
  EmbedOp embed_op{};
  LinearOp linear_op{};
  NormOp norm_op{};
  AddNormOp add_norm_op{};
  AttentionOp attention_op{};
  SoftCapOp soft_cap_op{};
  TopOp top_op{};
  MoeOp moe_op{};
  DeltaNetOp delta_net_op{};
};

// What one pass computes: a token in each row, its position in a sequence, and the slot (sequence) whose caches it uses. Rows of one slot
// stand in ascending order of positions; each position before a row's is in the cache already or in an earlier row.
struct Batch {
  std::span<const int32_t> tokens, positions, slots;
  std::span<const int32_t> output_rows;  // numbers of the rows whose logits are wanted, ascending; may be empty
};

enum class Precision : uint8_t { int8, f32 };  // the type that inputs of packed matrices are rounded to

struct BackendOptions {
  int threads = 0;  // of the CPU; 0: as many as this process may use cores
  int device = 0;   // a GPU's number
  Precision precision = Precision::int8;
  // Really run more threads than there are cores. If false, at most one thread a core runs; a larger `threads` only sets the number of
  // parts of sums whose rounding depends on it (Worker::parts). For tests of how threads share work, on machines of few cores.
  bool crowd_cores = false;
};

// A list of operations, prepared by a backend to be run again and again.
class Program {
 public:
  virtual ~Program() = default;
};

// Calls come from any thread; a backend carries them out one at a time. Errors: out_of_memory where a device has no more; closed in a
// process that was forked off one whose device cannot be shared.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;                  // for people: "cpu (avx512vbmi, 2 threads)"
  virtual MatrixPtr matrix(const HostMatrix& host) = 0;  // may refer to host's memory instead of copying it
  virtual BufferPtr allocate(int64_t bytes) = 0;         // all zeros
  // Copies between the host and `bytes` bytes of a buffer from `offset` on; complete on return.
  virtual void upload(Buffer& to, int64_t offset, const void* from, int64_t bytes) = 0;
  virtual void download(const Buffer& from, int64_t offset, void* to, int64_t bytes) = 0;
  // Copies within the device, between different buffers or parts that do not overlap; later calls see the result.
  virtual void copy(const Buffer& from, int64_t from_offset, Buffer& to, int64_t to_offset, int64_t bytes) = 0;
  // Nobody will read these bytes of the buffer before they are written again: a backend may give their memory back to the system.
  virtual void discard(Buffer& buffer, int64_t offset, int64_t bytes) { (void)buffer, (void)offset, (void)bytes; }
  // max_rows: the rows of the largest batch. All that the operations name must outlive the program. Planes keep what is in them between
  // runs, so that another program can go on from what one has left.
  virtual std::unique_ptr<Program> prepare(std::vector<Op> ops, int64_t max_rows) = 0;
  virtual void run(Program& program, const Batch& batch) = 0;  // complete on return
  // Threads for batches of few rows (generation) and of many (prompts); 0: all cores. Does nothing on a GPU.
  virtual void set_threads(int decode, int prompt) { (void)decode, (void)prompt; }
  // Seconds since the last call by kind of work ("linear", "attention", "norms", ..., "barrier": waiting for other threads), and whether to
  // measure from now on. Empty where nothing is measured.
  virtual std::vector<std::pair<std::string, double>> profile(bool on) { return (void)on, std::vector<std::pair<std::string, double>>{}; }
  virtual bool has_f32_cache() const { return false; }    // AttentionOp::cache_f32 may be set
  virtual bool has_coded_cache() const { return false; }  // AttentionOp::k_bits and v_bits may be set
  virtual int64_t memory_bytes() const = 0;               // of this backend's buffers, matrices and scratch; without the mapped file
};

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);
// These throw Error(unsupported) with the reason when the backend is not built in, has no device or no driver.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);
std::unique_ptr<Backend> make_metal_backend(const BackendOptions& options);
std::string cuda_status();  // "available: NVIDIA H200, ..." or "unsupported: why"
std::string metal_status();

}  // namespace tq
