#include "one_ways.cuh"

namespace bench {

template <>
void launch_way<TQ_WAY_K>(int way, const PackedProduct& product, const SplitSums& split, cudaStream_t stream) {
  switch (way) {
    case 0:
      return launch_gemv_one<TQ_WAY_K, OneWay<InputLoad::ordered, 4>>(product, split, stream);
    case 1:
      return launch_gemv_one<TQ_WAY_K, OneWay<InputLoad::constant_ordered, 4>>(product, split, stream);
    case 2:
      return launch_gemv_one<TQ_WAY_K, OneWay<InputLoad::constant, 4>>(product, split, stream);
    case 3:
      return launch_gemv_one<TQ_WAY_K, OneWay<InputLoad::plain, 4>>(product, split, stream);
    case 4:
      return launch_gemv_one<TQ_WAY_K, OneWay<InputLoad::constant, 2>>(product, split, stream);
    default:
      return launch_gemv_one<TQ_WAY_K, OneWay<InputLoad::shared, 4>>(product, split, stream);
  }
}

}  // namespace bench
