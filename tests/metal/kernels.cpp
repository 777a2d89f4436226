// The kernels of metal/ and those that try the shim, compiled as C++. No other header may follow metal_stdlib: MSL's keywords are macros.
#include <metal_stdlib>

#include "attention.metal"
#include "attention_runs.metal"
#include "coded.metal"
#include "dense.metal"
#include "gemm.metal"
#include "gemv.metal"
#include "input.metal"
#include "routing.metal"
#include "rows.metal"
#include "shim_kernels.metal"
#include "top.metal"
