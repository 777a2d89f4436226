// How tests launch kernels in the shim: buffers are vectors or structs, bound in order.
#pragma once
#include <string>
#include <vector>

#include "../../metal/arguments.h"
#include "shim.h"

namespace tests {

template <class T>
shim::Binding at(const std::vector<T>& v) {
  static const T nothing{};
  return {const_cast<T*>(v.empty() ? &nothing : v.data()), v.size() * sizeof(T)};
}
template <class T>
  requires std::is_trivially_copyable_v<T>
shim::Binding at(const T& one) {
  return {const_cast<T*>(&one), sizeof(T)};
}

using Buffers = std::vector<shim::Binding>;

inline void launch(const std::string& kernel, const Buffers& buffers, shim::Size3 groups, uint32_t threads, shim::Order order) {
  const shim::Kernel* const found = shim::find(kernel);
  if (!found) shim::fail("no kernel %s", kernel.c_str());
  if (int(buffers.size()) != found->n_buffers) shim::fail("%s takes %d buffers, not %zu", kernel.c_str(), found->n_buffers, buffers.size());
  shim::dispatch(*found, buffers.data(), int(buffers.size()), groups, threads, {order, 1});
}

}  // namespace tests
using tests::at;
using tests::Buffers;
