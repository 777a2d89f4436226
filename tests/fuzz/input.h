// What the fuzz targets share: a file that holds the input, and small numbers taken from it.
#pragma once
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string>

#include "common/error.h"

namespace fuzz {

// One file a process, written anew for every input.
inline std::string file_of(std::span<const uint8_t> bytes) {
  static const std::string path = std::filesystem::temp_directory_path() / ("fuzz-" + std::to_string(getpid()) + ".gguf");
  static const bool removed_at_exit = std::atexit([] { std::remove(path.c_str()); }) == 0;
  (void)removed_at_exit;
  FILE* out = std::fopen(path.c_str(), "wb");
  if (!out || std::fwrite(bytes.data(), 1, bytes.size(), out) != bytes.size()) std::abort();
  std::fclose(out);
  return path;
}

// Runs what may refuse its input; an Error is a good answer, anything else is a finding.
template <class F>
void allow_errors(F&& body) {
  try {
    body();
  } catch (const tq::Error&) {
  }
}

// Takes numbers from the front of the input; zeros when it is used up.
class Numbers {
 public:
  explicit Numbers(std::span<const uint8_t> bytes) : rest_(bytes) {}
  uint8_t byte() {
    if (rest_.empty()) return 0;
    const uint8_t value = rest_[0];
    rest_ = rest_.subspan(1);
    return value;
  }
  int between(int low, int high) { return low + byte() % (high - low + 1); }

 private:
  std::span<const uint8_t> rest_;
};

}  // namespace fuzz
