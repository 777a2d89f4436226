// A packed matrix as plain int8 rows, for products over many tokens: decoded once, read by every tile of tokens.
#include "decode.cuh"
#include "device.h"
#include "launch.h"

namespace tq::cuda {
namespace {

constexpr int kWarps = 8;

// A lane holds 8 rows x 8 neighbouring columns.
template <int K, int Row>
__device__ inline void store_row(const Codes<K> (&codes)[2], uint32_t table, int8_t* out, int64_t stride) {
  *reinterpret_cast<uint2*>(out + Row * stride) = make_uint2(decode_row<K, Row>(codes[0], table), decode_row<K, Row>(codes[1], table));
}

template <int K>
__global__ void __launch_bounds__(kWarps* kWarp) expand_kernel(const __grid_constant__ PackedView w, int8_t* values) {
  extern __shared__ char shared[];
  uint32_t table = 0;
  if constexpr (K != 8) {
    const uint32_t base = fill_table(shared, w.codebook);
    __syncthreads();
    table = lane_table(base);
  }
  const int lane = threadIdx.x % kWarp, g = lane / 4;
  const int64_t stride = round_up(w.n_in, kRowAlign), groups = stride / kGroupCols, total = groups * w.strips;
  for (int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; i < total; i += int64_t(gridDim.x) * kWarps) {
    const int strip = int(i / groups), tile = int(i % groups) * kGroupTiles + 2 * (lane % 4);
    const uint8_t* p = w.codes + (int64_t(strip) * w.tiles + tile) * tqn::tile_bytes(K) + g * (4 * K);
    Codes<K> codes[2];
    load_codes<K>(p, codes[0]), load_codes<K>(p + tqn::tile_bytes(K), codes[1]);
    share_codes<K>(codes[0]), share_codes<K>(codes[1]);
    int8_t* out = values + (int64_t(strip) * tqn::kTileRows + kLaneRows * g) * stride + tile * tqn::kTileCols;
    store_row<K, 0>(codes, table, out, stride), store_row<K, 1>(codes, table, out, stride);
    store_row<K, 2>(codes, table, out, stride), store_row<K, 3>(codes, table, out, stride);
    store_row<K, 4>(codes, table, out, stride), store_row<K, 5>(codes, table, out, stride);
    store_row<K, 6>(codes, table, out, stride), store_row<K, 7>(codes, table, out, stride);
  }
}

template <int K>
void launch(const PackedView& w, int8_t* values, cudaStream_t stream) {
  const int64_t warps = round_up(w.n_in, kRowAlign) / kGroupCols * w.strips;
  const int64_t blocks = std::min<int64_t>((warps + kWarps - 1) / kWarps, device_limits().processors * 4);
  allow_shared(expand_kernel<K>, kTableSharedBytes);
  expand_kernel<K><<<unsigned(blocks), kWarps * kWarp, K == 8 ? 0 : kTableSharedBytes, stream>>>(w, values);
  check_launch("expand");
}

}  // namespace

void expand(const PackedView& matrix, int8_t* values, cudaStream_t stream) {
  switch (matrix.k) {
    case 1:
      return launch<1>(matrix, values, stream);
    case 2:
      return launch<2>(matrix, values, stream);
    case 3:
      return launch<3>(matrix, values, stream);
    case 4:
      return launch<4>(matrix, values, stream);
    case 6:
      return launch<6>(matrix, values, stream);
    default:
      return launch<8>(matrix, values, stream);
  }
}

}  // namespace tq::cuda
