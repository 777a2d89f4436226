// How kernels are spelled, as MSL and as C++ (where tests/metal/shim supplies the same names): what every file of kernels includes.
#pragma once
#include <metal_stdlib>

#ifdef __METAL_VERSION__
// TQ_SHARED(type, name, count): a threadgroup array; in a kernel function only. TQ_KERNEL(name) makes a function known to the host,
// TQ_INSTANCE(name, function, arguments) one that is made of a template.
#define TQ_KERNEL(name)
#ifdef TQ_SYNTAX_ONLY  // another compiler looks at address spaces (tests/metal/syntax.sh)
#define TQ_SHARED(type, name, count) threadgroup type* const name = nullptr
#define TQ_INSTANCE(name, function, ...)            \
  typedef decltype(function<__VA_ARGS__>) name##_t; \
  template name##_t function<__VA_ARGS__>;
#else
#define TQ_SHARED(type, name, count) threadgroup type name[count]
#define TQ_INSTANCE(name, function, ...)            \
  typedef decltype(function<__VA_ARGS__>) name##_t; \
  template [[host_name(#name)]] kernel name##_t function<__VA_ARGS__>;
#endif
#define TQ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TQ_SHARED(type, name, count) type* const name = static_cast<type*>(shim::shared_memory(sizeof(type) * (count)))
#define TQ_KERNEL(name) static const shim::Register register_##name(#name, &name);
#define TQ_INSTANCE(name, function, ...) static const shim::Register register_##name(#name, &function<__VA_ARGS__>);
#define TQ_UNROLL
#endif

// The last parameters of every kernel: the thread-group's place, the number of thread-groups, the threads of one, a thread's number in it,
// its lane in its simdgroup and the simdgroup's number.
#define TQ_IDS                                                                                                                  \
  uint3 group [[threadgroup_position_in_grid]], uint3 groups [[threadgroups_per_grid]], uint3 size [[threads_per_threadgroup]], \
      uint tid [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]], uint sg [[simdgroup_index_in_threadgroup]]

// Helpers stand in namespace tq; kernels at global scope, where the host finds them by their plain names.
using namespace metal;
