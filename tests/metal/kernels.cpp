// The kernels of metal/ and those that try the shim, compiled as C++. No other header may follow metal_stdlib: MSL's keywords are macros.
#include <metal_stdlib>

#include "gemv.metal"
#include "shim_kernels.metal"
