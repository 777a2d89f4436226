// A linear layer's input: norm or gate, rotation and int8 rounding of one row in one thread-group.
#include "arguments.h"
#include "block.h"
#include "rotate.h"

namespace tq {

inline float gated(uint activation, float x, float up) {
  if (activation == kSilu) return x / (1.0f + exp(-x)) * up;
  if (activation == kSigmoid) return up / (1.0f + exp(-x));
  if (activation == kClampedSwiglu) {
    x = min(x, 7.0f), up = min(max(up, -7.0f), 7.0f);
    return x / (1.0f + exp(-1.702f * x)) * (up + 1.0f);
  }
  const float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + tanh(min(max(inner, -15.0f), 15.0f))) * up;  // Metal's tanh of large numbers is not specified
}

// What the forms of a row are written to.
struct InputForms {
  device float *plain, *rotated;
  device int8_t* quantized;
  device float* scale;
};

// Rounds x * factor to int8.
template <class P>
inline void quantize(thread const InputForms& out, P x, uint n, float factor, uint row, threadgroup float* partial, uint threads, uint tid,
                     uint lane, uint sg) {
  float most = 0;
  for (uint i = tid; i < n; i += threads) most = max(most, fabs(x[padded(i)]));
  most = block_max(most, partial, threads, lane, sg) * factor;
  const float inverse = most > 0.0f ? factor * (127.0f / most) : 0.0f;
  if (tid == 0) out.scale[row] = most / 127.0f;
  for (uint i = tid; i < n; i += threads) out.quantized[ulong(row) * n + i] = int8_t(rint(x[padded(i)] * inverse));
}

template <bool Wide, class P>
inline void prepare(constant InputArgs& a, device const float* x, device const float* up, device const float* weight, uint from,
                    device const float* signs, device const float* hartley, thread const InputForms& out, P v, P other,
                    threadgroup float* partial, uint row, uint tid, uint lane, uint sg) {
  const uint n = a.n, threads = input_threads(n);
  x += ulong(from) * n, up += ulong(from) * n;
  const float norm = a.kind == kNormInput ? rms_factor(x, n, a.eps, partial, threads, tid, lane, sg) : 1.0f;
  for (uint i = tid; i < n; i += threads) {
    float value = x[i];
    if (a.kind == kNormInput) value *= (a.flags & kWeight) ? norm * weight[i] : norm;
    if (a.kind == kGatedInput) value = gated(a.activation, value, up[i]);
    if (a.flags & kPlain) out.plain[ulong(row) * n + i] = value;
    v[padded(i)] = (a.flags & kRotate) ? signs[i] * value : value;
  }
  if (!(a.flags & (kRotated | kQuantized))) return;
  settle<Wide>();
  float factor = 1;
  if (a.flags & kRotate) v = mix<Wide>(a.rotation, hartley, v, other, n, tid, threads), factor = hadamard_factor(a.rotation);
  if (a.flags & kRotated)
    for (uint i = tid; i < n; i += threads) out.rotated[ulong(row) * n + i] = v[padded(i)] * factor;
  if (a.flags & kQuantized) quantize(out, v, n, factor, row, partial, threads, tid, lane, sg);
}

}  // namespace tq

using namespace tq;

#define TQ_INPUT_BUFFERS                                                                                                       \
  constant InputArgs &a [[buffer(0)]], device const float *x [[buffer(1)]], device const float *up [[buffer(2)]],              \
      device const float *weight [[buffer(3)]], device const int *rows [[buffer(4)]], device const float *signs [[buffer(5)]], \
      device const float *hartley [[buffer(6)]], device float *plain [[buffer(7)]], device float *rotated [[buffer(8)]],       \
      device int8_t *quantized [[buffer(9)]], device float *scale [[buffer(10)]], device float *scratch [[buffer(11)]]

template <int Width>
kernel void input(TQ_INPUT_BUFFERS, TQ_IDS) {
  TQ_SHARED(float, v, Width + Width / 32);
  TQ_SHARED(float, partial, 32);
  const InputForms out = {plain, rotated, quantized, scale};
  const uint row = group.x;
  prepare<false>(a, x, up, weight, (a.flags & kGather) ? uint(rows[row]) : row, signs, hartley, out, v, v, partial, row, tid, lane, sg);
}
TQ_INSTANCE(input_2048, input, 2048)
TQ_INSTANCE(input_4096, input, 4096)
TQ_INSTANCE(input_7680, input, 7680)

kernel void input_wide(TQ_INPUT_BUFFERS, TQ_IDS) {
  TQ_SHARED(float, partial, 32);
  const InputForms out = {plain, rotated, quantized, scale};
  const uint row = group.x, size_of_one = padded(a.n);
  device float* v = scratch + ulong(row) * 2 * size_of_one;
  prepare<true>(a, x, up, weight, (a.flags & kGather) ? uint(rows[row]) : row, signs, hartley, out, v, v + size_of_one, partial, row, tid,
                lane, sg);
}
TQ_KERNEL(input_wide)
