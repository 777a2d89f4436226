#include <type_traits>

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

namespace {

template <int K>
using Format = std::integral_constant<int, K>;

// Calls `launch` with the format as a constant.
template <class Launch>
void with_format(int k, Launch&& launch) {
  switch (k) {
    case 1:
      return launch(Format<1>());
    case 2:
      return launch(Format<2>());
    case 3:
      return launch(Format<3>());
    case 4:
      return launch(Format<4>());
    case 6:
      return launch(Format<6>());
    default:
      return launch(Format<8>());
  }
}

}  // namespace

void experts(const ExpertProduct& product, int k, cudaStream_t stream) {
  with_format(k, [&]<int K>(Format<K>) { launch_experts_format<K>(product, stream); });
}

void gemv(const PackedProduct& product, const SplitSums& split, cudaStream_t stream) {
  GemvLaunch launch{product, split, {}, 0};
  for (int m = 0; m < product.count; m++) launch.first_strip[m + 1] = launch.first_strip[m] + product.matrix[m].strips;
  with_format(product.matrix[0].k, [&]<int K>(Format<K>) { launch_gemv_format<K>(launch, stream); });
}

}  // namespace tq::cuda
