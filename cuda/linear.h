// Linear layers: which forms of the input are needed, and which kernels multiply.
#pragma once
#include <vector>

#include "launch.h"
#include "matrix.h"

namespace tq::cuda {

// Device scratch that all operations of a backend share: passes run one at a time, in one stream.
struct Workspace {
  DeviceMemory plain, rotated, quantized, scale, half;  // forms of one linear input
  DeviceMemory vectors;                                 // rotations too wide for shared memory
  DeviceMemory values;                                  // expanded weights
  DeviceMemory sums, arrived;                           // of gemv
  DeviceMemory cos, sin, partials, q_codes, q_scale;    // attention
  DeviceMemory top;                                     // of the choice of tokens
  DeviceMemory moe_x, moe_gate, moe_up, moe_out, moe_shared, moe_logits, moe_shared_logits, moe_routes;
  // Changes whenever memory moved, so that graphs know that their addresses are stale.
  int64_t generation() const {
    int64_t bytes = 0;
    for (const DeviceMemory* m :
         {&plain, &rotated,  &quantized, &scale,    &half,   &vectors, &values,     &sums,       &arrived,           &cos,
          &sin,   &partials, &moe_x,     &moe_gate, &moe_up, &moe_out, &moe_shared, &moe_logits, &moe_shared_logits, &moe_routes,
          &top,   &q_codes,  &q_scale})
      bytes += m->bytes();
    return bytes;
  }
  void reserve_quantized(int n_in, int64_t rows);  // an input's int8 form
  SplitSums split() const { return {sums.as<int32_t>(), arrived.as<uint32_t>()}; }
};

// Something to multiply with, and where the product goes.
struct Target {
  const CudaMatrix* matrix;
  OutputView out;
};

class LinearRunner {
 public:
  LinearRunner(Workspace& workspace, Precision precision, cudaStream_t stream) : w_(workspace), precision_(precision), stream_(stream) {}
  // Makes room for `rows` rows into matrices that share an input.
  void reserve(const std::vector<const CudaMatrix*>& matrices, int64_t rows);
  // targets' matrices share in.n_in = width; rows: of the source (gathered when source.rows is set).
  void run(const SourceView& source, int rows, const std::vector<Target>& targets);
  bool float_path() const { return precision_ == Precision::f32; }

 private:
  bool wants_half(const CudaMatrix& m, int rows) const;
  bool wants_plain(const CudaMatrix& m, int rows) const;
  InputView dense_input(const SourceView& source, int rows, const std::vector<Target>& targets);
  InputView packed_input(const SourceView& source, int rows, const CudaMatrix& m, const float* plain);
  void multiply_dense(const Target& target, const InputView& in);
  void multiply_packed(const std::vector<Target>& targets, const InputView& in);
  void multiply_few(const std::vector<Target>& targets, const InputView& in);
  void multiply_many(const Target& target, const InputView& in);

  Workspace& w_;
  Precision precision_;
  cudaStream_t stream_;
  const float* unwritten_ = nullptr;  // the plain form, where packed_input() is to write it
};

}  // namespace tq::cuda
