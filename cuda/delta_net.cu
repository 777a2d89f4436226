// The gated delta net (format/delta_net.h). A warp convolves one head of a row; a block then takes some columns of one head's state through
// all rows of a sequence, its state in registers, eight lanes a column. Columns do not see each other and rows follow one by one: a result
// depends neither on how a prompt is cut nor on what else is in the batch.
#include <cuda_pipeline.h>

#include "dependent.h"
#include "epilogue.cuh"

namespace tq::cuda {
namespace {

constexpr int kConvWarps = 8;
constexpr int kColumnLanes = 8;  // lanes that share a column of the state
constexpr int kTokens = 16;      // rows brought to shared memory at once
constexpr int recur_threads(int lane_columns) { return DeltaNetShape::kBlockColumns / lane_columns * kColumnLanes; }  // at most

// The row `back` places before place i of the order, if it is of the same slot; else -1.
__device__ inline int row_before(const DeltaNetView& v, int i, int back, int slot) {
  if (i < back) return -1;
  const int row = v.order[i - back];
  return v.batch.slots[row] == slot ? row : -1;
}

// A lane's channels of a head, first + 32 j + lane, behind the convolution and silu; 0 beyond the n of the head. Inputs of positions before
// the batch's come from the state.
template <int V>
__device__ inline void convolve(const DeltaNetView& v, int i, int row, int first, int n, int lane, float (&total)[V]) {
  const int64_t width = v.shape.conv_width();
  const int slot = v.batch.slots[row], position = v.batch.positions[row], kept = v.shape.taps - 1;
  const float* recent = v.state + slot * v.shape.state_floats();
#pragma unroll
  for (int j = 0; j < V; j++) total[j] = 0;
  for (int tap = max(0, kept - position); tap <= kept; tap++) {
    const int back = kept - tap, before = row_before(v, i, back, slot);
    const float* x = (before >= 0 ? v.qkv + before * width : recent + (position - back) % kept * width) + first + lane;
    const float* weight = v.conv + tap * width + first + lane;
#pragma unroll
    for (int j = 0; j < V; j++)
      if (j * 32 + lane < n) total[j] = fmaf(weight[j * 32], x[j * 32], total[j]);
  }
#pragma unroll
  for (int j = 0; j < V; j++) total[j] /= 1 + expf(-total[j]);
}

// V: elements of a head in a lane. Queries and keys become x / sqrt(sum(x^2) + eps), queries are divided by sqrt(key_dim) as well.
template <int V>
__device__ inline void convolve_head(const DeltaNetView& v, int i, int head, int lane) {
  const DeltaNetShape& s = v.shape;
  const bool normed = head < 2 * s.n_key_heads;
  const int n = normed ? s.key_dim : s.value_dim, row = v.order[i];
  const int first = normed ? head * n : int(2 * s.key_width()) + (head - 2 * s.n_key_heads) * n;
  float x[V], squares = 0;
  convolve(v, i, row, first, n, lane, x);
#pragma unroll
  for (int j = 0; j < V; j++) squares = fmaf(x[j], x[j], squares);
  float factor = 1;
  if (normed) factor = 1 / sqrtf(warp_sum(squares) + kDeltaNormEps);
  if (head < s.n_key_heads) factor /= sqrtf(float(n));
  float* to = v.convolved + row * s.conv_width() + first;
#pragma unroll
  for (int j = 0; j < V; j++)
    if (j * 32 + lane < n) to[j * 32 + lane] = factor * x[j];
}

// alpha becomes the factor by which the state decays, beta the share of a value's error that is written.
__device__ inline void open_gates(const DeltaNetView& v, int row, int lane) {
  for (int head = lane; head < v.shape.n_value_heads; head += 32) {
    const int64_t at = int64_t(row) * v.shape.n_value_heads + head;
    const float x = v.alpha[at] + v.dt_bias[head], softplus = x > 20 ? x : log1pf(expf(x));
    v.alpha[at] = expf(v.rate[head] * softplus);
    v.beta[at] = 1 / (1 + expf(-v.beta[at]));
  }
}

// A warp for each head of queries, keys and values of a row, and one for its gates.
template <int V>
__global__ void __launch_bounds__(kConvWarps * 32) convolve_kernel(const __grid_constant__ DeltaNetView v) {
  const int heads = 2 * v.shape.n_key_heads + v.shape.n_value_heads, lane = threadIdx.x % 32;
  const int head = blockIdx.y * kConvWarps + threadIdx.x / 32;
  release_dependents();
  await_inputs();
  if (head < heads) convolve_head<V>(v, blockIdx.x, head, lane);
  if (head == heads) open_gates(v, v.order[blockIdx.x], lane);
}

// Shared memory of a block: kTokens rows, twice, of which one is filled while the other is read; then their results.
struct Staged {
  int keys, columns;  // floats of a key (padded), columns of the block
  float* memory;
  static constexpr int floats(int keys, int columns) { return kTokens * (2 * keys + columns + 2); }
  static constexpr int all_floats(int keys, int columns) { return 2 * floats(keys, columns) + kTokens * columns; }
  __device__ float* buffer(int which) const { return memory + which * floats(keys, columns); }
  __device__ float* q(int which, int t) const { return buffer(which) + t * keys; }
  __device__ float* k(int which, int t) const { return q(which, kTokens + t); }
  __device__ float* v(int which, int t) const { return buffer(which) + 2 * kTokens * keys + t * columns; }
  __device__ float* gates(int which, int t) const { return v(which, kTokens) + 2 * t; }  // decay, beta
  __device__ float* out(int t) const { return buffer(2) + t * columns; }
};

struct Block {
  int head, key_head, first_column;
  QueryRun run;
};

__device__ inline void copy_async(float* to, const float* from, int n, int lane) {
  if (n % 4 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    for (int i = 4 * lane; i < n; i += 4 * 32) __pipeline_memcpy_async(to + i, from + i, 4 * sizeof(float));
    return;
  }
  for (int i = lane; i < n; i += 32) __pipeline_memcpy_async(to + i, from + i, sizeof(float));
}

// The row of each of kTokens places from `first` on, one a lane, so that they are waited for once.
__device__ inline int rows_from(const DeltaNetView& v, const Block& b, int first) {
  const int t = threadIdx.x % 32;
  return t < kTokens && first + t < b.run.count ? v.order[b.run.first_row + first + t] : 0;
}

// Fetches rows [first, first + kTokens) of the block's sequence, as far as it has them; a warp a row.
__device__ inline void fetch(const DeltaNetView& v, const Block& b, const Staged& staged, int which, int first) {
  const DeltaNetShape& s = v.shape;
  const int lane = threadIdx.x % 32, columns = min(staged.columns, s.value_dim - b.first_column), rows = rows_from(v, b, first);
  for (int t = threadIdx.x / 32; t < kTokens && first + t < b.run.count; t += blockDim.x / 32) {
    const int64_t row = __shfl_sync(~0u, rows, t);
    const float* x = v.convolved + row * s.conv_width();
    copy_async(staged.q(which, t), x + b.key_head * s.key_dim, s.key_dim, lane);
    copy_async(staged.k(which, t), x + s.key_width() + b.key_head * s.key_dim, s.key_dim, lane);
    copy_async(staged.v(which, t), x + 2 * s.key_width() + b.head * s.value_dim + b.first_column, columns, lane);
    if (lane < 2) copy_async(staged.gates(which, t) + lane, (lane ? v.beta : v.alpha) + row * s.n_value_heads + b.head, 1, 0);
  }
}

// Writes the results of rows [first, first + kTokens).
__device__ inline void write_results(const DeltaNetView& v, const Block& b, const Staged& staged, int first) {
  const int lane = threadIdx.x % 32, columns = min(staged.columns, v.shape.value_dim - b.first_column), rows = rows_from(v, b, first);
  for (int t = threadIdx.x / 32; t < kTokens && first + t < b.run.count; t += blockDim.x / 32) {
    const int64_t row = __shfl_sync(~0u, rows, t);
    float* to = v.out + row * v.shape.value_width() + b.head * v.shape.value_dim + b.first_column;
    for (int i = lane; i < columns; i += 32) to[i] = staged.out(t)[i];
  }
}

// All sums over the lanes of a column.
template <int N>
__device__ inline void column_sums(float (&x)[N]) {
#pragma unroll
  for (int d = 1; d < kColumnLanes; d *= 2) {
    float other[N];
#pragma unroll
    for (int i = 0; i < N; i++) other[i] = __shfl_xor_sync(~0u, x[i], d);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] += other[i];
  }
}

// The inputs of the sequence's last positions, for the next pass; the blocks of a sequence share the channels.
__device__ inline void keep_inputs(const DeltaNetView& v, const Block& b) {
  const int64_t width = v.shape.conv_width(), blocks = int64_t(gridDim.x) * gridDim.y, block = int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
  const int kept = v.shape.taps - 1, last = int(width * (block + 1) / blocks);
  for (int t = max(0, b.run.count - kept); t < b.run.count; t++) {
    const int64_t row = v.order[b.run.first_row + t];
    float* to = v.state + v.batch.slots[row] * v.shape.state_floats() + v.batch.positions[row] % kept * width;
    for (int c = int(width * block / blocks) + int(threadIdx.x); c < last; c += blockDim.x) to[c] = v.qkv[row * width + c];
  }
}

// A lane's elements of a padded key or query, of which four lie together: element e of four j is (8 j + lane) 4 + e.
template <int R>
__device__ inline void load_elements(const float* from, int lane, float (&x)[R]) {
#pragma unroll
  for (int j = 0; j < R; j += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + (j / 4 * kColumnLanes + lane) * 4);
    x[j] = four.x, x[j + 1] = four.y, x[j + 2] = four.z, x[j + 3] = four.w;
  }
}

template <int R>
__device__ inline float dot(const float (&x)[R], const float (&y)[R]) {
  float sums[4] = {};
#pragma unroll
  for (int j = 0; j < R; j++) sums[j % 4] = fmaf(x[j], y[j], sums[j % 4]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The staged rows, n of them, one after the other, for the C columns of a lane from `own` on. A row's results are summed over the lanes
// together with what the next row's key finds: nothing waits for them.
template <int R, int C>
__device__ inline void recur_rows(const Staged& staged, int which, int n, int own, int lane, float (&state)[C][R]) {
  float k[R], q[R], sums[2 * C] = {};  // of a row: what its key finds; then the results of the row before
  load_elements(staged.k(which, 0), lane, k);
  for (int t = 0; t < n; t++) {
    load_elements(staged.q(which, t), lane, q);
    const float decay = staged.gates(which, t)[0], beta = staged.gates(which, t)[1];
#pragma unroll
    for (int c = 0; c < C; c++) sums[c] = dot(state[c], k);
    column_sums(sums);
#pragma unroll
    for (int c = 0; c < C; c++) {
      if (t > 0 && lane == c) staged.out(t - 1)[own + c] = sums[C + c];
      const float delta = beta * (staged.v(which, t)[own + c] - decay * sums[c]);
#pragma unroll
      for (int j = 0; j < R; j++) state[c][j] = fmaf(k[j], delta, decay * state[c][j]);
    }
    load_elements(staged.k(which, min(t + 1, kTokens - 1)), lane, k);
#pragma unroll
    for (int c = 0; c < C; c++) sums[C + c] = dot(state[c], q);
  }
  column_sums(sums);
#pragma unroll
  for (int c = 0; c < C; c++)
    if (lane == c) staged.out(n - 1)[own + c] = sums[C + c];
}

// R: elements of a column in a lane; C: columns of a lane.
template <int R, int C>
__global__ void __launch_bounds__(recur_threads(C)) recur_kernel(const __grid_constant__ DeltaNetView v) {
  extern __shared__ float shared[];
  const DeltaNetShape& s = v.shape;
  const int columns = blockDim.x / kColumnLanes * C, lane = threadIdx.x % kColumnLanes, own = threadIdx.x / kColumnLanes * C;
  const Block b{int(blockIdx.x), s.key_head(int(blockIdx.x)), int(blockIdx.y) * columns, v.sequences[blockIdx.z]};
  if (b.run.count == 0) return;
  const Staged staged{kColumnLanes * R, columns, shared};
  const int column = b.first_column + own, first_row = v.order[b.run.first_row];
  // The state's last change was in an earlier pass, the batch's numbers came before its first kernel: neither waits for the convolution.
  const bool begins = v.batch.positions[first_row] == 0;
  const int block_first = column / DeltaNetShape::kBlockColumns * DeltaNetShape::kBlockColumns, stride = s.block_columns(block_first);
  float* block = v.state + v.batch.slots[first_row] * s.state_floats() + s.block_at(b.head, block_first) + column - block_first;
  const auto row_of = [lane](int j) { return (j / 4 * kColumnLanes + lane) * 4 + j % 4; };
  float state[C][R];
#pragma unroll
  for (int j = 0; j < R; j++)
#pragma unroll
    for (int c = 0; c < C; c++)
      state[c][j] = begins || column + c >= s.value_dim || row_of(j) >= s.key_dim ? 0.f : block[row_of(j) * stride + c];
  for (int i = threadIdx.x; i < 2 * Staged::floats(staged.keys, columns); i += blockDim.x) shared[i] = 0;  // beyond keys and columns
  __syncthreads();
  await_inputs();
  fetch(v, b, staged, 0, 0);
  __pipeline_commit();
  keep_inputs(v, b);
  for (int first = 0; first < b.run.count; first += kTokens) {
    const int which = first / kTokens % 2;
    fetch(v, b, staged, 1 - which, first + kTokens);
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    recur_rows(staged, which, min(kTokens, b.run.count - first), own, lane, state);
    __syncthreads();
    write_results(v, b, staged, first);
  }
#pragma unroll
  for (int j = 0; j < R; j++)
#pragma unroll
    for (int c = 0; c < C; c++)
      if (column + c < s.value_dim && row_of(j) < s.key_dim) block[row_of(j) * stride + c] = state[c][j];
}

// Blocks of a state's 32 columns, or of 16 where those would leave processors idle.
template <int R, int C>
void recur(const DeltaNetView& v, int n_sequences, cudaStream_t stream) {
  const DeltaNetShape& s = v.shape;
  constexpr int kWide = DeltaNetShape::kBlockColumns;
  const int wide_blocks = s.n_value_heads * n_sequences * ((s.value_dim + kWide - 1) / kWide);
  const int columns = 2 * wide_blocks >= device_limits().processors ? kWide : kWide / 2;
  const int64_t bytes = Staged::all_floats(kColumnLanes * R, columns) * int64_t(sizeof(float));
  allow_shared(recur_kernel<R, C>, bytes);
  launch_dependent("delta_net", recur_kernel<R, C>,
                   dim3(unsigned(s.n_value_heads), unsigned((s.value_dim + columns - 1) / columns), unsigned(n_sequences)),
                   unsigned(columns / C * kColumnLanes), bytes, stream, v);
}

}  // namespace

void delta_net(const DeltaNetView& v, int n_sequences, cudaStream_t stream) {
  const DeltaNetShape& s = v.shape;
  const int warps = 2 * s.n_key_heads + s.n_value_heads + 1, widest = std::max(s.key_dim, s.value_dim);
  const dim3 grid(unsigned(v.batch.rows), unsigned((warps + kConvWarps - 1) / kConvWarps));
  launch_dependent("convolution", widest <= 128 ? convolve_kernel<4> : convolve_kernel<16>, grid, kConvWarps * 32, 0, stream, v);
  if (s.key_dim <= 32) return recur<4, 2>(v, n_sequences, stream);
  if (s.key_dim <= 64) return recur<8, 2>(v, n_sequences, stream);
  if (s.key_dim <= 128) return recur<16, 2>(v, n_sequences, stream);
  if (s.key_dim <= 256) return recur<32, 1>(v, n_sequences, stream);
  recur<64, 1>(v, n_sequences, stream);
}

}  // namespace tq::cuda
