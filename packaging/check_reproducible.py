"""Builds a wheel of `make wheels` again, from nothing in another folder: the same bytes must come out.

python packaging/check_reproducible.py WHEEL

WHEEL was made from this tree's last commit, with the same SOURCE_DATE_EPOCH if one was set. The second build has a clone, tools, caches,
time zone and umask of its own.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent


def what_made(wheel: str) -> tuple[str, str]:
    """Target and interpreter of a wheel's name. ValueError for one that `make wheels` does not make."""
    *_, version, _, tag = wheel.removesuffix(".whl").split("-")
    for name, target in TARGETS.items():
        if target.tag == tag and version.startswith("cp3"):
            return name, f"python3.{version[3:]}"
    raise ValueError(f"{wheel}: no wheel of `make wheels`, whose tags are {', '.join(target.tag for target in TARGETS.values())}")


def build_again(wheel: Path, folder: Path) -> Path:
    """The wheel of the same name, made in `folder`; its build prints to stderr. CalledProcessError when that fails."""
    target, python = what_made(wheel.name)
    clone = folder / "a_folder_of_a_longer_name" / "tree"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    caches = {name: str(folder / "caches") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    environment |= {**caches, "CCACHE_DISABLE": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8"}
    command = ["make", "wheels", f"WHEEL_TARGETS={target}", f"WHEEL_PYTHONS={python}"]
    subprocess.run(command, check=True, cwd=clone, env=environment, stdout=sys.stderr, umask=0o077)
    return clone / "dist" / wheel.name


def differences(first: Path, second: Path) -> list[str]:
    """Files of two wheels that differ in content or in what the archive says of them."""
    kept = []
    for path in (first, second):
        with zipfile.ZipFile(path) as archive:
            kept.append({info.filename: (archive.read(info), info.date_time, info.external_attr) for info in archive.infolist()})
    one, other = kept
    order = [] if list(one) == list(other) else ["their order"]
    return order + sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def main() -> None:
    """Prints both SHA-256; exit code 1 when they differ, with the names of what does."""
    wheel = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        again = build_again(wheel, Path(folder))
        told = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, again)]
        print(f"{wheel.name}\n  here:  {told[0]}\n  again: {told[1]}")
        if told[0] != told[1]:
            sys.exit("not reproducible; these differ: " + (", ".join(differences(wheel, again)) or "how the archive is packed"))
    print("reproducible")


if __name__ == "__main__":
    main()
