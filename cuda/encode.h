// Encoding on the device.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace tq::cuda {

// Best circular path of each tile, trellis formats only. x: (tiles, 256) targets in units of the codebook's integers, step order; codes: 32
// * k bytes a tile; all in device memory. Targets count to an eighth and to +-255.
void encode_tiles(const float* x, int64_t tiles, int k, const int8_t* codebook, uint8_t* codes, cudaStream_t stream);

// The same from and to host memory, a part at a time.
void encode_host_tiles(const float* x, int64_t tiles, int k, const int8_t* codebook, uint8_t* codes);

}  // namespace tq::cuda
