// clang-format off
#define TQ_ISA_NAMESPACE avx512
#include "kernels/isa/avx512.h"
#include "kernels/body/table.h"
// clang-format on
