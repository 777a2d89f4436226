// A prepared list of operations, encoded kernel by kernel for each pass.
#pragma once
#include <functional>

#include "backend/row_runs.h"
#include "moe.h"

namespace tq::metal {

inline bool same_table(const RopeTable& a, const RopeTable& b) {
  return a.inv_freq == b.inv_freq && a.dims == b.dims && a.magnitude == b.magnitude;
}
inline bool same_growth(const QueryGrowth& a, const QueryGrowth& b) { return a.beta == b.beta && a.length == b.length; }

void check_delta_net(const DeltaNetShape& shape);  // refuses heads that the kernels have no room for

class MetalProgram final : public Program {
 public:
  // rotation_of: of vectors of a head's size in a cache of codes.
  using RotationOf = std::function<std::shared_ptr<const Rotation>(int64_t)>;
  MetalProgram(std::vector<Op> ops, int64_t max_rows, Precision precision, Workspace& workspace, const RotationOf& rotation_of);
  // Encodes one pass and waits for it.
  void run(const Batch& batch);

 private:
  void reserve();
  void reserve_attention(const AttentionOp& op);
  void stage(const Batch& batch);
  void fill_angles(const Batch& batch);
  void encode(const Op& op);
  void encode(const EmbedOp& op);
  void encode(const MoeOp& op);
  void encode(const LinearOp& op);
  void encode(const NormOp& op);
  void encode(const AddNormOp& op);
  void encode(const AttentionOp& op);
  void encode(const SoftCapOp& op);
  void encode(const DeltaNetOp& op);
  void encode(const TopOp& op);
  // What attention's kernels share: their arguments, and what they read beside queries, keys and values.
  struct AttentionLaunch {
    metal_args::AttentionArgs args;
    Bound q, k, v, k_cache, v_cache, out, cos, sin, growth, sinks;
  };
  AttentionLaunch prepare(const AttentionOp& op) const;
  void attend(const AttentionOp& op, AttentionLaunch& l);
  void attend_coded(const AttentionOp& op, const AttentionLaunch& l);
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
  std::map<int64_t, std::shared_ptr<const Rotation>> rotations_;  // by head size
  // inputs_: tokens, positions, slots, output rows, rows by slot, then the pairs of runs and of sequences: max_rows of each.
  Allocation angles_, inputs_;
  Bound tokens_, positions_, slots_, output_rows_, order_, runs_at_, sequences_at_;
  std::vector<RowRun> runs_, sequences_;
  int64_t rows_ = 0, n_outputs_ = 0;
};

}  // namespace tq::metal
