// A bounded, memory-mapped GGUF v3 reader. Files are hostile until validated: every size is checked arithmetic, nothing is allocated by an
// unchecked count, every failure is an Error(bad_file) that names the file, the field or tensor, and the value.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "format/matrix.h"

namespace tq::gguf {

enum class ValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

struct Value;
struct Array {  // elements stay in the file; strings are indexed on demand
  ValueType element;
  uint64_t count = 0;
  std::span<const uint8_t> bytes;  // the elements as stored, bounds already checked
};
struct Value {
  ValueType type;
  std::variant<uint64_t, int64_t, double, bool, std::string_view, Array> data;
};

struct Tensor {
  std::string_view name;
  uint32_t type = 0;           // ggml type number (0 F32, 1 F16, 24 I8, 25 I16, 26 I32, 30 BF16, ...)
  std::vector<uint64_t> shape;  // as in the file: fastest dimension first
  std::span<const uint8_t> data;
  uint64_t elements() const;
};

class File {
 public:
  static std::shared_ptr<const File> open(const std::string& path);
  const std::string& path() const;
  uint64_t size() const;
  std::span<const Tensor> tensors() const;
  const Tensor* find(std::string_view name) const;
  std::span<const std::pair<std::string_view, Value>> metadata() const;
  const Value* get(std::string_view key) const;
  // Typed access: throws bad_file naming the key when it is absent (no default given) or has another type or range.
  uint64_t u64(std::string_view key) const;
  uint64_t u64(std::string_view key, uint64_t fallback) const;
  double f64(std::string_view key) const;
  double f64(std::string_view key, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string_view string(std::string_view key) const;
  std::string_view string(std::string_view key, std::string_view fallback) const;
  std::vector<uint64_t> u64s(std::string_view key) const;         // a scalar counts as one element; empty when absent
  std::vector<std::string_view> strings(std::string_view key) const;  // empty when absent
  void prefetch() const;  // madvise(WILLNEED) over the data
  bool lock() const;      // mlock over the data; false where the system refuses

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  friend struct Opener;
};

// The quantized matrices of a file (key turboquant.tensors), each validated (format/matrix.h), zero-copy views into the mapping.
class TqnTensors {
 public:
  explicit TqnTensors(std::shared_ptr<const File> file);
  const TqnMatrix* find(std::string_view name) const;
  std::span<const std::pair<std::string, TqnMatrix>> all() const;

 private:
  std::shared_ptr<const File> file_;
  std::vector<std::pair<std::string, TqnMatrix>> matrices_;  // sorted by name
};

}  // namespace tq::gguf
