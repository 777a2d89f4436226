#define TQ_WAY_K 6
#include "body.cuh"
