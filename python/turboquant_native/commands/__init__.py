"""The command line `tqn`: one module a verb, with its arguments and nothing else."""

import os

# Before NumPy is imported: the threads of its OpenBLAS wait for work by spinning, by default for 2**26 cycles, and take the cores from
# ours meanwhile. A calibrated conversion takes a fifth less processor time so.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
