"""auditwheel for a wheel of another machine: its command line offers only the platforms of the processor and C library that it runs on.

python packaging/audit.py WHEEL TAG OUT
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from auditwheel.architecture import Architecture
from auditwheel.libc import Libc
from auditwheel.main import main
from auditwheel.wheeltools import InWheelCtx


def audit(wheel: str, tag: str, out: str) -> int:
    """auditwheel's exit code; the wheel goes to the folder `out` under `tag`, such as manylinux_2_28_aarch64."""
    libc = Libc.MUSL if tag.startswith("musllinux") else Libc.GLIBC
    architecture = Architecture(next(name for name in ("aarch64", "x86_64") if tag.endswith(name)))
    if libc is Libc.MUSL:
        name_musl(Path(wheel), architecture.value)
    Libc.detect = staticmethod(lambda: libc)
    Architecture.detect = staticmethod(lambda *, bits=None: architecture)
    os.umask(0o022)  # folders' modes go into the archive
    sys.argv = ["auditwheel", "repair", "--plat", tag, "--only-plat", "-w", out, wheel]
    return main() or 0


def name_musl(wheel: Path, architecture: str) -> None:
    """zig's stub of musl calls itself libc.so, which auditwheel knows by the name that Alpine gives it."""
    with InWheelCtx(wheel, wheel) as inside:
        for module in Path(inside.path).rglob("*.so"):
            subprocess.run(["patchelf", "--replace-needed", "libc.so", f"libc.musl-{architecture}.so.1", str(module)], check=True)


if __name__ == "__main__":
    sys.exit(audit(*sys.argv[1:]))
