"""Looks into wheels without running them: the module, the bill of materials, macOS' load commands, what has to be inside.

python packaging/inspect_wheels.py [--cuda] [--metal] WHEEL ...
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

_MAGIC = 0xFEEDFACF  # Mach-O, 64 bits, little endian
_LOAD_DYLIB, _BUILD_VERSION = 0xC, 0x32
_SYSTEM = ("/usr/lib/", "/System/Library/")


def _commands(module: bytes) -> Iterator[tuple[int, bytes]]:
    """Load commands of a Mach-O file: number and bytes (mach-o/loader.h)."""
    if len(module) < 32:
        raise ValueError(f"no Mach-O file: {len(module)} bytes")
    magic, _, _, _, count, _, _, _ = struct.unpack_from("<8I", module)
    if magic != _MAGIC:
        raise ValueError(f"no Mach-O file of 64 bits: it begins with {magic:#x}")
    offset = 32
    for _ in range(count):
        if offset + 24 > len(module):  # the shortest that is read here
            raise ValueError(f"the file ends in its load commands, at byte {len(module)}")
        number, size = struct.unpack_from("<II", module, offset)
        if (size < 24 and number in (_LOAD_DYLIB, _BUILD_VERSION)) or size < 8 or offset + size > len(module):
            raise ValueError(f"load command {number:#x} at byte {offset} has {size} bytes")
        yield number, module[offset : offset + size]
        offset += size


def macho(module: bytes) -> tuple[str, list[str]]:
    """The oldest macOS that it is for ("13.0"), and the libraries that it loads. ValueError for another file, or without a system."""
    oldest, libraries = None, []
    for number, command in _commands(module):
        if number == _BUILD_VERSION:
            (version,) = struct.unpack_from("<I", command, 12)
            oldest = f"{version >> 16}.{version >> 8 & 255}"
        elif number == _LOAD_DYLIB:
            (start,) = struct.unpack_from("<I", command, 8)
            libraries.append(command[start:].split(b"\0")[0].decode())
    if oldest is None:
        raise ValueError("no load command says for which system it is")
    return oldest, libraries


def _faults_on_macos(tag: str, module: bytes, metal: bool) -> Iterator[str]:
    oldest, libraries = macho(module)
    if (promised := re.sub(r"macosx_(\d+)_(\d+)_.*", r"\1.\2", tag)) != oldest:
        yield f"the tag promises macOS {promised}, the module wants {oldest}"
    for library in libraries:
        if not library.startswith(_SYSTEM):
            yield f"it loads {library}, which is not the system's"
    if metal and not any("/Metal.framework/" in library for library in libraries):
        yield f"Metal's framework is not loaded; these are: {', '.join(libraries)}"


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
