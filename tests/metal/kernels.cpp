// The kernels of metal/, compiled as C++ against the shim.
#include <metal_stdlib>
// One at a time: macros of MSL's keywords must not reach other headers.
#include "gemv.metal"
