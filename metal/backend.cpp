// The Metal backend. What it needs of a device is device.h.
#include "backend/backend.h"

#include <cstring>
#include <map>
#include <mutex>

#include "common/fork_mutex.h"
#include "format/cache.h"
#include "program.h"

namespace tq {
namespace metal {
namespace {

class MetalBackend final : public Backend {
 public:
  MetalBackend(ContextPtr context, Precision precision) : context_(std::move(context)), precision_(precision), workspace_(context_) {}

  std::string name() const override { return "metal (" + context_->device->name() + ")"; }
  MatrixPtr matrix(const HostMatrix& host) override {
    const auto lock = use();
    const bool rotated = host.packed && host.tqn.rotation != tq::Rotation::none;
    return make_matrix(context_, host, rotated ? rotation(host.tqn.n_in, host.tqn.seed) : nullptr);
  }
  BufferPtr allocate(int64_t bytes) override {
    const auto lock = use();
    return std::make_shared<MetalBuffer>(context_, bytes);
  }
  void upload(Buffer& to, int64_t offset, const void* from, int64_t bytes) override {
    const auto lock = use();
    context_->device->wait();
    if (bytes > 0) std::memcpy(memory_of(to).data() + offset, from, size_t(bytes));
  }
  void download(const Buffer& from, int64_t offset, void* to, int64_t bytes) override {
    const auto lock = use();
    context_->device->wait();
    if (bytes > 0) std::memcpy(to, memory_of(from).data() + offset, size_t(bytes));
  }
  void copy(const Buffer& from, int64_t from_offset, Buffer& to, int64_t to_offset, int64_t bytes) override {
    const auto lock = use();
    if (bytes > 0) context_->device->copy(memory_of(from).at(from_offset), memory_of(to).at(to_offset), bytes);
  }
  std::unique_ptr<Program> prepare(std::vector<Op> ops, int64_t max_rows) override {
    const auto lock = use();
    context_->device->wait();  // scratch may move
    return std::make_unique<MetalProgram>(std::move(ops), max_rows, precision_, workspace_,
                                          [&](int64_t dim) { return rotation(dim, tqn::cache::kRotationSeed); });
  }
  void run(Program& program, const Batch& batch) override {
    const auto lock = use();
    context_->device->wait();
    static_cast<MetalProgram&>(program).run(batch);
  }
  bool has_f32_cache() const override { return true; }
  bool has_coded_cache() const override { return true; }
  int64_t memory_bytes() const override { return context_->bytes; }

 private:
  std::unique_lock<ForkMutex> use() {
    if (context_->inherited())
      throw Error(Cause::closed, "device metal: this process was forked after the model was opened: open the model again here");
    return std::unique_lock(mutex_);
  }
  std::shared_ptr<const Rotation> rotation(int64_t n, uint64_t seed) {
    std::shared_ptr<const Rotation>& entry = rotations_[{n, seed}];
    if (!entry) entry = Rotation::make(context_, n, seed);
    return entry;
  }

  const ContextPtr context_;
  const Precision precision_;
  ForkMutex mutex_;
  Workspace workspace_;
  std::map<std::pair<int64_t, uint64_t>, std::shared_ptr<const Rotation>> rotations_;
};

}  // namespace
}  // namespace metal

std::unique_ptr<Backend> make_metal_backend(const BackendOptions& options) {
  try {
    return std::make_unique<metal::MetalBackend>(std::make_shared<metal::Context>(options.device), options.precision);
  } catch (const Error& e) {
    throw Error(e.cause, std::string("device metal: unsupported: ") + e.what());
  }
}

std::string metal_status() {
  try {
    const auto device = metal::open_device(0);
    return "available: " + device->name() + ", " + std::to_string(device->limits().working_bytes >> 20) + " MiB";
  } catch (const Error& e) {
    return std::string("unsupported: ") + e.what();
  }
}

}  // namespace tq
