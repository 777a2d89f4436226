// Without a CUDA library, driver or device the backend says why, as an error and as a status, and nothing else changes.
#include "backend/backend.h"
#include "check.h"

using namespace tq;

TEST("the status says available, or why not") {
  const std::string status = cuda_status();
  CHECK(status.starts_with("available: ") || status.starts_with("unsupported: "));
  CHECK(status.size() > std::string("unsupported: ").size());
}

TEST("an absent device is an error that names the cause") {
  BackendOptions options;
  options.device = 9999;
  CHECK_THROWS(make_cuda_backend(options), Cause::unsupported, "device cuda: unsupported: ");
}

TEST("the CPU works after a failed attempt") {
  const auto cpu = make_cpu_backend({.threads = 1});
  CHECK(cpu->name().starts_with("cpu ("));
}
