// Mixture of experts: the router's logits come back to the host, which sorts the rows by expert; each busy expert then runs over its own
// rows.
#pragma once
#include "linear.h"

namespace tq::cuda {

class MoeRunner {
 public:
  MoeRunner(Workspace& workspace, LinearRunner& linear, cudaStream_t stream) : w_(workspace), linear_(linear), stream_(stream) {}
  void reserve(const MoeOp& op, int64_t max_rows);
  void run(const MoeOp& op, const SourceView& source, int rows);

 private:
  struct Expert {
    const Matrix *gate, *up, *down;
  };
  // Rows sorted by expert, in device memory: rows [first[e], first[e + 1]) of `rows` and `weights` are expert e's.
  struct Routes {
    std::vector<int> first;
    const int32_t* rows;
    const float* weights;
  };
  static std::vector<Expert> experts(const MoeOp& op);
  std::vector<float> router_logits(const Matrix* router, const SourceView& x, int rows);
  Routes route(const MoeOp& op, const SourceView& x, int rows);
  void run_expert(const MoeOp& op, const Expert& e, const SourceView& x, const int32_t* rows, const float* weights, int count);

  Workspace& w_;
  LinearRunner& linear_;
  cudaStream_t stream_;
};

}  // namespace tq::cuda
