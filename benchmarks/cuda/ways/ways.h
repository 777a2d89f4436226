// Experiment: ways of the one-token product beside each other.
#pragma once
#include "launch.h"

namespace bench {

inline constexpr const char* kWayNames[] = {"ordered", "nc ordered", "nc", "plain", "nc 2", "shared"};
inline constexpr int kWays = 6;
void launch_way(int k, int way, const tq::cuda::PackedProduct& product, const tq::cuda::SplitSums& split, cudaStream_t stream);

}  // namespace bench
