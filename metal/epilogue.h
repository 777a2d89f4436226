// The end of a product: scales, outliers, bias, residual.
#pragma once
#include "arguments.h"
#include "format/tqn_layout.h"
#include "kernel.h"

namespace tq {
using namespace metal_args;

// S: rows [row, row + 1) of the outliers times x, the part of one of `parts` threads.
inline float outlier_part(device const int* ptr, device const uchar* col, device const half* val, bool wide, uint row,
                          device const float* x, uint part, uint parts) {
  float sum = 0;
  for (uint i = uint(ptr[row]) + part; i < uint(ptr[row + 1]); i += parts) {
    const uint column = wide ? uint(((device const int*)col)[i]) : uint(((device const ushort*)col)[i]);
    sum += float(val[i]) * x[column];
  }
  return sum;
}

// y = (add ? y : 0) + alpha * (product + bias)
inline void write_output(constant LinearArgs& a, device float* y, device const float* bias, uint row, uint column, float product) {
  device float* to = y + ulong(row) * a.y_stride + a.y_offset + column;
  const float value = a.alpha * (product + ((a.flags & kBias) ? bias[column] : 0.0f));
  *to = (a.flags & kAdd) ? *to + value : value;
}

}  // namespace tq

// Of every kernel that multiplies by a packed matrix (arguments.h).
#define TQ_PACKED_BUFFERS                                                                                                             \
  constant LinearArgs &a [[buffer(0)]], device const uchar *codes [[buffer(1)]], device const half *row_scale [[buffer(2)]],          \
      device const int8_t *codebook [[buffer(3)]], device const uchar *x [[buffer(4)]], device const float *x_scale [[buffer(5)]],    \
      device float *y [[buffer(6)]], device const float *bias [[buffer(7)]], device const int *out_ptr [[buffer(8)]],                 \
      device const uchar *out_col [[buffer(9)]], device const half *out_val [[buffer(10)]], device const float *plain [[buffer(11)]], \
      device int *partials [[buffer(12)]]
