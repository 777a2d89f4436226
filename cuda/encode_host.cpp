#include <algorithm>

#include "encode.h"
#include "memory.h"

namespace tq::cuda {

void encode_host_tiles(const float* x, int64_t tiles, int k, const int8_t* codebook, uint8_t* codes) {
  constexpr int64_t kPart = 1 << 16;  // tiles on the device at a time
  const int64_t part = std::min(tiles, kPart), tile_bytes = tqn::tile_bytes(k);
  const DeviceMemory targets(part * tqn::kTileSteps * 4), packed(part * tile_bytes), book(tqn::codebook_size(k));
  check(cudaMemcpy(book.as<void>(), codebook, size_t(tqn::codebook_size(k)), cudaMemcpyHostToDevice), "codebook");
  for (int64_t first = 0; first < tiles; first += part) {
    const int64_t n = std::min(part, tiles - first);
    check(cudaMemcpy(targets.as<void>(), x + first * tqn::kTileSteps, size_t(n * tqn::kTileSteps) * 4, cudaMemcpyHostToDevice),
          "encoder targets");
    encode_tiles(targets.as<float>(), n, k, book.as<int8_t>(), packed.as<uint8_t>(), nullptr);
    check(cudaMemcpy(codes + first * tile_bytes, packed.as<void>(), size_t(n * tile_bytes), cudaMemcpyDeviceToHost), "codes");
  }
}

}  // namespace tq::cuda
