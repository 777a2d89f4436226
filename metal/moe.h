// Mixture of experts. Few rows stay on the device, which routes them: a pass is encoded at once whatever the router will choose. For many
// rows the router's logits come back to the host, which sorts the rows by expert; each busy expert then runs over its own rows.
#pragma once
#include <map>

#include "linear.h"

namespace tq::metal {

class MoeRunner {
 public:
  MoeRunner(Workspace& workspace, LinearRunner& linear) : w_(workspace), linear_(linear) {}
  // Makes room for the mixture; the op must stay where it is.
  void reserve(const MoeOp& op, int64_t max_rows);
  void run(const MoeOp& op, const Source& source, const Source& router_source, int64_t rows);  // the latter where the op has router_in

 private:
  struct Expert {
    const Matrix *gate, *up, *down;
    Operand gate_bias{}, up_bias{}, down_bias{};
  };
  // Rows sorted by expert, in the workspace: rows [first[e], first[e + 1]) are expert e's, then come as many weights.
  struct Routes {
    std::vector<int64_t> first;
    int64_t count;
  };
  // The matrices of all experts that stand in one place of the mixture, for the device to choose from.
  struct Table {
    explicit Table(const ContextPtr& context) : planes(context), entries(context) {}
    Planes planes;
    Allocation entries;        // (experts) ExpertMatrix
    std::vector<int> formats;  // each k once
    bool outliers = false;
    const MetalMatrix* any = nullptr;
  };
  struct OnDevice {
    explicit OnDevice(const ContextPtr& context) : gate(context), up(context), down(context) {}
    Table gate, up, down;
  };

  static std::vector<Expert> experts(const MoeOp& op);
  bool make_table(const std::vector<Matrix*>& matrices, Table& table);
  void run_on_device(const MoeOp& op, const OnDevice& tables, const Source& router_source, int64_t rows);
  void multiply(const Table& table, const Bound& y, int64_t routes, int64_t max_groups, const Buffer* biases);
  void run_shared(const MoeOp& op, int64_t rows);
  std::vector<float> router_logits(const Source& source, const Matrix* router, const Buffer* bias, int64_t rows);
  Routes route(const MoeOp& op, const Source& router_source, int64_t rows);
  void run_expert(const MoeOp& op, const Expert& e, const Routes& routes, size_t expert);

  Workspace& w_;
  LinearRunner& linear_;
  std::map<const MoeOp*, std::unique_ptr<OnDevice>> on_device_;
};

}  // namespace tq::metal
