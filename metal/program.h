// A prepared list of operations, encoded kernel by kernel for each pass.
#pragma once
#include "moe.h"

namespace tq::metal {

class MetalProgram final : public Program {
 public:
  MetalProgram(std::vector<Op> ops, int64_t max_rows, Precision precision, Workspace& workspace);
  // Encodes one pass and waits for it.
  void run(const Batch& batch);

 private:
  struct Run {
    uint32_t first, count;  // rows, as attend_runs reads them
  };
  void reserve();
  void reserve_attention(const AttentionOp& op);
  void stage(const Batch& batch);
  void fill_angles(const Batch& batch);
  void encode(const Op& op);
  void encode(const EmbedOp& op);
  void encode(const LinearOp& op);
  void encode(const NormOp& op);
  void encode(const AddNormOp& op);
  void encode(const AttentionOp& op);
  void encode(const SoftCapOp& op);
  void encode(const TopOp& op);
  bool attends_by_runs(const AttentionOp& op) const;
  uint32_t attention_splits(const AttentionOp& op) const;

  std::vector<Op> ops_;
  const int64_t max_rows_;
  const Precision precision_;
  Workspace& w_;
  LinearRunner linear_;
  MoeRunner moe_;

  // What depends on a row's position alone, for each table that differs: its part of angles_, in floats.
  struct Angles {
    RopeTable table;
    int64_t cos, sin;
  };
  struct Growth {
    QueryGrowth growth;
    int64_t factors;
  };
  std::vector<Angles> tables_;
  std::vector<Growth> growths_;
  Allocation angles_, inputs_;  // inputs_: tokens, positions, slots, output rows, runs: max_rows int32 (runs: pairs) each
  Bound tokens_, positions_, slots_, output_rows_, runs_at_;
  std::vector<Run> runs_;
  int64_t rows_ = 0, n_outputs_ = 0;
};

}  // namespace tq::metal
