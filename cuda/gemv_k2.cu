#include "experts.cuh"

namespace tq::cuda {

template void launch_gemv_format<2>(const GemvLaunch& launch, cudaStream_t stream);
template void launch_experts_format<2>(const ExpertProduct& product, cudaStream_t stream);

}  // namespace tq::cuda
