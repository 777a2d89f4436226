"""`python -m turboquant_native`: the command line `tqn`."""

import sys

from .commands.cli import main

sys.exit(main())
