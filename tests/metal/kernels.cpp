// The kernels of metal/ and those that try the shim, compiled as C++. No other header may follow metal_stdlib: MSL's keywords are macros.
#pragma GCC diagnostic ignored "-Wunused-parameter"  // every kernel has the same parameters; clang hears no option before -Wextra
#include <metal_stdlib>

#include "attention.metal"
#include "attention_runs.metal"
#include "coded.metal"
#include "delta_net.metal"
#include "dense.metal"
#include "gemm.metal"
#include "gemv.metal"
#include "input.metal"
#include "routing.metal"
#include "rows.metal"
#include "shim_kernels.metal"
#include "top.metal"
