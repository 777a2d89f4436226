// Experiment: the kernels as they were.
#define attend_coded attend_coded_old
#define finish_coded finish_coded_old
#define attends_alone attends_alone_old
#include "launch.h"
#include "old_coded.inc"
