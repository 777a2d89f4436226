// What the Metal backend needs of a device, so that the same program, placement and caches run on Apple's GPUs and, for tests, on kernels
// compiled as C++. Kernels, their buffers, grids and threads: arguments.h.
//
// Memory is unified: the host reads and writes what data() names, but only while nothing is under way (after wait()). Work is carried out
// in the order in which it was encoded, each launch seeing what the ones before it wrote.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace tq::metal {

struct Size3 {
  uint32_t x = 1, y = 1, z = 1;
};
struct Limits {
  int64_t buffer_bytes = 0;   // of the largest single buffer
  int64_t working_bytes = 0;  // that the system recommends to keep resident
  int64_t page_bytes = 0;     // views begin and end at multiples of it
  uint32_t cores = 0;         // of the GPU, for the number of splits; 0: unknown
};

// Memory that kernels can reach. It must not outlive its device, and a view not the memory that it shows.
class Memory {
 public:
  virtual ~Memory() = default;
  virtual void* data() const = 0;
  virtual int64_t bytes() const = 0;
};
// A kernel, compiled; of its device, which keeps it.
class Pipeline {
 public:
  virtual ~Pipeline() = default;
};
// A buffer of a launch: `memory` from byte `offset` on, which must suit the type that the kernel reads there.
struct Bound {
  const Memory* memory = nullptr;
  int64_t offset = 0;
};

// Calls come one at a time. Errors name the device and the reason: out_of_memory; unsupported for a kernel that does not compile or needs
// more threads than the device grants, and for work that the device gave up.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // "Apple M2 Pro"
  virtual Limits limits() const = 0;
  virtual std::unique_ptr<Memory> allocate(int64_t bytes) = 0;  // all zeros
  // Shows `bytes` bytes of host memory to kernels, which may only read them, without copying: `data` is at a multiple of page_bytes, all
  // pages to the end of the last are mapped, and at most buffer_bytes. Null where the system does not allow it.
  virtual std::unique_ptr<Memory> view(const void* data, int64_t bytes) = 0;
  virtual const Pipeline& pipeline(const std::string& kernel) = 0;  // compiled at the first call
  // Encodes a launch. `arguments` (at most 4096 bytes) is copied now and becomes buffer 0; `buffers` are those from 1 on.
  virtual void launch(const Pipeline& kernel, std::span<const std::byte> arguments, std::span<const Bound> buffers, Size3 groups,
                      uint32_t threads) = 0;
  virtual void copy(Bound from, Bound to, int64_t bytes) = 0;  // encodes it; parts do not overlap
  virtual void wait() = 0;                                     // hands over what was encoded; complete on return
};

// The machine's device of that number. Throws Error(unsupported) that says why there is none: no such device, one that is too old, a
// system that is too old, kernels that do not compile (refusals.h).
std::unique_ptr<Device> open_device(int number);

}  // namespace tq::metal
