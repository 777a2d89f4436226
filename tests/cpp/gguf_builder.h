// Builds GGUF files byte by byte, without the reader's code, and remembers where each number stands so that tests can break it.
#pragma once
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "common/system.h"

namespace build {

enum : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
enum : uint32_t { F32 = 0, F16 = 1, Q4_0 = 2, I8 = 24, I16 = 25, I32 = 26, BF16 = 30 };

struct Field {
  std::string what;
  size_t at, width;
};

struct Tensor {
  std::string name;
  uint32_t type;
  std::vector<uint64_t> shape;  // fastest dimension first
  std::string data;
};

template <class T>
std::string raw(const T& value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}
template <class T>
std::string raw(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

class File {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;  // what the writer uses; a file states another one by its own key
  std::vector<Tensor> tensors;
  std::vector<uint64_t> offsets;  // stated instead of the right ones where given

  // A scalar or a hand-made value: `payload` follows the type number as it is.
  void key(const std::string& name, uint32_t type, const std::string& payload) { keys_.push_back({name, type, payload, {}}); }
  void text(const std::string& name, const std::string& value) {
    keys_.push_back({name, string, raw(uint64_t(value.size())) + value, {{"string length", 0, 8}}});
  }
  void list(const std::string& name, uint32_t element, uint64_t count, const std::string& elements) {
    keys_.push_back({name, array, raw(element) + raw(count) + elements, {{"array element type", 0, 4}, {"array length", 4, 8}}});
  }

  std::string bytes() {
    fields.clear();
    std::string out = "GGUF";
    number(out, "version", version);
    number(out, "tensor count", uint64_t(tensors.size()));
    number(out, "key count", uint64_t(keys_.size()));
    for (const Key& key : keys_) {
      number(out, "key length", uint64_t(key.name.size()));
      out += key.name;
      number(out, "value type", key.type);
      for (const Field& inner : key.fields) fields.push_back({inner.what, out.size() + inner.at, inner.width});
      out += key.payload;
    }
    uint64_t offset = 0;
    for (size_t i = 0; i < tensors.size(); i++) {
      tensor_info(out, tensors[i], i < offsets.size() ? offsets[i] : offset);
      offset += padded(tensors[i].data.size());
    }
    header_bytes = out.size();
    for (const Tensor& tensor : tensors) {
      out.resize(padded(out.size()));
      out += tensor.data;
    }
    return out;
  }

  std::vector<Field> fields;  // of the last bytes()
  size_t header_bytes = 0;

 private:
  struct Key {
    std::string name;
    uint32_t type;
    std::string payload;
    std::vector<Field> fields;  // offsets inside the payload
  };
  uint64_t padded(uint64_t n) const { return (n + alignment - 1) / alignment * alignment; }
  template <class T>
  void number(std::string& out, const char* what, T value) {
    fields.push_back({what, out.size(), sizeof value});
    out += raw(value);
  }
  void tensor_info(std::string& out, const Tensor& tensor, uint64_t offset) {
    number(out, "name length", uint64_t(tensor.name.size()));
    out += tensor.name;
    number(out, "dimension count", uint32_t(tensor.shape.size()));
    for (uint64_t dim : tensor.shape) number(out, "dimension", dim);
    number(out, "tensor type", tensor.type);
    number(out, "offset", offset);
  }
  std::vector<Key> keys_;
};

// A file on disk for the reader, removed at the end.
class OnDisk {
 public:
  explicit OnDisk(const std::string& bytes = "") {
    std::ofstream(path_, std::ios::binary);
    write(bytes);
  }
  ~OnDisk() { std::filesystem::remove(path_); }
  // In place: emptying a file before each of thousands of rewrites makes file systems flush every time.
  void write(const std::string& bytes) const {
    std::fstream(path_, std::ios::binary | std::ios::in | std::ios::out) << bytes;
    std::filesystem::resize_file(path_, bytes.size());
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_ = (std::filesystem::temp_directory_path() / ("tq_test_" + std::to_string(tq::system::process_id()) + ".gguf")).string();
};

}  // namespace build
