// What decoding and multiplying for one token take with no load in their way: the loop of the GEMV kernel on codes that registers hold.
#pragma once
#include <cstdint>

namespace bench {

// Seconds of a processor for one step of a warp, all warps busy; the best of 8 to 32 warps. k: 2, 3 or 4.
double decode_step_seconds(int k);
// Weights of a step.
int64_t decode_step_weights();

}  // namespace bench
