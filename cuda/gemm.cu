// y = X W^T for many tokens: int8, f16 and bf16 operands share one kernel, since a row's bytes lie in the same lanes for all three.
// A block computes 128 tokens x 128 rows of W, four warps of 64 x 64; operands come through a ring of shared-memory stages (cp.async).
#include "device.h"
#include "epilogue.cuh"
#include "gemm_hopper.h"
#include "mma.cuh"

namespace tq::cuda {
namespace {

constexpr int kTile = 128;  // tokens and weight rows of a block
constexpr int kWarpTile = 64;
constexpr int kThreads = 128;
constexpr int kDepth = 64;  // bytes of a row in a stage
constexpr int kStages = 4;
constexpr int kMmaBytes = 32;  // of a row in one mma: 32 int8 or 16 halves
constexpr int kStageBytes = 2 * kTile * kDepth;
constexpr int kSharedBytes = kStages * kStageBytes;

// 16-byte chunks of a 64-byte row are permuted so that eight rows of one chunk column meet different banks.
__device__ inline uint32_t chunk_offset(int row, int chunk) { return uint32_t(row * kDepth + ((chunk ^ (row >> 1)) & 3) * 16); }

// The three element types: accumulator and mma.
struct Int8 {
  using Sum = int;
  static __device__ void mma(Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_int8(d, a[0], a[1], a[2], a[3], b0, b1); }
};
struct F16 {
  using Sum = float;
  static __device__ void mma(Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_f16(d, a, b0, b1); }
};
struct Bf16 {
  using Sum = float;
  static __device__ void mma(Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_bf16(d, a, b0, b1); }
};

struct Operand {
  const char* data;
  int64_t stride;  // bytes, a multiple of 64, zeros beyond the width
  int rows;
};

// One stage: kTile rows x kDepth bytes of an operand, zeros for rows that are not there.
__device__ inline void load_operand(const Operand& o, int first_row, int64_t offset, uint32_t shared) {
#pragma unroll
  for (int i = threadIdx.x; i < kTile * kDepth / 16; i += kThreads) {
    const int row = i / 4, chunk = i % 4;
    const bool real = first_row + row < o.rows;
    copy_async(shared + chunk_offset(row, chunk), o.data + (real ? (first_row + row) * o.stride + offset + chunk * 16 : 0), real);
  }
}

template <class E>
struct WarpSums {
  typename E::Sum d[4][8][4];  // 16 tokens x 8 rows each
};

template <class E>
__device__ inline void multiply_stage(uint32_t tokens, uint32_t rows, WarpSums<E>& sums) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int k = 0; k < kDepth / kMmaBytes; k++) {
    uint32_t a[4][4], b[4][4];
#pragma unroll
    for (int m = 0; m < 4; m++) load_matrices(a[m], tokens + chunk_offset(m * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int n = 0; n < 4; n++) load_matrices(b[n], rows + chunk_offset(n * 16 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
      for (int n = 0; n < 8; n++) E::mma(sums.d[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
  }
}

// What turns a sum into an output: scales of packed matrices, nothing for dense ones.
struct Scales {
  const uint16_t* row = nullptr;  // null: 1
  const float* token = nullptr;
  float all = 1;
  __device__ float operator()(int t, int r, float sum) const { return row ? all * half_value(row[r]) * token[t] * sum : sum; }
};

template <class E>
__device__ inline void write_sums(const WarpSums<E>& sums, const Scales& scales, const OutputView& out, int first_token, int first_row,
                                  int tokens, int n_out) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int m = 0; m < 4; m++)
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int t = first_token + m * 16 + lane / 4 + i / 2 * 8, r = first_row + n * 8 + lane % 4 * 2 + i % 2;
        if (t < tokens && r < n_out) write_output(out, t, r, scales(t, r, float(sums.d[m][n][i])));
      }
}

template <class E>
__global__ void __launch_bounds__(kThreads, 2)
    gemm_kernel(const __grid_constant__ Operand x, const __grid_constant__ Operand w, int depth, const __grid_constant__ Scales scales,
                const __grid_constant__ OutputView out, int n_out) {
  extern __shared__ __align__(128) char shared[];
  const uint32_t base = shared_address(shared);
  const int first_token = blockIdx.x * kTile, first_row = blockIdx.y * kTile, warp = threadIdx.x / kWarp;
  const int stages = depth / kDepth;
  const auto load = [&](int stage) {
    const uint32_t at = base + stage % kStages * kStageBytes;
    if (stage < stages) {
      load_operand(x, first_token, int64_t(stage) * kDepth, at);
      load_operand(w, first_row, int64_t(stage) * kDepth, at + kTile * kDepth);
    }
    commit_copies();
  };
  for (int s = 0; s < kStages - 1; s++) load(s);
  WarpSums<E> sums = {};
  for (int s = 0; s < stages; s++) {
    wait_copies<kStages - 2>();
    __syncthreads();
    load(s + kStages - 1);
    const uint32_t at = base + s % kStages * kStageBytes;
    multiply_stage<E>(at + warp / 2 * kWarpTile * kDepth, at + (kTile + warp % 2 * kWarpTile) * kDepth, sums);
  }
  write_sums<E>(sums, scales, out, first_token + warp / 2 * kWarpTile, first_row + warp % 2 * kWarpTile, x.rows, n_out);
}

template <class E>
void launch(const Operand& x, const Operand& w, int64_t depth, const Scales& scales, const OutputView& out, int n_out,
            cudaStream_t stream) {
  allow_shared(gemm_kernel<E>, kSharedBytes);
  const dim3 grid((x.rows + kTile - 1) / kTile, (n_out + kTile - 1) / kTile);
  gemm_kernel<E><<<grid, kThreads, kSharedBytes, stream>>>(x, w, int(round_up(depth, kDepth)), scales, out, n_out);
  check_launch("gemm");
}

}  // namespace

void gemm_int8(const PackedView& m, const int8_t* weights, const InputView& in, const OutputView& out, cudaStream_t stream) {
  if (in.tiled) return gemm_int8_hopper(m, weights, in, out, stream);
  const Operand x{reinterpret_cast<const char*>(in.quantized), in.quantized_stride(), in.rows};
  const Operand w{reinterpret_cast<const char*>(weights), round_up(m.n_in, kRowAlign), m.strips * tqn::kTileRows};
  launch<Int8>(x, w, m.n_in, {m.row_scale, in.scale, m.scale}, out, m.n_out, stream);
}

void gemm_half(const DenseView& m, const InputView& in, const OutputView& out, cudaStream_t stream) {
  const Operand x{static_cast<const char*>(in.half), in.half_stride(), in.rows}, w{static_cast<const char*>(m.data), m.stride, m.n_out};
  const int64_t depth = int64_t(m.n_in) * 2;
  if (m.element == Element::f16)
    launch<F16>(x, w, depth, {}, out, m.n_out, stream);
  else
    launch<Bf16>(x, w, depth, {}, out, m.n_out, stream);
}

}  // namespace tq::cuda
