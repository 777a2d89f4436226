// The GGUF reader and the packed matrices on top of it: an Error or a file of which every byte that is handed out can be read.
#include "format/reference.h"
#include "fuzz/input.h"
#include "gguf/gguf.h"

using namespace tq;

static unsigned touched = 0;  // read so that the compiler keeps the reads

static void touch(std::span<const uint8_t> bytes) {
  if (!bytes.empty()) touched += bytes.front() + bytes[bytes.size() / 2] + bytes.back();
}

static void touch(const gguf::Value& value) {
  if (const auto* text = std::get_if<std::string_view>(&value.data)) touch({reinterpret_cast<const uint8_t*>(text->data()), text->size()});
  const auto* array = std::get_if<gguf::Array>(&value.data);
  if (!array || array->count > 1000) return;
  touch(array->bytes);
  for (const auto& element : gguf::elements_of(*array)) touch(element);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::allow_errors([&] {
    const auto file = gguf::File::open(fuzz::file_of({data, size}));
    for (const auto& [key, value] : file->metadata()) {
      touch(value);
      fuzz::allow_errors([&, &k = key] { (void)file->u64s(k); });
      fuzz::allow_errors([&, &k = key] { (void)file->strings(k); });
      fuzz::allow_errors([&, &k = key] { (void)file->f64(k); });
    }
    for (const auto& tensor : file->tensors()) touch(tensor.data);
    const gguf::TqnTensors packed(file);
    for (const auto& [name, matrix] : packed.all()) {
      touched += unsigned(reference::code(matrix, 0, 0) + reference::code(matrix, matrix.n_out - 1, matrix.n_in - 1));
    }
  });
  return 0;
}
