// Finds the library tq_cuda beside the module that holds this code, or on the loader's path. The core never depends on it.
#include "backend/cuda_library.h"
#include "common/error.h"
#include "common/system.h"

namespace tq {
namespace {

struct Loaded {
  const CudaLibrary* entry = nullptr;
  std::string problem;
};

Loaded load() {
  const std::string name = system::library_name("tq_cuda"), folder = system::folder_of(reinterpret_cast<const void*>(&load));
  std::string beside, elsewhere;
  void* handle = folder.empty() ? nullptr : system::load_library(folder + name, beside);
  if (!handle) handle = system::load_library(name, elsewhere);
  if (!beside.empty()) beside += "; ";
  if (!handle) return {nullptr, "unsupported: no CUDA backend (built with -C cmake.define.TQ_CUDA=ON): " + beside + elsewhere};
  const auto entry = reinterpret_cast<decltype(&tq_cuda_library)>(system::find_symbol(handle, "tq_cuda_library"));
  if (!entry) return {nullptr, "unsupported: " + name + " lacks tq_cuda_library"};
  const CudaLibrary* library = entry();
  if (library->version != kCudaLibraryVersion)
    return {nullptr, "unsupported: " + name + " has version " + std::to_string(library->version) + ", this build needs " +
                         std::to_string(kCudaLibraryVersion)};
  return {library, ""};
}

const Loaded& loaded() {
  static const Loaded result = load();
  return result;
}

}  // namespace

const CudaLibrary& cuda_library() {
  if (!loaded().entry) throw Error(Cause::unsupported, "device cuda: " + loaded().problem);
  return *loaded().entry;
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) { return std::unique_ptr<Backend>(cuda_library().make(options)); }

std::string cuda_status() { return loaded().entry ? loaded().entry->status(0) : loaded().problem; }

}  // namespace tq
