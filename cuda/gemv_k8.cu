#include "gemv.cuh"

namespace tq::cuda {

template void launch_gemv_format<8>(const GemvLaunch& launch, cudaStream_t stream);

}  // namespace tq::cuda
