// Arm NEON with the dot-product extension (Armv8.2 and later).
#pragma once
#include "kernels/isa/neon_common.h"

namespace tq::kernels::neon {

inline constexpr char kName[] = "neon";

}  // namespace tq::kernels::neon

#include "kernels/isa/dot_panel.h"
