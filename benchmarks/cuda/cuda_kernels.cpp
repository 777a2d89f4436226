// GEMV, GEMM and the encoder, beside a copy and beside cuBLAS (FP16; loaded when the machine has it, for comparison only); and the GEMV's
// loop without loads.
//   cuda_kernels [gemv] [loop] [gemm] [encode]
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <memory>

#include "decode_loop.h"
#include "device.h"
#include "encode.h"
#include "launch.h"
#include "linear.h"
#include "measure.h"

using namespace bench;
using namespace tq::cuda;

namespace {

constexpr int64_t kColdBytes = int64_t(300) << 20;  // inputs rotate through this much memory, several times the L2
constexpr int kChain = 20;  // launches that are timed together, at least: what begins and ends a chain is not a product's own time

// cublasGemmEx for half operands and float sums, column-major: out (n_out, rows) = W^T (n_in, n_out) x (n_in, rows).
class Cublas {
 public:
  Cublas() {
    void* library = nullptr;
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"})
      if (!library) library = dlopen(name, RTLD_NOW);
    if (!library) return;
    const auto create = reinterpret_cast<int (*)(void**)>(dlsym(library, "cublasCreate_v2"));
    gemm_ = reinterpret_cast<Gemm>(dlsym(library, "cublasGemmEx"));
    if (create(&handle_) != 0) gemm_ = nullptr;
  }
  explicit operator bool() const { return gemm_ != nullptr; }
  double time(int n_out, int n_in, int rows) const {
    const int64_t weight_bytes = int64_t(n_out) * n_in * 2;
    const int copies = int(std::max<int64_t>(1, kColdBytes / weight_bytes));
    DeviceMemory w(weight_bytes * copies), x(int64_t(rows) * n_in * 2), y(int64_t(rows) * n_out * 2);
    fill(w), fill(x);
    const float one = 1, zero = 0;
    return seconds(nullptr, std::max(copies, kChain), [&](int i) {
      const void* weights = w.as<char>() + weight_bytes * (i % copies);
      gemm_(handle_, 1, 0, n_out, rows, n_in, &one, weights, 2, n_in, x.as<void>(), 2, n_in, &zero, y.as<void>(), 2, n_out, 68, -1);
    });
  }

 private:
  using Gemm = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*, void*, int,
                       int, int, int);
  // Halves of random sign and mantissa, magnitude in [1/4, 1).
  static void fill(const DeviceMemory& memory) {
    std::vector<uint16_t> block(size_t(std::min<int64_t>(memory.bytes(), 1 << 24) / 2));
    std::mt19937 random{3};
    for (uint16_t& h : block) h = uint16_t((random() & 0x87FF) | 0x3400);
    for (int64_t at = 0; at < memory.bytes(); at += int64_t(block.size()) * 2)
      check(cudaMemcpy(memory.as<char>() + at, block.data(), size_t(std::min<int64_t>(memory.bytes() - at, int64_t(block.size()) * 2)),
                       cudaMemcpyHostToDevice),
            "fill");
  }
  void* handle_ = nullptr;
  Gemm gemm_ = nullptr;
};

// One product through the layer's own choice of kernels, its input already prepared or not.
class Product {
 public:
  Product(int n_out, int n_in, int k, int rows)
      : rows_(rows), runner_(workspace_, Precision::int8, nullptr), x_(int64_t(rows) * n_in * 4), y_(int64_t(rows) * n_out * 4) {
    const RandomMatrix random(n_out, n_in, k);
    const int64_t copies = std::max<int64_t>(1, kColdBytes / int64_t(random.codes.size()));
    for (int64_t i = 0; i < copies; i++) matrices_.push_back(upload_matrix(random.host, nullptr));
    std::vector<float> x(size_t(rows) * n_in);
    std::mt19937 engine{5};
    std::normal_distribution<float> normal;
    for (float& v : x) v = normal(engine);
    check(cudaMemcpy(x_.as<void>(), x.data(), x.size() * 4, cudaMemcpyHostToDevice), "input");
    runner_.reserve({matrices_[0].get()}, rows);
  }
  double time_layer() {
    return seconds(nullptr, calls(), [&](int i) {
      SourceView source;
      source.x = x_.as<float>();
      const CudaMatrix& m = *matrices_[size_t(i) % matrices_.size()];
      runner_.run(source, rows_, {{&m, {y_.as<float>(), m.n_out, nullptr, 1, false}}});
    });
  }
  double time_gemv() {
    return seconds(nullptr, calls(), [&](int i) {
      const CudaMatrix& m = *matrices_[size_t(i) % matrices_.size()];
      PackedProduct product;
      product.count = 1, product.matrix[0] = m.tqn, product.out[0] = {y_.as<float>(), m.n_out, nullptr, 1, false};
      product.in.rows = rows_, product.in.n_in = int(m.n_in), product.in.quantized = workspace_.quantized.as<int8_t>(),
      product.in.scale = workspace_.scale.as<float>();
      gemv(product, workspace_.split(), nullptr);
    });
  }

 private:
  int calls() const { return std::max(kChain, int(matrices_.size())); }
  int rows_;
  Workspace workspace_;
  LinearRunner runner_;
  DeviceMemory x_, y_;
  std::vector<std::shared_ptr<CudaMatrix>> matrices_;
};

struct Shape {
  int n_out, n_in;
};
constexpr Shape kShapes[] = {{4096, 4096}, {4096, 14336}, {14336, 4096}, {8192, 28672}, {28672, 8192}};

void gemv_table(const Cublas& cublas) {
  const double copy = copy_bandwidth();
  std::printf("\nGEMV, 1 token. copy: %.0f GB/s\n%-14s %2s %9s %8s %7s %8s %10s\n", copy / 1e9, "shape", "k", "us", "GB/s", "% copy",
              "Tw/s", "x cuBLAS");
  for (const Shape s : kShapes) {
    const double half = cublas ? cublas.time(s.n_out, s.n_in, 1) : 0;
    for (const int k : {1, 2, 3, 4, 6}) {
      Product p(s.n_out, s.n_in, k, 1);
      p.time_layer();  // fills the prepared input
      const double t = p.time_gemv(), weights = double(s.n_out) * s.n_in, rate = weights * k / 8 / t;
      std::printf("%5dx%-8d %2d %9.2f %8.0f %7.1f %8.2f %10.2f\n", s.n_out, s.n_in, k, t * 1e6, rate / 1e9, 100 * rate / copy,
                  weights / t / 1e12, half / t);
    }
  }
}

void loop_table() {
  const double copy = copy_bandwidth();
  std::printf("\nGEMV's loop without loads, %d processors. copy: %.0f GB/s\n%-14s %2s %9s %7s\n", device_limits().processors, copy / 1e9,
              "shape", "k", "us", "% copy");
  for (const Shape s : {kShapes[0], kShapes[4]})
    for (const int k : {2, 3, 4}) {
      const double weights = double(s.n_out) * s.n_in;
      const double t = decode_step_seconds(k) * weights / double(decode_step_weights()) / device_limits().processors;
      std::printf("%5dx%-8d %2d %9.2f %7.1f\n", s.n_out, s.n_in, k, t * 1e6, 100 * weights * k / 8 / t / copy);
    }
}

void gemm_table(const Cublas& cublas) {
  std::printf("\nLayer (quantize + product).\n%-14s %2s %6s %9s %9s %9s %8s\n", "shape", "k", "tokens", "us", "TFLOP/s", "cuBLAS us",
              "% cuBLAS");
  for (const Shape s : {kShapes[2], kShapes[4]})
    for (const int rows : {8, 16, 32, 64, 512, 4096}) {
      const double half = cublas ? cublas.time(s.n_out, s.n_in, rows) : 0;
      for (const int k : {2, 4}) {
        Product p(s.n_out, s.n_in, k, rows);
        const double t = p.time_layer();
        std::printf("%5dx%-8d %2d %6d %9.1f %9.1f %9.1f %8.1f\n", s.n_out, s.n_in, k, rows, t * 1e6, 2e-12 * s.n_out * s.n_in * rows / t,
                    half * 1e6, 100 * half / t);
      }
    }
}

void encode_table() {
  constexpr int64_t kTiles = 1 << 15;
  std::vector<float> x(size_t(kTiles) * tqn::kTileSteps);
  std::mt19937 engine{11};
  std::normal_distribution<float> normal(0, 5);
  for (float& v : x) v = normal(engine);
  const DeviceMemory targets(int64_t(x.size()) * 4), codes(kTiles * 128), book(64);
  check(cudaMemcpy(targets.as<void>(), x.data(), x.size() * 4, cudaMemcpyHostToDevice), "targets");
  std::vector<uint8_t> host(size_t(kTiles) * 128);
  std::printf("\nEncoder, %lld weights.\n%2s %14s %24s\n", (long long)x.size(), "k", "M weights/s", "with copies from the host");
  for (const int k : {1, 2, 3, 4}) {
    const RandomMatrix random(64, 4, k);
    check(cudaMemcpy(book.as<void>(), random.codebook.data(), random.codebook.size(), cudaMemcpyHostToDevice), "codebook");
    const double t =
        seconds(nullptr, 1, [&](int) { encode_tiles(targets.as<float>(), kTiles, k, book.as<int8_t>(), codes.as<uint8_t>(), nullptr); }, 3);
    const double all = seconds(nullptr, 1, [&](int) { encode_host_tiles(x.data(), kTiles, k, random.codebook.data(), host.data()); }, 3);
    std::printf("%2d %14.0f %24.0f\n", k, double(x.size()) / t * 1e-6, double(x.size()) / all * 1e-6);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const auto wanted = [&](const char* name) {
    return argc < 2 || std::any_of(argv + 1, argv + argc, [&](const char* a) { return !std::strcmp(a, name); });
  };
  try {
    const Cublas cublas;
    if (!cublas) std::printf("no cuBLAS on this machine: no comparison\n");
    if (wanted("gemv")) gemv_table(cublas);
    if (wanted("loop")) loop_table();
    if (wanted("gemm")) gemm_table(cublas);
    if (wanted("encode")) encode_table();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
