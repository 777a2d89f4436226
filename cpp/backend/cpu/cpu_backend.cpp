// The CPU backend: programs are lists of steps that a pool of threads runs in one parallel region.
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "backend/cpu/step.h"
#include "backend/cpu/thread_choice.h"
#include "common/cpu_count.h"
#include "common/error.h"
#include "common/fork_mutex.h"
#include "common/system.h"
#include "format/cache.h"

namespace tq::cpu {

CpuBuffer::CpuBuffer(int64_t size) {
  if (size < 0 || size > (int64_t(1) << 46)) throw Error(Cause::invalid_argument, "buffer of " + std::to_string(size) + " bytes");
  bytes = size;
  if (size == 0) return;
  block_ = std::calloc(size_t(size) + 64, 1);  // large blocks come from the system already zero and cost memory only once touched
  if (!block_) throw Error(Cause::out_of_memory, "cannot allocate " + std::to_string(size) + " bytes");
  data = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(block_) + 63) / 64 * 64);
}

CpuBuffer::~CpuBuffer() { std::free(block_); }

namespace {

struct CpuProgram final : Program {
  std::vector<Op> ops;
  std::vector<std::unique_ptr<Angles>> angles;
  std::vector<StepPtr> steps;
  std::vector<const char*> kinds;  // of the steps, for the profile
  int64_t max_rows = 0;
  int sized_for = 0;  // parts of the work that the backend's scratch was last made large enough for
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options)
      : k_(kernels::kernels()), precision_(options.precision), most_workers_(options.crowd_cores ? INT32_MAX : cpu_count()) {
    set_threads(options.threads, options.threads);
  }

  std::string name() const override {
    const int threads = workers(prompt_threads_);
    return "cpu (" + std::string(k_.isa) + ", " + std::to_string(threads) + (threads == 1 ? " thread)" : " threads)");
  }

  MatrixPtr matrix(const HostMatrix& host) override {
    auto matrix = std::make_shared<CpuMatrix>();
    matrix->name = host.name, matrix->n_out = host.n_out(), matrix->n_in = host.n_in();
    matrix->host = host;
    if (host.packed && host.tqn.rotation != Rotation::none) matrix->plan = plan(host.tqn.n_in, host.tqn.seed);
    return matrix;
  }

  BufferPtr allocate(int64_t bytes) override {
    auto buffer = std::make_shared<CpuBuffer>(bytes);
    std::lock_guard lock(mutex_);
    std::erase_if(buffers_, [](const auto& b) { return b.expired(); });
    buffers_.push_back(buffer);
    return buffer;
  }

  void upload(Buffer& to, int64_t offset, const void* from, int64_t bytes) override {
    std::memcpy(data<uint8_t>(&to) + offset, from, size_t(bytes));
  }
  void download(const Buffer& from, int64_t offset, void* to, int64_t bytes) override {
    std::memcpy(to, data<uint8_t>(&from) + offset, size_t(bytes));
  }
  void copy(const Buffer& from, int64_t from_offset, Buffer& to, int64_t to_offset, int64_t bytes) override {
    std::memcpy(data<uint8_t>(&to) + to_offset, data<uint8_t>(&from) + from_offset, size_t(bytes));
  }

  void discard(Buffer& buffer, int64_t offset, int64_t bytes) override {
    system::discard({data<uint8_t>(&buffer) + offset, size_t(bytes)});
  }

  std::unique_ptr<Program> prepare(std::vector<Op> ops, int64_t max_rows) override {
    auto program = std::make_unique<CpuProgram>();
    program->ops = std::move(ops), program->max_rows = max_rows;
    for (const Op& op : program->ops)
      if (op.kind == Op::attention && op.attention_op.rope.inv_freq) add_angles(*program, op.attention_op.rope);
    for (const auto& angles : program->angles) program->steps.push_back(make_angles(*angles)), program->kinds.push_back("attention");
    for (const Op& op : program->ops) program->steps.push_back(make_step(*program, op)), program->kinds.push_back(kind_of(op));
    std::lock_guard lock(mutex_);
    size_scratch(*program);
    return program;
  }

  void run(Program& prepared, const Batch& batch) override {
    auto& program = static_cast<CpuProgram&>(prepared);
    std::lock_guard lock(mutex_);
    size_scratch(program);
    for (const StepPtr& step : program.steps) step->reset();
    if (batch.tokens.size() > kDecodeRows) return run_on(workers(prompt_threads_), prompt_threads_, program, batch);
    pool_->take_slept();
    const Clock::time_point start = Clock::now();
    run_on(choice_.threads(), decode_threads_, program, batch);
    choice_.passed(std::chrono::duration<double>(Clock::now() - start).count(), pool_->take_slept());
  }

  void set_threads(int decode, int prompt) override {
    for (const int threads : {decode, prompt})
      if (threads < 0 || threads > ThreadPool::kMaxThreads)
        throw Error(Cause::invalid_argument,
                    "threads: " + std::to_string(threads) + " is not between 0 and " + std::to_string(ThreadPool::kMaxThreads));
    std::lock_guard lock(mutex_);
    decode_threads_ = decode > 0 ? decode : cpu_count();
    prompt_threads_ = prompt > 0 ? prompt : cpu_count();
    choice_ = ThreadChoice(workers(decode_threads_));
    const int most = workers(std::max(decode_threads_, prompt_threads_));
    if (!pool_ || pool_->size() != most) pool_ = std::make_unique<ThreadPool>(most);
  }

  bool has_f32_cache() const override { return true; }
  bool has_coded_cache() const override { return true; }

  std::vector<std::pair<std::string, double>> profile(bool on) override {
    std::lock_guard lock(mutex_);
    profiling_ = on;
    return profile_.take();
  }

  int64_t memory_bytes() const override {
    std::lock_guard lock(mutex_);
    int64_t total = shared_ ? shared_->bytes : 0;
    for (const auto& scratch : scratch_) total += scratch->bytes;
    for (const auto& weak : buffers_)
      if (const auto buffer = weak.lock()) total += buffer->bytes;
    return total;
  }

 private:
  int workers(int threads) const { return std::min(threads, most_workers_); }

  static constexpr size_t kDecodeRows = 4;  // batches up to this size count as decoding when threads are chosen

  std::shared_ptr<const RotationPlan> plan(int64_t n, uint64_t seed) {
    std::lock_guard lock(mutex_);
    std::shared_ptr<const RotationPlan>& entry = plans_[{n, seed}];
    if (!entry) entry = std::make_shared<const RotationPlan>(RotationPlan::make(n, seed));
    return entry;
  }

  static const Angles* find_angles(const CpuProgram& program, const RopeTable& table) {
    for (const auto& a : program.angles)
      if (a->table.inv_freq == table.inv_freq && a->table.dims == table.dims && a->table.magnitude == table.magnitude) return a.get();
    return nullptr;
  }

  void add_angles(CpuProgram& program, const RopeTable& table) {
    if (find_angles(program, table)) return;
    const int64_t bytes = program.max_rows * (table.dims / 2) * int64_t(sizeof(float));
    program.angles.push_back(std::make_unique<Angles>(Angles{table, allocate(bytes), allocate(bytes)}));
  }

  static const char* kind_of(const Op& op) {
    switch (op.kind) {
      case Op::embed:
        return "embedding";
      case Op::linear:
        return op.linear_op.logits ? "output" : "linear";
      case Op::norm:
      case Op::add_norm:
        return "norms";
      case Op::attention:
        return "attention";
      case Op::soft_cap:
        return "output";
      case Op::top:
        return "sampler";
      case Op::moe:
        return "experts";
      case Op::delta_net:
        return "recurrence";
    }
    return "other";
  }

  StepPtr make_attention_step(const AttentionOp& op, const Angles* angles) {
    if (op.k_bits == 0) return make_attention(op, angles);
    return make_coded_attention(op, angles, plan(op.shape.head_dim, tqn::cache::kRotationSeed));
  }

  StepPtr make_step(const CpuProgram& program, const Op& op) {
    switch (op.kind) {
      case Op::embed:
        return make_embed(op.embed_op);
      case Op::linear:
        return make_linear(op.linear_op, precision_);
      case Op::norm:
        return make_norm(op.norm_op);
      case Op::add_norm:
        return make_add_norm(op.add_norm_op);
      case Op::attention:
        return make_attention_step(op.attention_op, find_angles(program, op.attention_op.rope));
      case Op::soft_cap:
        return make_soft_cap(op.soft_cap_op);
      case Op::top:
        return make_top(op.top_op);
      case Op::moe:
        return make_moe(op.moe_op, precision_);
      case Op::delta_net:
        return make_delta_net(op.delta_net_op);
    }
    throw Error(Cause::unsupported, "device cpu: operation " + std::to_string(int(op.kind)));
  }

  // Scratch belongs to the backend: passes run one at a time, so all programs share it.
  void size_scratch(CpuProgram& program) {
    const int parts = std::max(decode_threads_, prompt_threads_);
    if (program.sized_for == parts) return;
    ScratchBytes need;
    for (const StepPtr& step : program.steps) {
      const ScratchBytes wants = step->scratch(k_, {program.max_rows, parts, precision_});
      need.shared = std::max(need.shared, wants.shared), need.per_thread = std::max(need.per_thread, wants.per_thread);
    }
    if (!shared_ || shared_->bytes < need.shared) shared_ = std::make_unique<CpuBuffer>(need.shared);
    scratch_.resize(size_t(pool_->size()));
    const int64_t largest = std::max(need.per_thread, scratch_bytes_);
    for (auto& scratch : scratch_)
      if (!scratch || scratch->bytes < largest) scratch = std::make_unique<CpuBuffer>(largest);
    scratch_bytes_ = largest;
    program.sized_for = parts;
  }

  void run_on(int threads, int parts, CpuProgram& program, const Batch& batch) {
    pool_->run(threads, [&](int thread) { run_steps(program, batch, {thread, threads, parts}); });
  }

  struct Part {
    int thread, threads, parts;
  };
  void run_steps(CpuProgram& program, const Batch& batch, const Part& part) {
    const auto [thread, threads, parts] = part;
    Worker worker{k_, *pool_, batch, thread, threads, parts, shared_->data, scratch_[size_t(thread)]->data};
    if (profiling_ && thread == 0) worker.profile = &profile_;
    for (size_t i = 0; i < program.steps.size(); i++) {
      const Timed timed(worker.profile, program.kinds[i]);
      program.steps[i]->run(worker);
      worker.barrier();
    }
  }

  const Kernels& k_;
  const Precision precision_;
  const int most_workers_;  // that run at once, as many as there are cores: more would only wait for each other
  mutable ForkMutex mutex_;
  int decode_threads_ = 1, prompt_threads_ = 1;
  ThreadChoice choice_;  // for decoding
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<CpuBuffer> shared_;
  std::vector<std::unique_ptr<CpuBuffer>> scratch_;  // one a thread
  int64_t scratch_bytes_ = 0;
  std::map<std::pair<int64_t, uint64_t>, std::shared_ptr<const RotationPlan>> plans_;
  std::vector<std::weak_ptr<Buffer>> buffers_;
  bool profiling_ = false;
  Profile profile_;  // of the first thread
};

}  // namespace
}  // namespace tq::cpu

namespace tq {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) { return std::make_unique<cpu::CpuBackend>(options); }

}  // namespace tq
