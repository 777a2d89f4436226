// What the tests of GPU backends share: random packed matrices and the two backends. Without a device the process says so and exits with 77
// (skipped).
#pragma once
#include <cstdlib>
#include <random>

#include "backend/backend.h"
#include "check.h"
#include "format/reference.h"

namespace device_check {

using namespace tq;

// TQ_TEST_DEVICE, from CMake: cuda or metal.
#define TQ_NAME_OF(device) TQ_NAME(device)
#define TQ_NAME(device) #device
#define TQ_FUNCTION_OF(prefix, device, suffix) TQ_JOIN(prefix, device, suffix)
#define TQ_JOIN(prefix, device, suffix) prefix##device##suffix
inline const std::string kDevice = TQ_NAME_OF(TQ_TEST_DEVICE);
inline std::unique_ptr<Backend> device_backend(Precision precision) {
  static const std::string status = TQ_FUNCTION_OF(, TQ_TEST_DEVICE, _status)();
  if (status.starts_with("available: ")) return TQ_FUNCTION_OF(make_, TQ_TEST_DEVICE, _backend)({.precision = precision});
  std::printf("skipped: no device (%s)\n", status.c_str());
  std::exit(77);
}

// Fewer and smaller cases, for checkers and emulators that slow a kernel down a hundredfold.
inline bool small_cases() { return std::getenv("TQ_TEST_SMALL") != nullptr; }

struct Random {
  std::mt19937_64 engine;
  explicit Random(uint64_t seed) : engine(seed) {}
  int below(int n) { return int(engine() % uint64_t(n)); }
  float normal() { return std::normal_distribution<float>()(engine); }
  std::vector<float> normals(int64_t n) {
    std::vector<float> x(static_cast<size_t>(n));
    for (float& v : x) v = normal();
    return x;
  }
};

// A matrix with its planes. Every bit pattern is a valid code.
struct Packed {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> row_scale, col, val;
  std::vector<int8_t> codebook;
  std::vector<int32_t> ptr;
  HostMatrix host;

  Packed(Random& random, int64_t n_out, int64_t n_in, int k, Rotation rotation, int outliers_a_row, bool unit_scales = false) {
    tqn::PlaneBytes bytes;
    tqn::plane_bytes(uint64_t(n_out), uint64_t(n_in), k, &bytes);
    codes.resize(bytes.codes);
    for (uint8_t& c : codes) c = uint8_t(random.engine());
    row_scale.assign(bytes.row_scale / 2, 0);
    for (int64_t r = 0; r < n_out; r++)
      row_scale[size_t(r)] = f32_to_f16(unit_scales ? 1.f : 0.25f + 0.75f * float(random.below(1000)) / 1000);
    const auto book = reference::default_codebook(k);
    codebook.assign(book.begin(), book.end());
    TqnMatrix& w = host.tqn;
    w.n_out = n_out, w.n_in = n_in, w.k = k, w.codes = codes.data(), w.row_scale = row_scale.data();
    w.codebook = codebook.empty() ? nullptr : codebook.data();
    w.scale = unit_scales ? 1.f : 0.01f, w.rotation = rotation, w.seed = 77 + uint64_t(n_in);
    host.name = "test", host.packed = true;
    if (outliers_a_row) add_outliers(random, outliers_a_row);
  }
  Packed(const Packed&) = delete;

 private:
  void add_outliers(Random& random, int a_row) {
    const int64_t n_in = host.tqn.n_in;
    ptr.push_back(0);
    for (int64_t r = 0; r < host.tqn.n_out; r++) {
      int64_t c = random.below(int(n_in / a_row));
      for (int i = 0; i < a_row && c < n_in; i++, c += 1 + random.below(int(n_in / a_row)))
        col.push_back(uint16_t(c)), val.push_back(f32_to_f16(random.normal()));
      ptr.push_back(int32_t(col.size()));
    }
    host.tqn.outliers = {int64_t(col.size()), ptr.data(), col.data(), nullptr, val.data()};
  }
};

struct Dense {
  std::vector<float> f32;
  std::vector<uint16_t> f16;
  HostMatrix host;
  Dense(Random& random, int64_t n_out, int64_t n_in, kernels::DType type) : f32(random.normals(n_out * n_in)) {
    for (float& v : f32) {
      const uint16_t bits = type == kernels::DType::bf16 ? f32_to_bf16(v) : f32_to_f16(v);
      if (type != kernels::DType::f32) f16.push_back(bits), v = type == kernels::DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
    }
    host.name = "dense";
    host.dense = {type, n_out, n_in, type == kernels::DType::f32 ? static_cast<const void*>(f32.data()) : f16.data()};
  }
  Dense(const Dense&) = delete;
};

// A plane with its buffer.
struct TestPlane {
  BufferPtr buffer;
  Plane plane;
  TestPlane(Backend& b, int64_t rows, int64_t width) : buffer(b.allocate(rows * width * 4)), plane{buffer.get(), width} {}
  TestPlane(Backend& b, const std::vector<float>& values, int64_t width) : TestPlane(b, int64_t(values.size()) / width, width) {
    b.upload(*buffer, 0, values.data(), int64_t(values.size()) * 4);
  }
};

inline std::vector<float> read(Backend& b, const Buffer& buffer) {
  std::vector<float> values(size_t(buffer.bytes / 4));
  b.download(buffer, 0, values.data(), buffer.bytes);
  return values;
}

struct Rows {
  std::vector<int32_t> tokens, positions, slots, outputs;
  explicit Rows(int n) : tokens(size_t(n), 0), positions(size_t(n), 0), slots(size_t(n), 0) {
    for (int i = 0; i < n; i++) positions[size_t(i)] = i;
  }
  Batch batch() const { return {tokens, positions, slots, outputs}; }
};

}  // namespace device_check
