"""`python -m turboquant_native.server MODEL`"""

import argparse
import sys

from . import command


def main() -> int:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser("python -m turboquant_native.server", description="Serves models over HTTP.")
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args())
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
