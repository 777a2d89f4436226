// Mixture of experts. Few rows stay on the device (moe_device.h). Otherwise the router's logits come back to the host, which sorts the rows
// by expert; each busy expert then runs over its own rows.
#pragma once
#include "moe_device.h"

namespace tq::cuda {

class MoeRunner {
 public:
  MoeRunner(Workspace& workspace, LinearRunner& linear, cudaStream_t stream)
      : w_(workspace), linear_(linear), stream_(stream), device_(workspace, linear, stream) {}
  void reserve(const MoeOp& op, int64_t max_rows);
  bool needs_host(const MoeOp& op, int rows) const { return rows > kDeviceMoeRows || !device_.can_run(op); }
  // router_source: of the router, where op.router_in has a plane.
  void run(const MoeOp& op, const SourceView& source, const SourceView& router_source, int rows);

 private:
  struct Expert {
    const Matrix *gate, *up, *down;
    const float *gate_bias = nullptr, *up_bias = nullptr, *down_bias = nullptr;
  };
  // Rows sorted by expert, in device memory: rows [first[e], first[e + 1]) of `rows` and `weights` are expert e's.
  struct Routes {
    std::vector<int> first;
    const int32_t* rows;
    const float* weights;
  };
  static std::vector<Expert> experts(const MoeOp& op);
  std::vector<float> router_logits(const Matrix* router, const Buffer* bias, const SourceView& x, int rows);
  Routes route(const MoeOp& op, const SourceView& x, const SourceView& router_x, int rows);
  void run_expert(const MoeOp& op, const Expert& e, const SourceView& x, const int32_t* rows, const float* weights, int count);

  Workspace& w_;
  LinearRunner& linear_;
  cudaStream_t stream_;
  DeviceMoe device_;
};

}  // namespace tq::cuda
