// The portable kernels. The bodies are compiled over the vocabulary that stands before them.
#define TQ_ISA_NAMESPACE scalar
// clang-format off
#include "kernels/isa/scalar.h"
#include "kernels/body/table.h"
// clang-format on
