// Runs kernels that were compiled as C++ the way a GPU would: thread-groups of lanes, 32 of them a simdgroup, that meet at simd operations
// and barriers. Each lane is a fiber; between two meetings lanes run one after another, in an order that the caller chooses: a result that
// depends on it has a barrier missing. What a GPU would leave undefined (a barrier that part of a group never reaches, lanes of a simdgroup
// at different operations) ends the process with a message; shared memory starts as garbage and ends at guarded borders under
// AddressSanitizer.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

namespace shim {

inline constexpr uint32_t kSimdLanes = 32;
inline constexpr uint32_t kMaxGroupThreads = 1024;
inline constexpr size_t kMaxSharedBytes = 32768;  // of Apple7 and later

struct Size3 {
  uint32_t x = 1, y = 1, z = 1;
};
struct Binding {
  void* data = nullptr;
  size_t bytes = 0;  // of which a kernel may not know; for the caller's messages
};
// What a lane knows of itself.
struct Ids {
  Size3 group, groups, size;
  uint32_t tid = 0, lane = 0, sg = 0;
};

struct Kernel {
  const char* name;
  int n_buffers;
  void (*invoke)(const void* function, const Binding* buffers, const Ids& ids);
  const void* function;
};
const Kernel* find(std::string_view name);  // null: no such kernel
int kernel_count();
const Kernel& kernel_at(int i);
void add(const Kernel& kernel);

// Of the lanes between two meetings, and of the groups.
enum class Order : uint8_t { ascending, descending };
struct Options {
  Order order = Order::ascending;
  int os_threads = 1;  // that share the groups
};
// Complete on return. Ends the process where the launch is not valid.
void dispatch(const Kernel& kernel, const Binding* buffers, int n_buffers, Size3 groups, uint32_t group_threads,
              const Options& options = {});

// What the simd operations and barriers of the shim's metal_stdlib are made of; only a running kernel may call them.
using Slot = unsigned char[16];
struct Meeting {
  const Slot* values;  // of the 32 lanes
  uint32_t active;     // bit l: lane l takes part
};
Meeting meet(const void* value, size_t bytes, const char* operation);
void group_barrier();
uint32_t this_lane();               // in its simdgroup
void* shared_memory(size_t bytes);  // the same for the n-th call of every lane of a group
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Turns a kernel function into a Kernel: all parameters but the ids are buffers, bound in their order.
template <class T>
T argument(const Binding& b) {
  if constexpr (std::is_pointer_v<T>)
    return static_cast<T>(b.data);
  else
    return *static_cast<std::remove_reference_t<T>*>(b.data);  // a reference
}
template <class F>
struct Invoke;
template <class... P>
struct Invoke<void (*)(P...)> {
  static constexpr size_t kIds = 6, kBuffers = sizeof...(P) - kIds;
  using All = std::tuple<P...>;
  using Id3 = std::tuple_element_t<kBuffers, All>;
  template <size_t... I>
  static void call(const void* function, const Binding* b, const Ids& ids, std::index_sequence<I...>) {
    reinterpret_cast<void (*)(P...)>(const_cast<void*>(function))(argument<std::tuple_element_t<I, All>>(b[I])..., id3(ids.group),
                                                                  id3(ids.groups), id3(ids.size), ids.tid, ids.lane, ids.sg);
  }
  static Id3 id3(Size3 s) { return Id3(s.x, s.y, s.z); }
  static void run(const void* function, const Binding* b, const Ids& ids) { call(function, b, ids, std::make_index_sequence<kBuffers>()); }
};
struct Register {
  template <class F>
  Register(const char* name, F function) {
    add({name, int(Invoke<F>::kBuffers), Invoke<F>::run, reinterpret_cast<const void*>(function)});
  }
};

}  // namespace shim
