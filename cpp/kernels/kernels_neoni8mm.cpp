// clang-format off
#define TQ_ISA_NAMESPACE neoni8mm
#include "kernels/isa/neoni8mm.h"
#include "kernels/body/table.h"
// clang-format on
