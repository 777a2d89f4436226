// The shim itself: lanes meet where they should, and see what the others gave.
#include "check.h"
#include "launch.h"

namespace {

std::vector<uint32_t> run(const char* kernel, uint32_t groups, uint32_t threads, shim::Order order, int os_threads = 1) {
  std::vector<uint32_t> out(size_t(groups) * threads, 0xDEAD);
  const shim::Binding buffer = at(out);
  shim::dispatch(*shim::find(kernel), &buffer, 1, {groups}, threads, {order, os_threads});
  return out;
}

}  // namespace

TEST("simd operations: every lane against what all lanes gave") {
  for (const auto order : {shim::Order::ascending, shim::Order::descending}) {
    const auto out = run("shim_simd", 3, 96, order);
    for (uint32_t i = 0; i < out.size(); i++) CHECK_EQ(out[i], 0u);
  }
}

TEST("barriers: what a thread-group wrote, all of it sees") {
  for (const auto order : {shim::Order::ascending, shim::Order::descending})
    for (const int os_threads : {1, 2}) {
      const auto out = run("shim_reverse", 5, 256, order, os_threads);
      for (uint32_t i = 0; i < out.size(); i++) CHECK_EQ(out[i], i / 256 * 1000 + 255 - i % 256);
    }
}

TEST("orders of lanes: a missing barrier shows") {
  CHECK(run("shim_race", 1, 64, shim::Order::ascending) != run("shim_race", 1, 64, shim::Order::descending));
}

TEST("lanes that have left take no part") {
  const auto out = run("shim_leave", 1, 32, shim::Order::ascending);
  for (uint32_t i = 0; i < 32; i++) CHECK_EQ(out[i], i < 10 ? 0xDEADu : 22u);
}

TEST("simdgroup matrices: products, transposes, exact in whole numbers") {
  const auto out = run("shim_matrix", 1, 64, shim::Order::descending);
  for (uint32_t i = 0; i < 64; i++) {
    uint32_t sum = 1;
    for (uint32_t l = 0; l < 8; l++) sum += (8 * (i / 8) + l) * (8 * (i % 8) + l);
    CHECK_EQ(out[i], sum);
  }
}
