// clang-format off
#define TQ_ISA_NAMESPACE avx2vnni
#include "kernels/isa/avx2vnni.h"
#include "kernels/body/table.h"
// clang-format on
