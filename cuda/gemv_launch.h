// The launchers of each format: declared here, defined in gemv.cuh and experts.cuh, instantiated in a file a format (gemv_kN.cu).
#pragma once
#include "launch.h"

namespace tq::cuda {

struct GemvLaunch {
  PackedProduct product;
  SplitSums split;
  int first_strip[kMaxOutputs + 1];  // of each matrix in the launch's list of strips
  int blocks_a_strip;                // 0: blocks take equal runs of the whole list
  __host__ __device__ int strips() const { return first_strip[product.count]; }
};

template <int K>
void launch_gemv_format(const GemvLaunch& launch, cudaStream_t stream);
template <int K>
void launch_experts_format(const ExpertProduct& product, cudaStream_t stream);

}  // namespace tq::cuda
