// Where there is no Metal: tests may name a library that carries out the kernels on the CPU (tests/metal) in the environment.
#include <cstdlib>
#include <string>

#include "common/error.h"
#include "common/system.h"
#include "emulator.h"

namespace tq::metal {

std::unique_ptr<Device> open_device(int number) {
  const char* path = std::getenv(kEmulatorVariable);
  if (!path || !*path) throw Error(Cause::unsupported, "Metal is Apple's: there is none on this system");
  std::string why;
  void* library = system::load_library(path, why);
  if (!library) throw Error(Cause::unsupported, std::string(kEmulatorVariable) + ": " + why);
  const auto open = reinterpret_cast<decltype(&tq_metal_emulator)>(system::find_symbol(library, "tq_metal_emulator"));
  if (!open) throw Error(Cause::unsupported, std::string(kEmulatorVariable) + ": " + path + " lacks tq_metal_emulator");
  if (number != 0) throw Error(Cause::unsupported, "no device " + std::to_string(number) + ", the emulator has one");
  return std::unique_ptr<Device>(open());
}

}  // namespace tq::metal
