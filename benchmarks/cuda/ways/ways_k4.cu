#define TQ_WAY_K 4
#include "body.cuh"
