#include "experts.cuh"

namespace tq::cuda {

extern template void launch_gemv_format<1>(const GemvLaunch&, cudaStream_t);
extern template void launch_gemv_format<2>(const GemvLaunch&, cudaStream_t);
extern template void launch_gemv_format<3>(const GemvLaunch&, cudaStream_t);
extern template void launch_gemv_format<4>(const GemvLaunch&, cudaStream_t);
extern template void launch_gemv_format<6>(const GemvLaunch&, cudaStream_t);
extern template void launch_gemv_format<8>(const GemvLaunch&, cudaStream_t);
extern template void launch_experts_format<1>(const ExpertProduct&, cudaStream_t);
extern template void launch_experts_format<2>(const ExpertProduct&, cudaStream_t);
extern template void launch_experts_format<3>(const ExpertProduct&, cudaStream_t);
extern template void launch_experts_format<4>(const ExpertProduct&, cudaStream_t);
extern template void launch_experts_format<6>(const ExpertProduct&, cudaStream_t);
extern template void launch_experts_format<8>(const ExpertProduct&, cudaStream_t);

void gemv(const PackedProduct& product, const SplitSums& split, cudaStream_t stream) {
  GemvLaunch launch{product, split, {}, 0};
  for (int m = 0; m < product.count; m++) launch.first_strip[m + 1] = launch.first_strip[m] + product.matrix[m].strips;
  switch (product.matrix[0].k) {
    case 1:
      return launch_gemv_format<1>(launch, stream);
    case 2:
      return launch_gemv_format<2>(launch, stream);
    case 3:
      return launch_gemv_format<3>(launch, stream);
    case 4:
      return launch_gemv_format<4>(launch, stream);
    case 6:
      return launch_gemv_format<6>(launch, stream);
    default:
      return launch_gemv_format<8>(launch, stream);
  }
}

void experts(const ExpertProduct& product, int k, cudaStream_t stream) {
  switch (k) {
    case 1:
      return launch_experts_format<1>(product, stream);
    case 2:
      return launch_experts_format<2>(product, stream);
    case 3:
      return launch_experts_format<3>(product, stream);
    case 4:
      return launch_experts_format<4>(product, stream);
    case 6:
      return launch_experts_format<6>(product, stream);
    default:
      return launch_experts_format<8>(product, stream);
  }
}

}  // namespace tq::cuda
