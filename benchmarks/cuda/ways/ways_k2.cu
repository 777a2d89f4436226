#define TQ_WAY_K 2
#include "body.cuh"
