#include "gemv_launch.h"

namespace tq::cuda {

void experts(const ExpertProduct& product, int k, cudaStream_t stream) {
  tqn::Formats::call(k, [&]<int K>(tqn::Format<K>) { launch_experts_format<K>(product, stream); });
}

void gemv(const PackedProduct& product, const SplitSums& split, cudaStream_t stream) {
  GemvLaunch launch{product, split, {}, 0};
  for (int m = 0; m < product.count; m++) launch.first_strip[m + 1] = launch.first_strip[m] + product.matrix[m].strips;
  tqn::Formats::call(product.matrix[0].k, [&]<int K>(tqn::Format<K>) { launch_gemv_format<K>(launch, stream); });
}

}  // namespace tq::cuda
