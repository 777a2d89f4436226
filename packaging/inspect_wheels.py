"""Looks into wheels without running them: the module, the bill of materials, macOS' commands and signature, what has to be inside.

python packaging/inspect_wheels.py [--cuda] [--metal] WHEEL ...
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import macho

_SYSTEM = ("/usr/lib/", "/System/Library/")


def _faults_on_macos(tag: str, module: bytes, metal: bool) -> Iterator[str]:
    found = macho.read(module)
    if (promised := re.sub(r"macosx_(\d+)_(\d+)_.*", r"\1.\2", tag)) != found.oldest:
        yield f"the tag promises macOS {promised}, the module wants {found.oldest}"
    if found.signature:
        macho.check_signature(module, found.signature)
    elif tag.endswith("arm64"):
        yield "the module is not signed"
    for library in found.libraries:
        if not library.startswith(_SYSTEM):
            yield f"it loads {library}, which is not the system's"
    if metal and not any("/Metal.framework/" in library for library in found.libraries):
        yield f"Metal's framework is not loaded; these are: {', '.join(found.libraries)}"


def faults(wheel: Path, cuda: bool = False, metal: bool = False) -> list[str]:
    """What is wrong with a wheel; cuda, metal: backends that must be inside. OSError, BadZipFile, ValueError: unreadable."""
    tag = wheel.stem.split("-")[-1]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        modules = [name for name in names if re.fullmatch(r"turboquant_native/_core\.[^/]+\.(so|pyd)", name)]
        if len(modules) != 1:
            return [f"one extension module is expected, there are {len(modules)}: {', '.join(modules)}"]
        found = [] if any(re.search(r"\.dist-info/sboms/.+\.json$", name) for name in names) else ["no bill of materials is inside"]
        if cuda and "turboquant_native/libtq_cuda.so" not in names:
            found.append("libtq_cuda.so is not inside")
        if tag.startswith("macosx"):
            found += _faults_on_macos(tag, archive.read(modules[0]), metal)
        elif metal:
            found.append("Metal is macOS'")
    return found


def main() -> None:
    """Prints a line for each wheel; exit code 1 when one has a fault."""
    parser = argparse.ArgumentParser(description="Looks into wheels without running them.")
    parser.add_argument("--cuda", action="store_true", help="libtq_cuda.so must be inside")
    parser.add_argument("--metal", action="store_true", help="the module must load Metal's framework")
    parser.add_argument("wheels", nargs="+", type=Path)
    args = parser.parse_args()
    failed = False
    for wheel in args.wheels:
        try:
            wrong = faults(wheel, args.cuda, args.metal)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            wrong = [str(error)]
        failed = failed or bool(wrong)
        print(f"{wheel.name}: {'; '.join(wrong) or 'as promised'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
