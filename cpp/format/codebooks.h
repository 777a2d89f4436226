// The default codebooks: constants of the format (version 2), like tqn.h in the common subset of C++20 and CUDA C++.
// TQN1-TQN4: T and U, least squares and coordinate descent on integers over Viterbi paths of N(0,1); TQN6: the 64-level Lloyd-Max quantizer
// of N(0,1), rounded to int8. unit: the best weight of one integer of a value for Gaussian weights of variance 1.
#pragma once
#include "format/tqn.h"

namespace tqn {

inline constexpr int8_t kCodebook1[2 * kTableSize] = {0,  6,  15, 3, 12, 4,  1, 9,  9, 14, 6,  6, 9, 9, 10, 5,  //
                                                      11, 13, 10, 5, 3,  10, 6, 15, 7, 7,  13, 0, 7, 5, 1,  9};
inline constexpr int8_t kCodebook2[2 * kTableSize] = {0, 2, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 10, 12, 13, 15,  //
                                                      0, 2, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12, 13, 15};
inline constexpr int8_t kCodebook3[2 * kTableSize] = {0, 3, 4, 5, 5, 6, 7, 7, 8, 8, 9, 10, 10, 11, 12, 15,  //
                                                      0, 3, 4, 5, 5, 6, 7, 7, 8, 8, 9, 10, 10, 11, 12, 15};
inline constexpr int8_t kCodebook4[2 * kTableSize] = {0, 5, 7, 9,  11, 12, 13, 15, 16, 17, 18, 20, 21, 23, 26, 31,  //
                                                      0, 5, 8, 10, 11, 13, 14, 15, 16, 18, 19, 20, 22, 24, 26, 31};
inline constexpr int8_t kCodebook6[kCodebookSize] = {-127, -110, -99, -91, -84, -78, -73, -68, -64, -60, -56, -53, -49, -46, -43, -40,
                                                     -38,  -35,  -32, -30, -27, -24, -22, -20, -17, -15, -13, -10, -8,  -6,  -3,  -1,
                                                     1,    3,    6,   8,   10,  13,  15,  17,  20,  22,  24,  27,  30,  32,  35,  38,
                                                     40,   43,   46,  49,  53,  56,  60,  64,  68,  73,  78,  84,  91,  99,  110, 127};

TQN_FN float default_unit(int k) {
  return k == 1 ? 0.148658f : k == 2 ? 0.181997f : k == 3 ? 0.202535f : k == 4 ? 0.093400f : k == 6 ? 0.0290924f : 0.0f;
}

}  // namespace tqn
