// A packed matrix as plain int8 rows, for products over many tokens: decoded once, read by every tile of tokens.
#include <utility>

#include "decode.cuh"
#include "device.h"
#include "launch.h"

namespace tq::cuda {
namespace {

constexpr int kWarps = 8;

// A lane holds every eighth row of a strip x 8 neighbouring columns.
template <int K, int Step, bool Tiled>
__device__ inline void store_row(const Codes<K> (&codes)[2], const Nibbles<K> (&nibbles)[2], uint32_t table, int8_t* values, int64_t stride,
                                 int64_t first_row, int column) {
  const int64_t row = first_row + Step * kGroups;
  int8_t* out = values + (Tiled ? tiled_offset(row, column, stride, kWeightTile) : row * stride + column);
  *reinterpret_cast<uint2*>(out) =
      make_uint2(decode_row<K, Step>(codes[0], nibbles[0], table), decode_row<K, Step>(codes[1], nibbles[1], table));
}

template <int K, bool Tiled, int... Steps>
__device__ inline void store_rows(const Codes<K> (&codes)[2], uint32_t table, int8_t* values, int64_t stride, int64_t first_row, int column,
                                  std::integer_sequence<int, Steps...>) {
  const Nibbles<K> nibbles[2] = {Nibbles<K>(codes[0]), Nibbles<K>(codes[1])};
  (store_row<K, Steps, Tiled>(codes, nibbles, table, values, stride, first_row, column), ...);
}

template <int K, bool Tiled>
__global__ void __launch_bounds__(kWarps* kWarp) expand_kernel(const __grid_constant__ PackedView w, int8_t* values) {
  extern __shared__ __align__(16) char shared[];
  uint32_t table = 0;
  if constexpr (K != 8) {
    fill_table<K, false>(shared, w.codebook);
    __syncthreads();
    table = lane_table(shared_address(shared));
  }
  const int lane = threadIdx.x % kWarp, g = lane / 4;
  const int64_t stride = round_up(w.n_in, kRowAlign), groups = stride / kGroupCols, total = groups * w.strips;
  for (int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; i < total; i += int64_t(gridDim.x) * kWarps) {
    const int strip = int(i / groups), tile = int(i % groups) * kGroupTiles + 2 * (lane % 4), column = tile * tqn::kTileCols;
    const uint8_t* p = w.group(strip, tile / kGroupTiles * kGroupTiles) + tile % kGroupTiles * tqn::kTileLanes + g * 4;
    Codes<K> codes[2];
    load_codes<K>(p, codes[0]), load_codes<K>(p + tqn::kTileLanes, codes[1]);
    share_codes<K>(codes[0]), share_codes<K>(codes[1]);
    store_rows<K, Tiled>(codes, table, values, stride, int64_t(strip) * tqn::kTileRows + g, column,
                         std::make_integer_sequence<int, kLaneRows>());
  }
}

template <int K, bool Tiled>
void launch_layout(const PackedView& w, int8_t* values, cudaStream_t stream) {
  const int64_t warps = round_up(w.n_in, kRowAlign) / kGroupCols * w.strips;
  const int64_t blocks = std::min<int64_t>((warps + kWarps - 1) / kWarps, device_limits().processors * 5);
  allow_shared(expand_kernel<K, Tiled>, table_bytes(K));
  expand_kernel<K, Tiled><<<unsigned(blocks), kWarps * kWarp, table_bytes(K), stream>>>(w, values);
  check_launch("expand");
}

template <int K>
void launch(const PackedView& w, int8_t* values, bool tiled, cudaStream_t stream) {
  if (tiled)
    launch_layout<K, true>(w, values, stream);
  else
    launch_layout<K, false>(w, values, stream);
}

}  // namespace

void expand(const PackedView& matrix, int8_t* values, bool tiled, cudaStream_t stream) {
  tqn::Formats::call(matrix.k, [&]<int K>(tqn::Format<K>) { launch<K>(matrix, values, tiled, stream); });
}

}  // namespace tq::cuda
