#define TQ_WAY_K 3
#include "body.cuh"
