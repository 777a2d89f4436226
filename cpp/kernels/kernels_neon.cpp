// clang-format off
#define TQ_ISA_NAMESPACE neon
#include "kernels/isa/neon.h"
#include "kernels/body/table.h"
// clang-format on
