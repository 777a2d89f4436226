// Operations that treat each row, or each part of a row, by itself.
#include <cmath>

#include "backend/cpu/step.h"

namespace tq::cpu {
namespace {

class EmbedStep final : public Step {
 public:
  explicit EmbedStep(const EmbedOp& op) : op_(op) {}
  ScratchBytes scratch(const Kernels&, const Limits&) const override { return {}; }
  void run(Worker& w) override {
    const CpuMatrix& m = cpu(op_.matrix);
    const Range mine = w.share(w.rows());
    for (int64_t r = mine.first; r < mine.last; r++) {
      float* y = row(op_.y, r);
      if (m.host.packed)
        w.k.tqn_row(m.host.tqn, m.plan.get(), w.batch.tokens[r], y);
      else
        w.k.dense_row(part_of_row(m.host.dense, w.batch.tokens[r]), 0, y);
      if (op_.scale != 1) {
        for (int64_t i = 0; i < op_.y.width; i++) y[i] *= op_.scale;
      }
    }
  }

 private:
  // A matrix of one row: the columns of row `token` that y takes.
  kernels::DenseMatrix part_of_row(const kernels::DenseMatrix& m, int64_t token) const {
    const int64_t size = m.type == kernels::DType::f32 ? 4 : 2;
    return {m.type, 1, op_.y.width, static_cast<const uint8_t*>(m.data) + (token * m.n_in + op_.column) * size};
  }

  EmbedOp op_;
};

class NormStep final : public Step {
 public:
  explicit NormStep(const NormOp& op) : op_(op) {}
  ScratchBytes scratch(const Kernels&, const Limits&) const override { return {}; }
  void run(Worker& w) override {
    const int64_t width = op_.x.width / op_.groups;
    const Range mine = w.share(w.rows() * op_.groups);
    for (int64_t i = mine.first; i < mine.last; i++)
      w.k.rms_norm(data(op_.x.buffer) + i * width, data(op_.weight), width, op_.eps, data(op_.y.buffer) + i * width);
  }

 private:
  NormOp op_;
};

class AddNormStep final : public Step {
 public:
  explicit AddNormStep(const AddNormOp& op) : op_(op) {}
  ScratchBytes scratch(const Kernels&, const Limits&) const override { return {0, op_.x.width * int64_t(sizeof(float))}; }
  void run(Worker& w) override {
    float* normed = reinterpret_cast<float*>(w.scratch);
    const Range mine = w.share(w.rows());
    for (int64_t r = mine.first; r < mine.last; r++) {
      w.k.rms_norm(row(op_.x, r), data(op_.weight), op_.x.width, op_.eps, normed);
      float* y = row(op_.y, r);
      w.k.add_scaled(y, normed, op_.alpha, op_.x.width);
      for (int64_t i = 0; op_.scale != 1 && i < op_.x.width; i++) y[i] *= op_.scale;
    }
  }

 private:
  AddNormOp op_;
};

class SoftCapStep final : public Step {
 public:
  explicit SoftCapStep(const SoftCapOp& op) : op_(op) {}
  ScratchBytes scratch(const Kernels&, const Limits&) const override { return {}; }
  void run(Worker& w) override {
    const Range mine = w.share(int64_t(w.batch.output_rows.size()) * op_.x.width);
    w.k.soft_cap(data(op_.x.buffer) + mine.first, op_.cap, mine.last - mine.first);
  }

 private:
  SoftCapOp op_;
};

class TopStep final : public Step {
 public:
  explicit TopStep(const TopOp& op) : op_(op) {}
  ScratchBytes scratch(const Kernels&, const Limits&) const override { return {}; }
  void run(Worker& w) override {
    const Range mine = w.share(int64_t(w.batch.output_rows.size()));
    for (int64_t r = mine.first; r < mine.last; r++) {
      Candidate* best = data<Candidate>(op_.best) + r * op_.k;
      const int64_t count = take_best(row(op_.x, r), op_.x.width, op_.k, best);
      std::fill(best + count, best + op_.k, kNoCandidate);
    }
  }

 private:
  TopOp op_;
};

class AnglesStep final : public Step {
 public:
  explicit AnglesStep(const Angles& angles) : angles_(angles) {}
  ScratchBytes scratch(const Kernels&, const Limits&) const override { return {}; }
  void run(Worker& w) override {
    const int64_t half = angles_.table.dims / 2;
    const float* inv_freq = data(angles_.table.inv_freq);
    float *cos = data(angles_.cos.get()), *sin = data(angles_.sin.get());
    const Range mine = w.share(w.rows() * half);
    for (int64_t i = mine.first; i < mine.last; i++) {
      const double angle = double(w.batch.positions[i / half]) * inv_freq[i % half];
      cos[i] = float(std::cos(angle) * angles_.table.magnitude);
      sin[i] = float(std::sin(angle) * angles_.table.magnitude);
    }
  }

 private:
  Angles angles_;
};

}  // namespace

StepPtr make_embed(const EmbedOp& op) { return std::make_unique<EmbedStep>(op); }
StepPtr make_norm(const NormOp& op) { return std::make_unique<NormStep>(op); }
StepPtr make_add_norm(const AddNormOp& op) { return std::make_unique<AddNormStep>(op); }
StepPtr make_soft_cap(const SoftCapOp& op) { return std::make_unique<SoftCapStep>(op); }
StepPtr make_top(const TopOp& op) { return std::make_unique<TopStep>(op); }
StepPtr make_angles(const Angles& angles) { return std::make_unique<AnglesStep>(angles); }

}  // namespace tq::cpu
