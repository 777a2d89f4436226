// Operations that treat each row, or each part of a row, by itself: embedding, norms, soft cap, rotary angles.
#include <cuda_bf16.h>

#include "block.cuh"
#include "device.h"
#include "rotation.cuh"

namespace tq::cuda {
namespace {

constexpr int kThreads = 256;

// A tile of codes as they stand on the device, by the bytes of its planes.
struct TileBytes {
  const uint8_t* first;
  __device__ TileBytes(const PackedView& w, int strip, int tile)
      : first(w.group(strip, tile / kGroupTiles * kGroupTiles) + tile % kGroupTiles * tqn::kTileLanes) {}
  TQN_FN uint8_t operator[](int i) const { return first[i / tqn::kTileLanes * kGroupPlane + i % tqn::kTileLanes]; }
};

struct EmbedLaunch {
  PackedView matrix;
  RotationView rotation;
  const int32_t* tokens;
  float scale;
  float* y;
  float* scratch;  // null: shared memory
};

__global__ void __launch_bounds__(kRotateThreads) embed_kernel(const __grid_constant__ EmbedLaunch l) {
  extern __shared__ float shared[];
  const PackedView& w = l.matrix;
  const int n = w.n_in, row = l.tokens[blockIdx.x];
  float *x = l.scratch ? l.scratch + blockIdx.x * 2 * padded_size(n) : shared, *y = l.y + int64_t(blockIdx.x) * n;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const TileBytes tile(w, row / tqn::kTileRows, i / tqn::kTileCols);
    x[padded(i)] = float(tqn::value(tile, w.k, tqn::step_of(row % tqn::kTileRows, i % tqn::kTileCols), w.codebook));
  }
  __syncthreads();
  float factor = l.scale * w.scale * half_value(w.row_scale[row]);
  const float* signs = l.rotation.signs;
  if (signs) x = mix(l.rotation, x, x + padded_size(n)), factor *= hadamard_factor(l.rotation);
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = factor * (signs ? signs[i] : 1.f) * x[padded(i)];
  if (!w.outliers.ptr) return;
  __syncthreads();
  const OutlierView& s = w.outliers;
  for (int i = s.ptr[row] + threadIdx.x; i < s.ptr[row + 1]; i += blockDim.x)
    y[s.col16 ? int(s.col16[i]) : s.col32[i]] += l.scale * half_value(s.val[i]);
}

__device__ inline float element(const DenseView& w, int64_t row, int i) {
  const char* p = static_cast<const char*>(w.data) + row * w.stride;
  if (w.element == Element::f32) return reinterpret_cast<const float*>(p)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(p)[i];
  return w.element == Element::f16 ? half_value(bits) : __uint_as_float(uint32_t(bits) << 16);
}

__global__ void __launch_bounds__(kThreads)
    embed_dense_kernel(const __grid_constant__ DenseView w, const int32_t* tokens, float scale, float* y) {
  for (int i = threadIdx.x; i < w.n_in; i += blockDim.x) y[int64_t(blockIdx.x) * w.n_in + i] = scale * element(w, tokens[blockIdx.x], i);
}

__global__ void __launch_bounds__(kThreads) norm_kernel(const float* x, const float* weight, float eps, int n, float* y) {
  x += int64_t(blockIdx.x) * n, y += int64_t(blockIdx.x) * n;
  const float factor = rms_factor(x, n, eps);
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i] * (weight ? factor * weight[i] : factor);
}

// The same for short rows, a warp each.
__global__ void __launch_bounds__(kThreads) norm_heads_kernel(const float* x, const float* weight, float eps, int rows, int n, float* y) {
  const int row = blockIdx.x * (kThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  x += int64_t(row) * n, y += int64_t(row) * n;
  float squares = 0;
  for (int i = lane; i < n; i += 32) squares += x[i] * x[i];
  const float factor = rsqrtf(warp_sum(squares) / float(n) + eps);
  for (int i = lane; i < n; i += 32) y[i] = x[i] * (weight ? factor * weight[i] : factor);
}

__global__ void __launch_bounds__(kThreads)
    add_norm_kernel(const float* x, const float* weight, float eps, float alpha, float scale, int n, float* y) {
  x += int64_t(blockIdx.x) * n, y += int64_t(blockIdx.x) * n;
  const float factor = rms_factor(x, n, eps);
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = scale * (y[i] + alpha * (x[i] * (weight ? factor * weight[i] : factor)));
}

__global__ void __launch_bounds__(kThreads) soft_cap_kernel(float* x, float cap, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) x[i] = cap * tanhf(x[i] / cap);
}

__global__ void __launch_bounds__(kThreads)
    scatter_add_kernel(const float* x, const int32_t* rows, const float* weights, float alpha, int width, float* y) {
  const float factor = alpha * weights[blockIdx.x];
  float* to = y + int64_t(rows[blockIdx.x]) * width;
  for (int i = threadIdx.x; i < width; i += kThreads) to[i] += factor * x[int64_t(blockIdx.x) * width + i];
}

// In double: a float angle of a late position would be off by more than the cosine's own rounding.
__global__ void __launch_bounds__(kThreads)
    angles_kernel(const int32_t* positions, const float* inv_freq, int half, int count, float magnitude, float* cos_out, float* sin_out) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  double s, c;
  sincos(double(positions[i / half]) * double(inv_freq[i % half]), &s, &c);
  cos_out[i] = float(c * magnitude), sin_out[i] = float(s * magnitude);
}

unsigned blocks_for(int64_t count) { return unsigned((count + kThreads - 1) / kThreads); }

}  // namespace

void embed(const PackedView& m, const RotationView& rotation, const BatchView& batch, float scale, float* y, float* scratch,
           cudaStream_t stream) {
  const bool shared = input_scratch_floats(m.n_in) == 0;
  const int64_t bytes = shared ? vector_bytes(m.n_in) : 0;
  allow_shared(embed_kernel, bytes);
  embed_kernel<<<batch.rows, rotate_threads(m.n_in), size_t(bytes), stream>>>(
      {m, rotation, batch.tokens, scale, y, shared ? nullptr : scratch});
  check_launch("embed");
}

void embed(const DenseView& m, const BatchView& batch, float scale, float* y, cudaStream_t stream) {
  embed_dense_kernel<<<batch.rows, kThreads, 0, stream>>>(m, batch.tokens, scale, y);
  check_launch("embed");
}

void norm(const float* x, const float* weight, float eps, int rows, int width, float* y, cudaStream_t stream) {
  if (width <= kThreads)
    norm_heads_kernel<<<unsigned((rows + kThreads / 32 - 1) / (kThreads / 32)), kThreads, 0, stream>>>(x, weight, eps, rows, width, y);
  else
    norm_kernel<<<rows, kThreads, 0, stream>>>(x, weight, eps, width, y);
  check_launch("norm");
}

void add_norm(const float* x, const float* weight, float eps, float alpha, float scale, int rows, int width, float* y,
              cudaStream_t stream) {
  add_norm_kernel<<<rows, kThreads, 0, stream>>>(x, weight, eps, alpha, scale, width, y);
  check_launch("add_norm");
}

void soft_cap(float* x, float cap, int64_t count, cudaStream_t stream) {
  soft_cap_kernel<<<blocks_for(count), kThreads, 0, stream>>>(x, cap, count);
  check_launch("soft_cap");
}

void scatter_add(const float* x, const int32_t* rows, const float* weights, float alpha, int count, int width, float* y,
                 cudaStream_t stream) {
  scatter_add_kernel<<<count, kThreads, 0, stream>>>(x, rows, weights, alpha, width, y);
  check_launch("scatter_add");
}

void angles(const BatchView& batch, const float* inv_freq, int half, float magnitude, float* cos, float* sin, cudaStream_t stream) {
  const int count = batch.rows * half;
  angles_kernel<<<blocks_for(count), kThreads, 0, stream>>>(batch.positions, inv_freq, half, count, magnitude, cos, sin);
  check_launch("angles");
}

}  // namespace tq::cuda
