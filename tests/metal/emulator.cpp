// Metal's device as the shim carries it out: launches are complete when they return. Built as a library that the core loads for tests.
#include "../../metal/emulator.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../metal/refusals.h"
#include "shim.h"

namespace tq::metal {
namespace {

constexpr int64_t kPageBytes = 16384;
constexpr int64_t kMostBytes = int64_t(1) << 34;  // of a buffer, so that running out of memory can be tried
constexpr int kThreads = 1;                       // a thread of its own for each launch would have to make its fibers anew

class EmulatedMemory final : public Memory {
 public:
  EmulatedMemory(void* data, int64_t bytes, bool own) : data_(data), bytes_(bytes), own_(own) {}
  ~EmulatedMemory() override {
    if (own_) std::free(data_);
  }
  void* data() const override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  void* data_;
  int64_t bytes_;
  bool own_;
};
class EmulatedPipeline final : public Pipeline {
 public:
  explicit EmulatedPipeline(const shim::Kernel& k) : kernel(k) {}
  const shim::Kernel& kernel;
};

// What goes wrong, so that tests can see what becomes of it: TQ_METAL_EMULATOR_FAULT is old-system, old-gpu, library, pipeline=KERNEL or
// memory=BYTES (of one buffer).
std::string fault() {
  const char* wanted = std::getenv("TQ_METAL_EMULATOR_FAULT");
  return wanted ? wanted : "";
}
constexpr const char *kName = "emulator on the CPU", *kAskedFor = "asked for by TQ_METAL_EMULATOR_FAULT";

char* address(const Bound& b) { return static_cast<char*>(b.memory->data()) + b.offset; }

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice() {
    if (fault_ == "old-system") throw old_system();
    if (fault_ == "old-gpu") throw old_gpu(kName);
    if (fault_ == "library") throw no_library(kName, kAskedFor);
    if (fault_.starts_with("memory=")) most_bytes_ = std::atoll(fault_.c_str() + 7);
    const char* order = std::getenv("TQ_METAL_EMULATOR_ORDER");
    if (order && std::string(order) == "descending") order_ = shim::Order::descending;
    for (int i = 0; i < shim::kernel_count(); i++) pipelines_.emplace_back(shim::kernel_at(i));
  }
  std::string name() const override { return kName; }
  Limits limits() const override { return {most_bytes_, most_bytes_, kPageBytes, 1}; }
  std::unique_ptr<Memory> allocate(int64_t bytes) override {
    void* data = bytes <= most_bytes_ ? std::calloc(1, size_t(bytes)) : nullptr;
    if (!data) throw no_memory(bytes, kName);
    return std::make_unique<EmulatedMemory>(data, bytes, true);
  }
  std::unique_ptr<Memory> view(const void* data, int64_t bytes) override {
    if (reinterpret_cast<uintptr_t>(data) % kPageBytes != 0 || bytes % kPageBytes != 0) shim::fail("a view that is not of whole pages");
    return std::make_unique<EmulatedMemory>(const_cast<void*>(data), bytes, false);
  }
  const Pipeline& pipeline(const std::string& kernel) override {
    if (fault_ == "pipeline=" + kernel) throw no_pipeline(kernel, kName, kAskedFor);
    for (const EmulatedPipeline& p : pipelines_)
      if (kernel == p.kernel.name) return p;
    shim::fail("no kernel %s", kernel.c_str());
  }
  void launch(const Pipeline& pipeline, std::span<const std::byte> arguments, std::span<const Bound> buffers, Size3 groups,
              uint32_t threads) override {
    const shim::Kernel& kernel = static_cast<const EmulatedPipeline&>(pipeline).kernel;
    if (int(buffers.size()) + 1 != kernel.n_buffers)
      shim::fail("%s takes %d buffers, not %zu", kernel.name, kernel.n_buffers, buffers.size() + 1);
    if (arguments.size() > 4096) shim::fail("%s: %zu bytes of arguments", kernel.name, arguments.size());
    std::vector<shim::Binding> bound = {{const_cast<std::byte*>(arguments.data()), arguments.size()}};
    for (const Bound& b : buffers) {
      if (b.offset < 0 || b.offset >= b.memory->bytes()) shim::fail("%s: a buffer from byte %lld on", kernel.name, (long long)b.offset);
      bound.push_back({address(b), size_t(b.memory->bytes() - b.offset)});
    }
    const shim::Options options{order_, kThreads};
    shim::dispatch(kernel, bound.data(), int(bound.size()), {groups.x, groups.y, groups.z}, threads, options);
  }
  void copy(Bound from, Bound to, int64_t bytes) override { std::memcpy(address(to), address(from), size_t(bytes)); }
  void wait() override {}

 private:
  const std::string fault_ = fault();
  int64_t most_bytes_ = kMostBytes;
  shim::Order order_ = shim::Order::ascending;
  std::vector<EmulatedPipeline> pipelines_;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) Device* tq_metal_emulator() { return new EmulatedDevice; }

}  // namespace tq::metal
