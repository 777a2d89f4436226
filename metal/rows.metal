// Operations that treat each row, or each part of a row, by itself: embedding, norms, soft cap, weighted sums.
#include "arguments.h"
#include "block.h"
#include "elements.h"
#include "format/tqn_layout.h"
#include "rotate.h"

using namespace tq;

kernel void embed_packed(constant EmbedArgs& a [[buffer(0)]], device const uchar* codes [[buffer(1)]],
                         device const half* row_scale [[buffer(2)]], device const int8_t* codebook [[buffer(3)]],
                         device const int* tokens [[buffer(4)]], device float* y [[buffer(5)]], device const float* signs [[buffer(6)]],
                         device const float* hartley [[buffer(7)]], device float* scratch [[buffer(8)]],
                         device const int* out_ptr [[buffer(9)]], device const uchar* out_col [[buffer(10)]],
                         device const half* out_val [[buffer(11)]], TQ_IDS) {
  const uint n = a.n, row = uint(tokens[group.x]);
  device float* x = scratch + ulong(group.x) * 2 * padded(n);
  y += ulong(group.x) * n;
  device const uchar* strip = codes + ulong(row / tqn::kTileRows) * (n / tqn::kTileCols) * tqn::tile_bytes(int(a.k));
  for (uint i = tid; i < n; i += kRowThreads) {
    device const uchar* tile = strip + ulong(i / tqn::kTileCols) * tqn::tile_bytes(int(a.k));
    x[padded(i)] = float(tqn::value(tile, int(a.k), tqn::step_of(int(row % tqn::kTileRows), int(i % tqn::kTileCols)), codebook));
  }
  threadgroup_barrier(mem_flags::mem_device);
  float factor = a.scale * a.matrix_scale * float(row_scale[row]);
  const bool rotated = (a.flags & kRotate) != 0;
  if (rotated) x = mix<true>(a.rotation, hartley, x, x + padded(n), n, tid, kRowThreads), factor *= hadamard_factor(a.rotation);
  for (uint i = tid; i < n; i += kRowThreads) y[i] = (rotated ? signs[i] * factor : factor) * x[padded(i)];
  if (!(a.flags & kOutliers)) return;
  threadgroup_barrier(mem_flags::mem_device);
  for (uint i = uint(out_ptr[row]) + tid; i < uint(out_ptr[row + 1]); i += kRowThreads) {
    const uint column = (a.flags & kWideColumns) ? uint(((device const int*)out_col)[i]) : uint(((device const ushort*)out_col)[i]);
    y[column] += a.scale * float(out_val[i]);
  }
}
TQ_KERNEL(embed_packed)

template <class E>
kernel void embed(constant EmbedArgs& a [[buffer(0)]], device const typename E::Stored* w [[buffer(1)]],
                  device const int* tokens [[buffer(2)]], device float* y [[buffer(3)]], TQ_IDS) {
  for (uint i = tid; i < a.n; i += kRowThreads) 
    y[ulong(group.x) * a.n + i] = a.scale * E::to_float(w[ulong(tokens[group.x]) * a.stride + a.column + i]);
}
TQ_INSTANCE(embed_f32, embed, Float32)
TQ_INSTANCE(embed_f16, embed, Float16)
TQ_INSTANCE(embed_bf16, embed, BFloat16)

kernel void rms_norm(constant NormArgs& a [[buffer(0)]], device const float* x [[buffer(1)]], device const float* weight [[buffer(2)]],
                     device float* y [[buffer(3)]], TQ_IDS) {
  TQ_SHARED(float, partial, 32);
  x += ulong(group.x) * a.n, y += ulong(group.x) * a.n;
  const float factor = rms_factor(x, a.n, a.eps, partial, kRowThreads, tid, lane, sg);
  for (uint i = tid; i < a.n; i += kRowThreads) y[i] = x[i] * ((a.flags & kWeight) ? factor * weight[i] : factor);
}
TQ_KERNEL(rms_norm)

kernel void add_rms_norm(constant NormArgs& a [[buffer(0)]], device const float* x [[buffer(1)]], device const float* weight [[buffer(2)]],
                         device float* y [[buffer(3)]], TQ_IDS) {
  TQ_SHARED(float, partial, 32);
  x += ulong(group.x) * a.n, y += ulong(group.x) * a.n;
  const float factor = rms_factor(x, a.n, a.eps, partial, kRowThreads, tid, lane, sg);
  for (uint i = tid; i < a.n; i += kRowThreads)
    y[i] = a.scale * (y[i] + a.alpha * (x[i] * ((a.flags & kWeight) ? factor * weight[i] : factor)));
}
TQ_KERNEL(add_rms_norm)

kernel void soft_cap(constant NormArgs& a [[buffer(0)]], device float* x [[buffer(1)]], TQ_IDS) {
  const uint i = group.x * kRowThreads + tid;
  if (i < a.count) x[i] = capped(x[i], a.eps);
}
TQ_KERNEL(soft_cap)

kernel void clear(constant NormArgs& a [[buffer(0)]], device float* x [[buffer(1)]], TQ_IDS) {
  const uint i = group.x * kRowThreads + tid;
  if (i < a.count) x[i] = 0.0f;
}
TQ_KERNEL(clear)

kernel void scatter_add(constant NormArgs& a [[buffer(0)]], device const float* x [[buffer(1)]], device const int* rows [[buffer(2)]],
                        device const float* weights [[buffer(3)]], device float* y [[buffer(4)]], TQ_IDS) {
  const uint column = group.x * kRowThreads + tid, i = group.y;
  if (column < a.n) y[ulong(rows[i]) * a.n + column] += a.alpha * weights[i] * x[ulong(i) * a.n + column];
}
TQ_KERNEL(scatter_add)
