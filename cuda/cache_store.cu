// Rows on their way to a cache in codes, all heads of q, k and v: a warp a vector.
#include "cache_encode.cuh"
#include "dependent.h"

namespace tq::cuda {
namespace {

__global__ void __launch_bounds__(kWarp) store_codes_kernel(const __grid_constant__ CodedView c) {
  __shared__ float vectors[2 * padded_size(kMaxCodedDim)];
  __shared__ uint8_t codes[kMaxCodedDim];
  const AttentionView& a = c.a;
  const int row = blockIdx.y, dim = a.shape.head_dim, n_heads = a.shape.n_heads, n_kv = a.shape.n_kv_heads;
  const int head = blockIdx.x, kv_head = (head - n_heads) % n_kv;
  const bool query = head < n_heads, key = !query && head < n_heads + n_kv;
  release_dependents();
  const LaneVector<> signs = load_signs<kLaneChannels>(c.rotation);
  const LaneStatistics<kLaneChannels> statistics = load_statistics<kLaneChannels>(a, query ? head / (n_heads / n_kv) : kv_head);
  const int slot = a.batch.slots[row], position = a.batch.positions[row];
  await_inputs();
  float* const x = query ? a.q + (int64_t(row) * n_heads + head) * dim : (key ? a.k : a.v) + (int64_t(row) * n_kv + kv_head) * dim;
  LaneVector<> l[1] = {load_vector(a, row, x, a.cos && (query || key), query)};
  if (query || key) balance(statistics, dim, query, l[0]);
  rotate(c.rotation, signs, l, vectors);
  store_vector(l[0], dim, x);
  if (!query) return store_codes(c, l[0], key, slot, position, kv_head, codes);
  const int64_t at = int64_t(row) * n_heads + head;
  const int padded_dim = int(tqn::cache::padded(dim));
  const float scale = quantize_query(l[0], padded_dim, c.q_codes + at * padded_dim, [](int channel) { return channel; });
  if (lane_of() == 0) c.q_scale[at] = scale;
}

}  // namespace

void store_codes(const CodedView& c, cudaStream_t stream) {
  const dim3 grid(c.a.shape.n_heads + 2 * c.a.shape.n_kv_heads, c.a.batch.rows);
  launch_dependent("store_codes", store_codes_kernel, grid, kWarp, 0, stream, c);
}

}  // namespace tq::cuda
