// Reads a file's header from front to back; never past the end, always saying what was being read.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "common/error.h"
#include "common/text.h"

namespace tq::gguf {

static_assert(std::endian::native == std::endian::little, "GGUF planes are used in place: little-endian machines only");

class Cursor {
 public:
  Cursor(const std::string& path, std::span<const uint8_t> bytes) : path_(path), bytes_(bytes) {}

  void set_context(std::string context) { context_ = std::move(context); }  // "metadata key "x"", "tensor 3", ...
  uint64_t offset() const { return at_; }
  uint64_t remaining() const { return bytes_.size() - at_; }

  [[noreturn]] void fail(const std::string& why) const {
    throw Error(Cause::bad_file, printable(path_) + ": " + context_ + (context_.empty() ? "" : ": ") + why);
  }

  std::span<const uint8_t> take(uint64_t n, std::string_view what) {
    if (n > remaining()) fail_truncated(n, what);
    const auto taken = bytes_.subspan(at_, n);
    at_ += n;
    return taken;
  }
  template <class T>
  T number(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }
  std::string_view string(std::string_view what) {
    const auto length = number<uint64_t>(what);
    const auto text = take(length, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

 private:
  [[noreturn]] void fail_truncated(uint64_t n, std::string_view what) const {
    fail("the file ends inside " + std::string(what) + ": " + std::to_string(n) + " bytes wanted at offset " + std::to_string(at_) + ", " +
         std::to_string(remaining()) + " left");
  }

  const std::string& path_;
  std::span<const uint8_t> bytes_;
  uint64_t at_ = 0;
  std::string context_;
};

}  // namespace tq::gguf
