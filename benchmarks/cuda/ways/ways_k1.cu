#define TQ_WAY_K 1
#include "body.cuh"
