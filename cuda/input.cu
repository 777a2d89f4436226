// A linear layer's input: norm or gate, rotation and int8 rounding of one row in one block.
#include <cuda_bf16.h>

#include "block.cuh"
#include "device.h"
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

__device__ inline float activate(GatedActivation activation, float x) {
  if (activation == GatedActivation::silu) return x / (1 + expf(-x));
  return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

// The plain row into x.
__device__ inline void load_row(const SourceView& s, int row, int n, float* x) {
  const int64_t at = int64_t(s.rows ? s.rows[row] : row) * n;
  const float* in = s.x + at;
  const float factor = s.kind == LinearInput::rms_norm ? rms_factor(in, n, s.eps) : 1.f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float v = in[i];
    if (s.kind == LinearInput::rms_norm) v *= s.weight ? factor * s.weight[i] : factor;
    if (s.kind == LinearInput::gated) v = activate(s.activation, v) * s.up[at + i];
    x[padded(i)] = v;
  }
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

__global__ void __launch_bounds__(kRotateThreads) input_kernel(const __grid_constant__ InputLaunch l) {
  extern __shared__ float shared[];
  const int n = l.in.n_in, row = blockIdx.x;
  float* x = l.scratch ? l.scratch + row * 2 * padded_size(n) : shared;
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

}  // namespace

int64_t input_scratch_floats(int n_in) { return vectors_are_shared(n_in, device_limits().shared_bytes) ? 0 : 2 * padded_size(n_in); }

void prepare_input(const SourceView& source, const RotationView& rotation, const InputView& in, Element half, float* scratch,
                   cudaStream_t stream) {
  const bool shared = input_scratch_floats(in.n_in) == 0;
  const int64_t bytes = shared ? vector_bytes(in.n_in) : 0;
  allow_shared(input_kernel, bytes);
  input_kernel<<<in.rows, rotate_threads(in.n_in), size_t(bytes), stream>>>({source, rotation, in, half, shared ? nullptr : scratch});
  check_launch("prepare_input");
}

}  // namespace tq::cuda
