// A linear layer's input: norm or gate, rotation and int8 rounding of one row in one block.
#include <cuda_bf16.h>

#include "block.cuh"
#include "dependent.h"
#include "rotation.cuh"

namespace tq::cuda {
namespace {

struct InputLaunch {
  SourceView source;
  RotationView rotation;
  InputView in;
  Element half;
  float* scratch;  // null: shared memory
};

__device__ inline float gated(GatedActivation activation, float x, float up) {
  if (activation == GatedActivation::silu) return x / (1 + expf(-x)) * up;
  if (activation == GatedActivation::sigmoid) return up / (1 + expf(-x));
  if (activation == GatedActivation::clamped_swiglu) {
    x = fminf(x, 7.f), up = fminf(fmaxf(up, -7.f), 7.f);
    return x / (1 + expf(-1.702f * x)) * (up + 1);
  }
  return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x))) * up;
}

// The plain row into x.
__device__ inline void load_row(const SourceView& s, int row, int n, float* x) {
  const int64_t at = int64_t(s.rows ? s.rows[row] : row) * n;
  const float* in = s.x + at;
  const float factor = s.kind == LinearInput::rms_norm ? rms_factor(in, n, s.eps) : 1.f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float v = in[i];
    if (s.kind == LinearInput::rms_norm) v *= s.weight ? factor * s.weight[i] : factor;
    if (s.kind == LinearInput::gated) v = gated(s.activation, v, s.up[at + i]);
    x[padded(i)] = v;
  }
}

// kLaneValues values from and to memory, aligned to 16 bytes.
__device__ inline void load_values(const float* from, float (&v)[kLaneValues]) {
#pragma unroll
  for (int i = 0; i < kLaneValues; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
  }
}
__device__ inline void store_values(float* to, const float (&v)[kLaneValues]) {
#pragma unroll
  for (int i = 0; i < kLaneValues; i += 4) *reinterpret_cast<float4*>(to + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
}

__device__ inline void scale_values(const float (&weight)[kLaneValues], float factor, float (&v)[kLaneValues]) {
#pragma unroll
  for (int i = 0; i < kLaneValues; i++) v[i] *= factor * weight[i];
}

// Values of a row, gated but not normalized.
__device__ inline void load_values(const SourceView& s, int64_t start, int first, float (&v)[kLaneValues]) {
  load_values(s.x + start + first, v);
  if (s.kind != LinearInput::gated) return;
  float up[kLaneValues];
  load_values(s.up + start + first, up);
#pragma unroll
  for (int i = 0; i < kLaneValues; i++) v[i] = gated(s.activation, v[i], up[i]);
}

__device__ inline void write_plain(const InputLaunch& l, int row, const float* x) {
  const int n = l.in.n_in;
  if (l.in.plain) {
    float* out = const_cast<float*>(l.in.plain) + int64_t(row) * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = x[padded(i)];
  }
  if (!l.in.half) return;
  uint16_t* out = reinterpret_cast<uint16_t*>(static_cast<char*>(const_cast<void*>(l.in.half)) + row * l.in.half_stride());
  for (int i = threadIdx.x; i < l.in.half_stride() / 2; i += blockDim.x) {
    const float v = i < n ? x[padded(i)] : 0.f;
    out[i] = l.half == Element::f16 ? __half_as_ushort(__float2half_rn(v)) : __bfloat16_as_ushort(__float2bfloat16_rn(v));
  }
}

__device__ inline void write_quantized(const InputLaunch& l, int row, const float* x, float factor) {
  const int n = l.in.n_in;
  float most = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, fabsf(x[padded(i)]));
  most = block_max(most) * factor;
  const float scale = most / tqn::kActivationMax, inverse = most > 0 ? factor * (tqn::kActivationMax / most) : 0.f;
  if (threadIdx.x == 0) const_cast<float*>(l.in.scale)[row] = scale;
  const int64_t stride = l.in.quantized_stride();
  int8_t* out = const_cast<int8_t*>(l.in.quantized);
  for (int i = 4 * threadIdx.x; i < stride; i += 4 * blockDim.x) {
    const auto at = [&](int j) {
      return j < n ? static_cast<signed char>(__float2int_rn(x[padded(j)] * inverse)) : static_cast<signed char>(0);
    };
    const int64_t to = l.in.tiled ? tiled_offset(row, i, stride, kTokenTile) : row * stride + i;
    *reinterpret_cast<char4*>(out + to) = make_char4(at(i), at(i + 1), at(i + 2), at(i + 3));
  }
}

// A lane's values of a vector that no kernel writes; null: ones.
template <int I>
struct Constants {
  static constexpr bool kEarly = I <= 2;  // fetched before the input is there, while registers last
  const float* from;
  float held[kEarly ? I : 1][kLaneValues];
  __device__ Constants(const float* vector, int n) : from(vector) {
    for (auto& values : held)
      for (float& value : values) value = 1;
    if constexpr (kEarly) {
#pragma unroll
      for (int i = 0; i < I; i++)
        if (from && first_value(i) < n) load_values(from + first_value(i), held[i]);
    }
  }
  __device__ static int first_value(int i) { return int(i * blockDim.x + threadIdx.x) * kLaneValues; }
  __device__ void scale(int i, float factor, float (&v)[kLaneValues]) {
    if constexpr (kEarly) return scale_values(held[i], factor, v);
    if (from) load_values(from + first_value(i), held[0]);
    scale_values(held[0], factor, v);
  }
};

// The same for a row whose rotation begins with kWarpBits bits: values stay in registers from their load until those passes are done. I:
// values / kLaneValues of a thread.
template <int I>
__global__ void __launch_bounds__(kRotateThreads) rotated_input_kernel(const __grid_constant__ InputLaunch l) {
  extern __shared__ float shared[];
  const int n = l.in.n_in, row = blockIdx.x;
  const auto first = Constants<I>::first_value;
  release_dependents();
  const bool norm = l.source.kind == LinearInput::rms_norm;
  Constants<I> weight(norm ? l.source.weight : nullptr, n), signs(l.rotation.signs, n);
  await_inputs();
  const int64_t start = int64_t(l.source.rows ? l.source.rows[row] : row) * n;
  float v[I][kLaneValues] = {};
#pragma unroll
  for (int i = 0; i < I; i++)
    if (first(i) < n) load_values(l.source, start, first(i), v[i]);
  if (norm) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < I; i++)
#pragma unroll
      for (int j = 0; j < kLaneValues; j++) squares += v[i][j] * v[i][j];
    const float factor = rsqrtf(block_sum(squares) / float(n) + l.source.eps);
#pragma unroll
    for (int i = 0; i < I; i++)
      if (first(i) < n) weight.scale(i, factor, v[i]);
  }
#pragma unroll
  for (int i = 0; i < I; i++) {
    if (first(i) >= n) continue;  // whole warps: n is a multiple of kWarpValues
    if (l.in.plain) store_values(const_cast<float*>(l.in.plain) + int64_t(row) * n + first(i), v[i]);
    signs.scale(i, 1.f, v[i]);
    hadamard_warp(v[i]);
#pragma unroll
    for (int j = 0; j < kLaneValues; j++) shared[padded(first(i) + j)] = v[i][j];
  }
  __syncthreads();
  const float* x = mix(l.rotation, shared, shared + padded_size(n), kWarpBits);
  write_quantized(l, row, x, hadamard_factor(l.rotation));
}

__global__ void __launch_bounds__(kRotateThreads) input_kernel(const __grid_constant__ InputLaunch l) {
  extern __shared__ float shared[];
  const int n = l.in.n_in, row = blockIdx.x;
  float* x = l.scratch ? l.scratch + row * 2 * padded_size(n) : shared;
  release_dependents();
  await_inputs();
  load_row(l.source, row, n, x);
  __syncthreads();
  write_plain(l, row, x);
  float factor = 1;
  if (l.rotation.signs) {
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) x[padded(i)] *= l.rotation.signs[i];
    __syncthreads();
    x = mix(l.rotation, x, x + padded_size(n));
    factor = hadamard_factor(l.rotation);
  }
  if (l.in.rotated) {
    float* out = const_cast<float*>(l.in.rotated) + int64_t(row) * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = x[padded(i)] * factor;
  }
  if (l.in.quantized) write_quantized(l, row, x, factor);
}

// Values of a row that a thread of rotated_input_kernel holds.
int values_per_thread(int n) { return (n + kRotateThreads * kLaneValues - 1) / (kRotateThreads * kLaneValues) * kLaneValues; }

// The faster kernel where it serves; else null.
void (*rotated_kernel(const InputLaunch& l))(InputLaunch) {
  const bool serves = l.rotation.signs && l.rotation.log2_block >= kWarpBits && l.in.quantized && !l.in.rotated && !l.in.half && !l.scratch;
  if (!serves) return nullptr;
  switch (values_per_thread(l.in.n_in) / kLaneValues) {
    case 1:
      return rotated_input_kernel<1>;
    case 2:
      return rotated_input_kernel<2>;
    case 3:
    case 4:
      return rotated_input_kernel<4>;
    default:
      return nullptr;
  }
}

}  // namespace

int64_t input_scratch_floats(int n_in) { return vectors_are_shared(n_in, device_limits().shared_bytes) ? 0 : 2 * padded_size(n_in); }

void prepare_input(const SourceView& source, const RotationView& rotation, const InputView& in, Element half, float* scratch,
                   cudaStream_t stream) {
  const bool shared = input_scratch_floats(in.n_in) == 0;
  const int64_t bytes = shared ? vector_bytes(in.n_in) : 0;
  const InputLaunch launch{source, rotation, in, half, shared ? nullptr : scratch};
  if (const auto kernel = rotated_kernel(launch)) {
    const int per_thread = values_per_thread(in.n_in);
    allow_shared(kernel, bytes);
    launch_dependent("prepare_input", kernel, dim3(in.rows), unsigned(round_up((in.n_in + per_thread - 1) / per_thread, 32)), bytes, stream,
                     launch);
    return;
  }
  allow_shared(input_kernel, bytes);
  launch_dependent("prepare_input", input_kernel, dim3(in.rows), rotate_threads(in.n_in), bytes, stream, launch);
}

}  // namespace tq::cuda
