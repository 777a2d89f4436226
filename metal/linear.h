// Linear layers: which forms of the input are needed, and which kernels multiply.
#pragma once
#include <string>
#include <vector>

#include "matrix.h"

namespace tq::metal {

// Encodes a launch of a kernel with its arguments struct at buffer 0.
template <class Args>
void launch(Context& context, const std::string& kernel, const Args& args, std::initializer_list<Bound> buffers, Size3 groups,
            uint32_t threads) {
  context.device->launch(context.device->pipeline(kernel), std::as_bytes(std::span(&args, 1)), {buffers.begin(), buffers.size()}, groups,
                         threads);
}
inline uint32_t pieces(int64_t n, int64_t of) { return uint32_t((n + of - 1) / of); }

// Memory that a kernel reads or writes, and whether it is there.
struct Operand {
  Bound bound;
  bool real = false;
};

// Device scratch that all operations of a backend share: passes run one at a time, in order.
struct Workspace {
  explicit Workspace(const ContextPtr& c) : context(c) {}
  const ContextPtr context;
  Allocation plain{context}, rotated{context}, quantized{context}, scale{context}, vectors{context}, partials{context};
  Allocation states{context}, q_codes{context}, q_scale{context}, top{context}, routes{context};
  Allocation moe_x{context}, moe_gate{context}, moe_up{context}, moe_out{context}, moe_shared{context}, moe_logits{context},
      moe_shared_logits{context};
  Operand nothing() const { return {{context->nothing.get(), 0}, false}; }
};

// What a linear layer reads, before its forms.
struct Source {
  LinearInput::Kind kind = LinearInput::plain;
  GatedActivation activation = GatedActivation::silu;
  Bound x{};
  Operand up{}, weight{};
  float eps = 0;
  Operand rows{};  // gather these rows; else all
};
// y[row * stride + offset + i] = (add ? y : 0) + alpha * (product_i + bias_i)
struct Target {
  const MetalMatrix* matrix;
  Bound y;
  int64_t y_stride = 0, y_offset = 0;
  Operand bias{};
  float alpha = 1;
  bool add = false;
};

class LinearRunner {
 public:
  LinearRunner(Workspace& workspace, Precision precision) : w_(workspace), precision_(precision) {}
  // Makes room for `rows` rows into matrices that share an input.
  void reserve(const std::vector<const MetalMatrix*>& matrices, int64_t rows);
  void reserve_forms(int64_t n, int64_t rows);
  // targets' matrices share the width of the source; rows: of the source (gathered where it says so).
  void run(const Source& source, int64_t rows, const std::vector<Target>& targets);
  // Forms of the input in the workspace: flags are metal_args::kPlain, kRotated, kQuantized. rotation: null: none.
  void prepare(const Source& source, int64_t rows, int64_t n, const Rotation* rotation, uint32_t flags);
  bool float_path() const { return precision_ == Precision::f32; }

 private:
  uint32_t splits(const MetalMatrix& m, int64_t rows) const;
  uint32_t tokens_at_once(int64_t rows) const;
  void multiply_dense(const Target& target, const Bound& x, int64_t rows);
  void multiply_packed(const Target& target, int64_t rows);

  Workspace& w_;
  Precision precision_;
};

}  // namespace tq::metal
