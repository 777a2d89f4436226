// Linux's pyconfig.h with what is otherwise on macOS: no feature-test macros, which would hide the system's own functions there.
#include "pyconfig_linux.h"
#undef _POSIX_C_SOURCE
#undef _XOPEN_SOURCE
#undef _XOPEN_SOURCE_EXTENDED
#undef _GNU_SOURCE
#undef SIZEOF_LONG_DOUBLE
#define SIZEOF_LONG_DOUBLE 8
