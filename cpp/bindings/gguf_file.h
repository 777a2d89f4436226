// The Python class GgufFile, for the areas of the bindings that hand one out.
#pragma once
#include <memory>
#include <optional>

#include "bindings/bindings.h"
#include "gguf/gguf.h"

namespace tq::bindings {

// Shared by the Python object and by every array that views the mapping.
class GgufFile {
 public:
  // validate: check the packed matrices now; otherwise at their first use (for tools that look at damaged files).
  GgufFile(std::shared_ptr<const gguf::File> file, bool validate);
  const gguf::File& file() const { return *file_; }
  const gguf::TqnTensors& packed();
  py::dict metadata();

 private:
  std::shared_ptr<const gguf::File> file_;
  std::unique_ptr<const gguf::TqnTensors> packed_;
  std::optional<py::dict> metadata_;
};

}  // namespace tq::bindings
