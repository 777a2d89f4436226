// Experiment: ways of the one-token product beside each other.
#pragma once
#include "gemv_one.cuh"
#include "ways.h"

namespace bench {

using namespace tq::cuda;
template <int K>
void launch_way(int way, const PackedProduct& product, const SplitSums& split, cudaStream_t stream);

}  // namespace bench
