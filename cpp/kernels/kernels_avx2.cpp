// clang-format off
#define TQ_ISA_NAMESPACE avx2
#include "kernels/isa/avx2.h"
#include "kernels/body/table.h"
// clang-format on
