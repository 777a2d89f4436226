// The CUDA backend and the library's entry point.
#include <map>
#include <mutex>

#include "backend/cuda_library.h"
#include "common/fork_mutex.h"
#include "device.h"
#include "encode.h"
#include "format/cache.h"
#include "program.h"

namespace tq::cuda {
namespace {

constexpr int kOldestCapability = 75;

int capability(const cudaDeviceProp& p) { return p.major * 10 + p.minor; }

// Empty when the device can be used, else why not.
std::string problem_with(int device, cudaDeviceProp& properties) {
  int count = 0, driver = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) {
    cudaDriverGetVersion(&driver);
    return std::string(cudaGetErrorString(code)) +
           (driver == 0 ? " (no driver)"
                        : " (driver for CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) + ")");
  }
  if (device < 0 || device >= count) return "no device " + std::to_string(device) + ", this machine has " + std::to_string(count);
  if (const cudaError_t code = cudaGetDeviceProperties(&properties, device); code != cudaSuccess) return cudaGetErrorString(code);
  const std::string name =
      std::string(properties.name) + " has compute capability " + std::to_string(properties.major) + "." + std::to_string(properties.minor);
  if (capability(properties) < kOldestCapability) return name + ", at least 7.5 is needed";
  if (cudaSetDevice(device) != cudaSuccess || !has_code_for_device()) return name + ", for which this library holds no code";
  return "";
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options) : device_(options.device), precision_(options.precision) {
    const std::string problem = problem_with(device_, properties_);
    (void)cudaGetLastError();
    if (!problem.empty()) throw Error(Cause::unsupported, "device cuda: unsupported: " + problem);
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  }
  ~CudaBackend() override {
    if (account_->inherited()) return;
    cudaSetDevice(device_);
    cudaStreamDestroy(stream_);
  }

  std::string name() const override {
    return "cuda (" + std::string(properties_.name) + ", sm_" + std::to_string(capability(properties_)) + ")";
  }

  MatrixPtr matrix(const HostMatrix& host) override {
    const auto lock = use();
    const bool rotated = host.packed && host.tqn.rotation != tq::Rotation::none;
    MatrixPtr matrix = upload_matrix(host, rotated ? rotation(host.tqn.n_in, host.tqn.seed) : nullptr);
    check(cudaDeviceSynchronize(), "uploading " + host.name);  // passes run in a stream of their own
    return matrix;
  }
  BufferPtr allocate(int64_t bytes) override {
    const auto lock = use();
    return std::make_shared<CudaBuffer>(bytes);
  }
  void upload(Buffer& to, int64_t offset, const void* from, int64_t bytes) override {
    const auto lock = use();
    check(cudaMemcpyAsync(data<char>(&to) + offset, from, size_t(bytes), cudaMemcpyHostToDevice, stream_), "upload");
    check(cudaStreamSynchronize(stream_), "upload");
  }
  void download(const Buffer& from, int64_t offset, void* to, int64_t bytes) override {
    const auto lock = use();
    check(cudaMemcpyAsync(to, data<char>(&from) + offset, size_t(bytes), cudaMemcpyDeviceToHost, stream_), "download");
    check(cudaStreamSynchronize(stream_), "download");
  }
  void copy(const Buffer& from, int64_t from_offset, Buffer& to, int64_t to_offset, int64_t bytes) override {
    const auto lock = use();
    check(cudaMemcpyAsync(data<char>(&to) + to_offset, data<char>(&from) + from_offset, size_t(bytes), cudaMemcpyDeviceToDevice, stream_),
          "copy");
  }
  std::unique_ptr<Program> prepare(std::vector<Op> ops, int64_t max_rows) override {
    const auto lock = use();
    return std::make_unique<CudaProgram>(
        std::move(ops), max_rows, precision_, workspace_, [&](int64_t dim) { return rotation(dim, tqn::cache::kRotationSeed); }, stream_);
  }
  void run(Program& program, const Batch& batch) override {
    const auto lock = use();
    static_cast<CudaProgram&>(program).run(batch);
  }
  bool has_f32_cache() const override { return true; }
  bool has_coded_cache() const override { return true; }
  int64_t memory_bytes() const override { return account_->bytes; }

 private:
  // Every entry works on this backend's device, one caller at a time.
  std::unique_lock<ForkMutex> use() {
    if (account_->inherited())
      throw Error(Cause::closed, "device cuda: this process was forked after the model was opened: open the model again here");
    std::unique_lock lock(mutex_);
    current_account = account_;
    check(cudaSetDevice(device_), "device " + std::to_string(device_));
    return lock;
  }

  std::shared_ptr<const Rotation> rotation(int64_t n, uint64_t seed) {
    std::shared_ptr<const Rotation>& entry = rotations_[{n, seed}];
    if (!entry) entry = Rotation::make(n, seed);
    return entry;
  }

  const int device_;
  const Precision precision_;
  cudaDeviceProp properties_{};
  ForkMutex mutex_;
  const std::shared_ptr<Account> account_ = std::make_shared<Account>();
  cudaStream_t stream_ = nullptr;
  Workspace workspace_;
  std::map<std::pair<int64_t, uint64_t>, std::shared_ptr<const Rotation>> rotations_;
};

Backend* make(const BackendOptions& options) { return new CudaBackend(options); }

std::string status(int device) {
  cudaDeviceProp properties;
  const std::string problem = problem_with(device, properties);
  (void)cudaGetLastError();
  if (!problem.empty()) return "unsupported: " + problem;
  return "available: " + std::string(properties.name) + ", sm_" + std::to_string(capability(properties)) + ", " +
         std::to_string(properties.totalGlobalMem >> 20) + " MiB";
}

void encode(int device, const float* x, int64_t tiles, int k, const int8_t* codebook, uint8_t* codes) {
  cudaDeviceProp properties;
  const std::string problem = problem_with(device, properties);
  (void)cudaGetLastError();
  if (!problem.empty()) throw Error(Cause::unsupported, "device cuda: unsupported: " + problem);
  encode_host_tiles(x, tiles, k, codebook, codes);
}

}  // namespace
}  // namespace tq::cuda

extern "C" __attribute__((visibility("default"))) const tq::CudaLibrary* tq::tq_cuda_library() {
  static const CudaLibrary library{kCudaLibraryVersion, tq::cuda::make, tq::cuda::status, tq::cuda::encode};
  return &library;
}
