// What kernels receive beside their buffers, in the common subset of C++ and MSL: plain structs of 32-bit numbers, always at buffer 0.
// Beside each struct stand the kernels that take it, with their other buffers in order from index 1, their grid of thread-groups and the
// threads of a group. A buffer that a flag makes optional is bound nevertheless (any will do).
#pragma once
#ifdef __METAL_VERSION__
#include <metal_stdlib>
#define TQ_CONSTANT static constant constexpr const
#else
#include <stdint.h>
#define TQ_CONSTANT inline constexpr
#endif

namespace tq {
namespace metal_args {

TQ_CONSTANT uint32_t kGemvThreads = 256;
TQ_CONSTANT uint32_t kGemvStepColumns = 256;  // that a thread-group multiplies at once: splits share n_in in these units
TQ_CONSTANT uint32_t kGroupRows = 4;          // rows of an ExpertGroup at most

// Bits of `flags`.
enum Flags : uint32_t {
  kAdd = 1,          // y += instead of y =
  kBias = 2,         // bias is real
  kOutliers = 4,     // out_ptr, out_col, out_val and plain are real
  kWideColumns = 8,  // out_col holds int32, else uint16
};

// y[row * y_stride + y_offset + i] = (add ? y : 0) + alpha * (product_i + bias_i).
// gemv_k{1,2,3,4,6,8}_m{1,2,4}   x int8: rows of x_stride bytes (a multiple of 4), with x_scale
// gemvf_k{1,2,3,4,6,8}_m{1,4}    x float: the rotated input, x_stride floats apart
//   1 codes  2 row_scale (f16)  3 codebook  4 x  5 x_scale  6 y  7 bias  8 out_ptr  9 out_col  10 out_val  11 plain (float, n_in apart)
//   12 partials (splits > 1: (splits, rows, strips * 64) int32, gemvf: float)
//   grid (strips, splits, ceil(rows / m)) of kGemvThreads
// gemv_finish, gemvf_finish       the same buffers; after a launch with splits > 1; grid (strips, 1, rows) of kGemvThreads
struct LinearArgs {
  uint32_t n_out, n_in, rows, x_stride, y_stride, y_offset, splits, flags;
  float scale, alpha;
};

// One matrix of an expert: byte offsets from the start of `weights`. k that differs from the kernel's: left out.
struct ExpertMatrix {
  uint64_t codes, row_scale, codebook, out_ptr, out_col, out_val;
  float scale;
  uint32_t flags, k, unused;
};
struct ExpertGroup {
  uint32_t expert, first, count;  // routes [first, first + count) by expert
};
// experts_k{1,2,3,4,6,8}          all matrices of one shape; rows of x are routes by expert; y (routes, n_out) (y_stride = n_out)
//   1 weights  2 table (n_experts) ExpertMatrix  3 x int8  4 x_scale  5 y  6 plain  7 groups  8 n_groups (uint)
//   grid (strips, 1, max groups) of kGemvThreads; LinearArgs: rows = routes, flags, scale unused; alpha 1

}  // namespace metal_args
}  // namespace tq
