// What the operations of the CPU backend share. A program is a list of steps. Every thread runs every step, in order, and does its part of
// the step's work; no thread begins a step before all have ended the one before.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "backend/backend.h"
#include "backend/cpu/profile.h"
#include "backend/cpu/thread_pool.h"
#include "kernels/kernels.h"

namespace tq::cpu {

using kernels::Kernels;
using kernels::RotationPlan;

struct CpuBuffer final : Buffer {
  explicit CpuBuffer(int64_t size);
  ~CpuBuffer() override;
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;
  uint8_t* data = nullptr;  // 64-byte aligned, zeroed; null when empty

 private:
  void* block_ = nullptr;
};

struct CpuMatrix final : Matrix {
  HostMatrix host;
  std::shared_ptr<const RotationPlan> plan;  // null: not rotated
};

inline const CpuMatrix& cpu(const Matrix* matrix) { return static_cast<const CpuMatrix&>(*matrix); }
template <class T = float>
T* data(const Buffer* buffer) {
  return buffer ? reinterpret_cast<T*>(static_cast<const CpuBuffer*>(buffer)->data) : nullptr;
}
inline float* row(const Plane& plane, int64_t r) { return data(plane.buffer) + r * plane.width; }

// Cuts a block of memory into pieces, each at a multiple of 64 bytes. Without a block (null) it gives null pointers and only counts: so the
// same code says how much memory it will need and later takes it.
class Arena {
 public:
  explicit Arena(uint8_t* base = nullptr) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* base_;
  int64_t used_ = 0;
};

struct Range {
  int64_t first, last;  // [first, last)
};

// Work items 0 to total - 1, handed out in chunks to whichever thread asks next. An empty range says that none are left.
class WorkQueue {
 public:
  void reset() { next_.store(0, std::memory_order_relaxed); }
  Range take(int64_t total, int64_t chunk) {
    const int64_t first = std::min(next_.fetch_add(chunk, std::memory_order_relaxed), total);
    return {first, std::min(first + chunk, total)};
  }

 private:
  alignas(64) std::atomic<int64_t> next_{0};
};

// One thread's view of the running pass.
struct Worker {
  const Kernels& k;
  ThreadPool& pool;
  const Batch& batch;
  int thread, threads;  // this is thread number `thread` of `threads`
  // Sums over cached positions are cut into parts, and the cuts show in the last bit of the result. So their number follows from this, the
  // number of threads that the user asked for, and not from `threads`, which may be lower for a while (thread_choice.h) or for good, where
  // the machine has fewer cores: results stay the same.
  int parts;
  uint8_t* shared;   // scratch that all threads see; a step may use it until it ends
  uint8_t* scratch;  // scratch of this thread alone; likewise
  int64_t rows() const { return int64_t(batch.tokens.size()); }
  Profile* profile = nullptr;  // where this thread's time is counted; null: nowhere
  void barrier() {
    const Timed timed(profile, "barrier");
    pool.barrier();
  }
  Range share(int64_t n) const { return {n * thread / threads, n * (thread + 1) / threads}; }  // this thread's part of n items
  // How many of `total` items to take from a WorkQueue at once: few enough that every thread comes several times, so that the others can
  // take over from one that the system has stopped for a while.
  int64_t chunk(int64_t total) const { return threads == 1 ? std::max<int64_t>(total, 1) : std::max<int64_t>(total / (threads * 6), 1); }
};

struct ScratchBytes {
  int64_t shared = 0, per_thread = 0;
};

// The largest pass that a program will see.
struct Limits {
  int64_t rows = 0;
  int parts = 1;  // Worker::parts
  Precision precision = Precision::int8;
};

class Step {
 public:
  virtual ~Step() = default;
  virtual ScratchBytes scratch(const Kernels& k, const Limits& limits) const = 0;  // bytes that run() uses at most
  virtual void reset() {}                                                          // called before each pass, by one thread
  virtual void run(Worker& w) = 0;  // called by every thread; must not throw or allocate memory
};
using StepPtr = std::unique_ptr<Step>;

// cos and sin of the batch's positions for one rope table, (rows, dims / 2) each. Computed once a pass, for all layers that use the table.
struct Angles {
  RopeTable table;
  BufferPtr cos, sin;
};

StepPtr make_embed(const EmbedOp& op);
StepPtr make_norm(const NormOp& op);
StepPtr make_add_norm(const AddNormOp& op);
StepPtr make_soft_cap(const SoftCapOp& op);
StepPtr make_top(const TopOp& op);
StepPtr make_angles(const Angles& angles);
StepPtr make_linear(const LinearOp& op, Precision precision);
StepPtr make_attention(const AttentionOp& op, const Angles* angles);
StepPtr make_coded_attention(const AttentionOp& op, const Angles* angles, std::shared_ptr<const RotationPlan> plan);
StepPtr make_delta_net(const DeltaNetOp& op);
StepPtr make_moe(const MoeOp& op, Precision precision);

}  // namespace tq::cpu
