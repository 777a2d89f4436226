// A bounded, memory-mapped reader of GGUF versions 2 and 3. Files are hostile until validated: every size is checked arithmetic, nothing is
// allocated by an unchecked count, every failure is an Error(bad_file) that names the file, the field or tensor, and the value.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "format/matrix.h"
#include "gguf/types.h"

namespace tq::gguf {

enum class ValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

struct Array {  // elements stay in the file, as stored; open() has checked the bounds of all of them, nested ones too
  ValueType element;
  uint64_t count = 0;
  std::span<const uint8_t> bytes;
};
struct Value {
  ValueType type = ValueType::u8;
  std::variant<uint64_t, int64_t, double, bool, std::string_view, Array> data;
};

struct Tensor {
  std::string_view name;
  uint32_t type = 0;            // a number of types.h: kF32, kF16, kI8, ..., or of a foreign quantization
  std::vector<uint64_t> shape;  // as in the file: fastest dimension first
  uint64_t offset = 0;          // of the data, from the start of the file
  std::span<const uint8_t> data;
  uint64_t elements() const;
};

std::vector<Value> elements_of(const Array& array);

class File {
 public:
  ~File();
  static std::shared_ptr<const File> open(const std::string& path);
  const std::string& path() const;
  uint64_t size() const;
  uint64_t data_offset() const;  // where the header and its padding end
  std::span<const Tensor> tensors() const;
  const Tensor* find(std::string_view name) const;
  std::span<const std::pair<std::string_view, Value>> metadata() const;
  const Value* get(std::string_view key) const;
  // Typed access: throws bad_file naming the key when it is absent (no fallback given), of another kind or out of range (a negative count,
  // a number that is not finite).
  uint64_t u64(std::string_view key) const;
  uint64_t u64(std::string_view key, uint64_t fallback) const;
  double f64(std::string_view key) const;
  double f64(std::string_view key, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string_view string(std::string_view key) const;
  std::string_view string(std::string_view key, std::string_view fallback) const;
  std::vector<uint64_t> u64s(std::string_view key) const;             // a scalar counts as one element; empty when absent
  std::vector<std::string_view> strings(std::string_view key) const;  // empty when absent
  void prefetch() const;                                              // madvise(WILLNEED) over the data
  bool lock() const;                                                  // mlock over the data; false where the system refuses

 private:
  struct Impl;
  explicit File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
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
