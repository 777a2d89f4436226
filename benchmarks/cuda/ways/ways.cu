#include "one_ways.cuh"

namespace bench {

void launch_way(int k, int way, const PackedProduct& product, const SplitSums& split, cudaStream_t stream) {
  switch (k) {
    case 1:
      return launch_way<1>(way, product, split, stream);
    case 2:
      return launch_way<2>(way, product, split, stream);
    case 3:
      return launch_way<3>(way, product, split, stream);
    case 4:
      return launch_way<4>(way, product, split, stream);
    default:
      return launch_way<6>(way, product, split, stream);
  }
}

}  // namespace bench
