// The one function of a library that emulates a device; built with the core that loads it.
#pragma once
#include "device.h"

namespace tq::metal {

inline constexpr const char* kEmulatorVariable = "TQ_METAL_EMULATOR";  // the library's path

extern "C" Device* tq_metal_emulator();

}  // namespace tq::metal
