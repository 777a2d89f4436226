// clang-format off
#define TQ_ISA_NAMESPACE avx512vbmi
#include "kernels/isa/avx512vbmi.h"
#include "kernels/body/table.h"
// clang-format on
