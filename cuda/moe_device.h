// A mixture of experts over few rows without the host: which expert a row goes to stays on the device, and every launch has the same shape
// whatever the router chooses, so that a pass can be a graph.
#pragma once
#include <map>

#include "linear.h"

namespace tq::cuda {

inline constexpr int kDeviceMoeRows = kGemvTokens;
static_assert(kDeviceMoeRows * kMaxChoices <= kMaxRoutes);

class DeviceMoe {
 public:
  DeviceMoe(Workspace& workspace, LinearRunner& linear, cudaStream_t stream) : w_(workspace), linear_(linear), stream_(stream) {}
  // Makes room for the mixture if it can run here; the op must stay where it is.
  void reserve(const MoeOp& op, int64_t max_rows);
  // Every expert is packed, those that read one input share their shape and rotation (k may differ), and activations are int8.
  bool can_run(const MoeOp& op) const { return experts_.contains(&op); }
  // y += the mixture of x (rows, n_embd), at most kDeviceMoeRows of them, whose router sees router_x.
  void run(const MoeOp& op, const float* x, const SourceView& router_x, int rows);

 private:
  // The matrices of all experts that read one input.
  struct Table {
    DeviceMemory views;        // PackedView (matrices of an expert, experts)
    std::vector<int> formats;  // each k once
    bool outliers = false;
    const CudaMatrix* any = nullptr;
    ExpertProduct product;  // but for the input and where the products go
  };
  struct Experts {
    Table gate_up, down;
  };
  Table make_table(const std::vector<const std::vector<Matrix*>*>& lists);
  void reserve_table(const Table& table, int routes, int n_experts);
  RouteView route_view(int routes) const;
  InputView input(const Table& table, const SourceView& source, int routes);
  void multiply(const Table& table, const InputView& in, const RouteView& route, std::initializer_list<float*> y);
  SharedExpert run_shared(const MoeOp& op, const SourceView& x, int rows);

  Workspace& w_;
  LinearRunner& linear_;
  cudaStream_t stream_;
  std::map<const MoeOp*, Experts> experts_;
};

}  // namespace tq::cuda
