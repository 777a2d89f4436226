// Every kernel's launcher. All work goes to the given stream; nothing here synchronizes or allocates, so that any sequence can become a
// graph.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>

#include "backend/backend.h"
#include "backend/row_runs.h"
#include "views.h"

namespace tq::cuda {

inline constexpr int kMaxOutputs = 4;   // matrices of one launch
inline constexpr int kGemvTokens = 32;  // batches up to this size go through the gemv kernel

// Packed matrices of one format that read the same input.
struct PackedProduct {
  int count = 0;
  PackedView matrix[kMaxOutputs];
  OutputView out[kMaxOutputs];
  InputView in;
};

// Scratch of split sums: zero before the first launch, and each launch leaves it so.
struct SplitSums {
  int32_t* sums = nullptr;      // (strips, kGemvTokens, 64)
  uint32_t* arrived = nullptr;  // (strips)
};

// y = W x for at most kGemvTokens rows, by integer dot products of in.quantized. The rows of in.quantized up to the next multiple of 8 must
// be readable.
void gemv(const PackedProduct& product, const SplitSums& split, cudaStream_t stream);

// A mixture's experts over few rows, chosen on the device. Routes are pairs (row, choice), numbered by row as they are chosen and by expert
// as they are worked on.
inline constexpr int kMaxDeviceExperts = 1024;  // one block's threads
inline constexpr int kMaxRoutes = 1024;         // of a batch
inline constexpr int kMaxChoices = 32;          // of a row: a warp's lanes
inline constexpr int kGroupRows = 8;            // rows that are multiplied at once

struct ExpertGroup {
  int32_t expert, first, count;  // routes [first, first + count) by expert
};
struct RouteView {
  float* weights = nullptr;       // (rows, top_k)
  int32_t* place = nullptr;       // (rows, top_k): a route's number by expert
  int32_t* rows = nullptr;        // (routes), by expert: its row
  ExpertGroup* groups = nullptr;  // (max_groups)
  int32_t* n_groups = nullptr;
};
constexpr int max_groups(int routes, int n_experts) { return std::min(routes, n_experts + routes / kGroupRows); }

// Chooses as choose_experts() does; logits (rows, n_experts) are overwritten.
void route(float* logits, int rows, int n_experts, int top_k, bool normalize, const RouteView& route, cudaStream_t stream);

// One or two matrices of every expert, all of one shape, that read the same input; k may differ.
struct ExpertProduct {
  int count = 0;
  const PackedView* matrix[2] = {};  // (experts), in device memory
  float* y[2] = {};                  // (routes, n_out)
  PackedView shape;                  // any of the matrices
  InputView in;                      // (routes), by expert
  const ExpertGroup* groups = nullptr;
  const int32_t* n_groups = nullptr;
  SplitSums split;  // sums (groups * count * strips, kGroupRows, 64), arrived (groups * count * strips)
};
// The experts of format k alone.
void experts(const ExpertProduct& product, int k, cudaStream_t stream);

// y (routes, width), by expert, += the row of biases (experts, width) of each route's expert; at most `groups` groups.
void add_expert_bias(float* y, const float* biases, const RouteView& route, int groups, int width, cudaStream_t stream);

// An expert that every row visits: x (rows, width) weighted by the sigmoid of logits (rows), null: by 1.
struct SharedExpert {
  const float *x = nullptr, *logits = nullptr;
};
// y += alpha * (the weighted sum of each row's routes, in the order of its choices, then the shared expert's); x (routes, width) by expert.
void combine(const float* x, const RouteView& route, int rows, int top_k, const SharedExpert& shared, float alpha, int width, float* y,
             cudaStream_t stream);

// The int8 values of a packed matrix as rows of round_up(n_in, kRowAlign) bytes, strips * 64 of them; tiled: in tiles of kWeightTile rows.
void expand(const PackedView& matrix, int8_t* values, bool tiled, cudaStream_t stream);

// y = X W^T through the tensor cores for many rows; `weights` are expand()'s values, tiled where `in` is. Scales and bias applied, outliers
// not.
void gemm_int8(const PackedView& matrix, const int8_t* weights, const InputView& in, const OutputView& out, cudaStream_t stream);
// The same for f16 and bf16 matrices and in.half.
void gemm_half(const DenseView& matrix, const InputView& in, const OutputView& out, cudaStream_t stream);
// y += alpha * S x
void add_outliers(const PackedView& matrix, const InputView& in, const OutputView& out, cudaStream_t stream);

// Float dot products for any element: the float path of packed matrices (on expanded values, with in.rotated) and dense matrices
// (in.plain).
void float_rows(const DenseView& matrix, const float* x, const InputView& in, const OutputView& out, cudaStream_t stream);
void float_rows_packed(const PackedView& matrix, const int8_t* values, const InputView& in, const OutputView& out, cudaStream_t stream);

// What a linear layer reads, before its rotated forms.
struct SourceView {
  LinearInput::Kind kind = LinearInput::plain;
  GatedActivation activation = GatedActivation::silu;
  const float *x = nullptr, *up = nullptr, *weight = nullptr;
  float eps = 0;
  const int32_t* rows = nullptr;  // gather these rows; null: all
};
// Fills the forms of `in` that are not null; scratch: input_scratch_floats(n_in) floats a row.
void prepare_input(const SourceView& source, const RotationView& rotation, const InputView& in, Element half, float* scratch,
                   cudaStream_t stream);
int64_t input_scratch_floats(int n_in);

void embed(const PackedView& matrix, const RotationView& rotation, const BatchView& batch, float scale, float* y, float* scratch,
           cudaStream_t stream);
void embed(const DenseView& matrix, const BatchView& batch, float scale, float* y, cudaStream_t stream);
void norm(const float* x, const float* weight, float eps, int rows, int width, float* y, cudaStream_t stream);
void add_norm(const float* x, const float* weight, float eps, float alpha, float scale, int rows, int width, float* y, cudaStream_t stream);
void soft_cap(float* x, float cap, int64_t count, cudaStream_t stream);

// The best k (at most kMaxCandidates) of each row of x (rows, width) as TopOp says; scratch: top_scratch_bytes().
void top(const float* x, int rows, int width, int k, uint64_t* scratch, Candidate* best, cudaStream_t stream);
int64_t top_scratch_bytes(int rows, int width, int k);

// y[rows[i]] += alpha * weights[i] * x[i] for count rows of `width`.
void scatter_add(const float* x, const int32_t* rows, const float* weights, float alpha, int count, int width, float* y,
                 cudaStream_t stream);

// cos and sin of the batch's positions, (rows, half) each.
void angles(const BatchView& batch, const float* inv_freq, int half, float magnitude, float* cos, float* sin, cudaStream_t stream);

struct AttentionView {
  kernels::AttentionShape shape;
  BatchView batch;
  float *q = nullptr, *k = nullptr, *v = nullptr, *out = nullptr;
  void *k_cache = nullptr, *v_cache = nullptr;  // float16, or float32 where attend_rows reads them
  bool cache_f32 = false;
  int64_t capacity = 0, window = 0;
  const float *cos = nullptr, *sin = nullptr;  // null: no rope
  int rope_dims = 0;
  bool rope_pairs = false;
  QueryGrowth growth;
  const float* sinks = nullptr;                             // (heads)
  const float *key_mean = nullptr, *key_balance = nullptr;  // (kv heads, head_dim) KeyStatistics, of a cache in codes; null: none
  float* partials = nullptr;                                // (rows, heads, splits, head_dim + 2)
};

// Attention over a cache in codes (format/cache.h). A row reads its own position from the planes, all before it from the codes, in spans
// that depend on nothing but the position: what a row of attend_coded() gives does not depend on the rest of its batch.
struct CodedView {
  AttentionView a;  // k_cache and v_cache are tiles; partials: (rows, heads, spans of the capacity, head_dim + 2)
  int k_bits = 0, v_bits = 0;
  RotationView rotation;      // of vectors of head_dim
  int8_t* q_codes = nullptr;  // (rows, heads, padded head_dim)
  float* q_scale = nullptr;   // (rows, heads)
};
inline constexpr int kShortSpans = 128, kShortSpan = 64, kLongSpan = 512;  // the first spans, their positions, those of the others
constexpr int span_first(int span) {
  return span < kShortSpans ? span * kShortSpan : kShortSpans * kShortSpan + (span - kShortSpans) * kLongSpan;
}
constexpr int spans_of(int64_t positions) {
  constexpr int64_t kShort = int64_t(kShortSpans) * kShortSpan;
  return int(positions <= kShort ? (positions + kShortSpan - 1) / kShortSpan
                                 : kShortSpans + (positions - kShort + kLongSpan - 1) / kLongSpan);
}
// Rows that follow each other in one slot, at most kQueryTile, for the prompt kernel.
using QueryRun = RowRun;
inline constexpr int kQueryTile = 64;
inline constexpr int kMaxHeadDim = 512, kMaxRunHeadDim = 256;  // of attend_rows, of attend_runs

void store_keys(const AttentionView& a, cudaStream_t stream);
// Query heads that read a key/value head's cache together: as many as there are up to kSharedQueries, while registers last.
inline constexpr int kSharedQueries = 4;
inline int queries_at_once(const kernels::AttentionShape& shape) {
  return shape.head_dim > 128 ? 1 : std::min(shape.n_heads / shape.n_kv_heads, kSharedQueries);
}
inline int row_blocks(const kernels::AttentionShape& shape) {  // of one row and range of positions
  const int group = shape.n_heads / shape.n_kv_heads, n = queries_at_once(shape) > 1 ? kSharedQueries : 1;
  return shape.n_kv_heads * ((group + n - 1) / n);
}
void attend_rows(const AttentionView& a, int splits, cudaStream_t stream);
void attend_runs(const AttentionView& a, const QueryRun* runs, int n_runs, cudaStream_t stream);

// A gated delta net over the rows of each sequence (DeltaNetOp).
struct DeltaNetView {
  DeltaNetShape shape;
  BatchView batch;
  const int32_t* order = nullptr;       // the batch's rows by slot, each slot's in the order of their positions
  const QueryRun* sequences = nullptr;  // places in the order, one sequence a slot; count 0: none
  const float *qkv = nullptr, *conv = nullptr, *rate = nullptr, *dt_bias = nullptr;
  float *alpha = nullptr, *beta = nullptr, *state = nullptr, *convolved = nullptr, *out = nullptr;
};
inline constexpr int kMaxStateKeys = 512;  // elements of a key or value head of a delta net
void delta_net(const DeltaNetView& view, int n_sequences, cudaStream_t stream);

// Whether attend_coded() needs no store_codes() before it: a single row is rotated and stored by the same kernel.
bool attends_alone(const CodedView& c);
// Rotates q, k and v in place, writes the codes of k and v into the caches and those of q beside them.
void store_codes(const CodedView& c, cudaStream_t stream);
// Rows [first_row, first_row + rows) by integer dot products; blocks: of each key/value head of each row.
void attend_coded(const CodedView& c, int first_row, int rows, int blocks, cudaStream_t stream);
// Prompts through the tensor cores, tiles expanded to half precision in shared memory; partials: (rows, heads, head_dim + 2).
void attend_coded_runs(const CodedView& c, const QueryRun* runs, int n_runs, cudaStream_t stream);
// What it ends with: from one state a row and head to the result.
void finish_coded(const CodedView& c, cudaStream_t stream);

}  // namespace tq::cuda
