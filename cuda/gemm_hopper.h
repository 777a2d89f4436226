#pragma once
#include "launch.h"

namespace tq::cuda {

// Whether the current device and this build have gemm_int8_hopper.
bool has_hopper_gemm();
// gemm_int8 with warpgroup products; both operands tiled.
void gemm_int8_hopper(const PackedView& matrix, const int8_t* weights, const InputView& in, const OutputView& out, cudaStream_t stream);

}  // namespace tq::cuda
