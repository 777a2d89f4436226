// A prepared list of operations, launched kernel by kernel or, for decoding, as one graph a batch size.
#pragma once
#include <array>
#include <functional>
#include <map>
#include <vector>

#include "moe.h"

namespace tq::cuda {

class CudaProgram final : public Program {
 public:
  // rotation_of: of vectors of a head's size in a cache of codes.
  CudaProgram(std::vector<Op> ops, int64_t max_rows, Precision precision, Workspace& workspace,
              const std::function<std::shared_ptr<const Rotation>(int64_t)>& rotation_of, cudaStream_t stream);
  ~CudaProgram() override;
  // Enqueues one pass and waits for it.
  void run(const Batch& batch);

 private:
  void reserve();
  void reserve_attention(const AttentionOp& op);
  void stage(const Batch& batch);
  bool can_replay() const;
  void launch_all();
  void launch(const Op& op);
  void launch_embed(const EmbedOp& op);
  void launch_linear(const LinearOp& op);
  void launch_attention(const AttentionOp& op);
  void launch_coded(const AttentionView& a, const AttentionOp& op);
  void launch_delta_net(const DeltaNetOp& op);
  bool by_runs() const;
  const QueryRun* device_runs() const { return reinterpret_cast<const QueryRun*>(inputs_.as<int32_t>() + kRuns * max_rows_); }
  const QueryRun* device_sequences() const { return reinterpret_cast<const QueryRun*>(inputs_.as<int32_t>() + kSequences * max_rows_); }
  void fill_angles();
  void replay();
  void drop_graphs();

  std::vector<Op> ops_;
  int64_t max_rows_;
  Precision precision_;
  Workspace& workspace_;
  cudaStream_t stream_;
  LinearRunner linear_;
  MoeRunner moe_;

  // Rope tables that differ, each with its part of the workspace's angles.
  struct Angles {
    RopeTable table;
    int64_t offset;  // floats
  };
  std::vector<Angles> angles_;
  std::map<int64_t, std::shared_ptr<const Rotation>> rotations_;  // by head size

  // What a pass needs of its batch, in pieces of max_rows_ numbers: tokens, positions, slots, output rows, and these.
  static constexpr int kRuns = 4, kSequences = 6, kOrder = 8, kPieces = 9;
  int32_t* staged_ = nullptr;  // pinned
  DeviceMemory inputs_;        // the same on the device
  BatchView batch_;
  std::vector<QueryRun> runs_, sequences_;
  int64_t generation_ = 0;
  bool coded_ = false;   // some cache is in codes
  int coded_spans_ = 1;  // at least those of the batch's deepest row, a power of two: launches and graphs are made for so many
  std::map<std::array<int, 3>, cudaGraphExec_t> graphs_;  // by rows, output rows and spans
};

}  // namespace tq::cuda
