"""What wheels are made for, and what a target's Python looks like from a Linux machine: headers, names, import libraries."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Target:
    """zig: the compiler's target. platform: as Python calls it there. tag: what the wheel promises. suffix: of an extension module, around
    the version. runtime: what is linked in."""

    zig: str
    platform: str
    tag: str
    suffix: str
    runtime: tuple[str, ...]

    @property
    def system(self) -> str:
        """linux, macos or windows"""
        return self.zig.split("-")[1].split(".")[0]


_LLVM = ("libc++", "libc++abi", "libunwind", "compiler-rt")
TARGETS = {
    "linux-x86_64": Target("x86_64-linux-gnu.2.28", "linux-x86_64", "manylinux_2_28_x86_64", ".cpython-{}-x86_64-linux-gnu.so", _LLVM),
    "linux-aarch64": Target("aarch64-linux-gnu.2.28", "linux-aarch64", "manylinux_2_28_aarch64", ".cpython-{}-aarch64-linux-gnu.so", _LLVM),
    "musl-x86_64": Target("x86_64-linux-musl", "linux-x86_64", "musllinux_1_2_x86_64", ".cpython-{}-x86_64-linux-musl.so", _LLVM),
    "macos-arm64": Target("aarch64-macos.13.0", "macosx-13.0-arm64", "macosx_13_0_arm64", ".cpython-{}-darwin.so", _LLVM),
    "windows-x86_64": Target("x86_64-windows-gnu", "win-amd64", "win_amd64", ".cp{}-win_amd64.pyd", (*_LLVM, "mingw-w64")),
}


@dataclass(frozen=True)
class Python:
    """An interpreter of this machine, for whose version a wheel is made.

    version: "312". include: its headers. config: the pyconfig.h of this machine (Debian's of `include` only names one for each processor).
    shared_library: the program or library that exports its API.
    """

    executable: Path
    version: str
    include: Path
    config: Path
    shared_library: Path


def interrogate(executable: str) -> Python:
    """Raises OSError or CalledProcessError when it does not run."""
    script = (
        "import json, sys, sysconfig as s; v = s.get_config_var; "
        "print(json.dumps([v('py_version_nodot'), s.get_path('include'), v('MULTIARCH'), v('LDLIBRARY'), v('LIBDIR'), sys.executable]))"
    )
    told = subprocess.run([executable, "-c", script], check=True, capture_output=True).stdout
    version, include, multiarch, name, folder, path = json.loads(told)
    shared = Path(folder) / name
    return Python(
        Path(executable), version, Path(include), pyconfig(Path(include), multiarch), shared if name.endswith(".so") else Path(path)
    )


def pyconfig(include: Path, multiarch: str | None) -> Path:
    """The pyconfig.h that this machine's modules are compiled with: Debian keeps it in a folder of the processor."""
    own = include.parent / (multiarch or "") / include.name / "pyconfig.h"
    return own if own.is_file() else include / "pyconfig.h"


def headers(python: Python, target: Target, folder: Path) -> Path:
    """The folder of the target's Python headers: this machine's, and for macOS and Windows a pyconfig.h that says what differs there."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(python.include, folder)  # times of files stay, so that another run compiles nothing anew
    if target.system == "linux":  # of 64 bits, little endian: pyconfig.h says the same in all that extension modules see
        shutil.copy2(python.config, folder / "pyconfig.h")
    else:
        shutil.copy2(python.config, folder / "pyconfig_linux.h")
        shutil.copy2(HERE / "pyconfig" / f"{target.system}.h", folder / "pyconfig.h")
    return folder


def import_library(python: Python, zig: Path, folder: Path) -> Path:
    """Windows links by a library of names: those that this machine's interpreter of the same version exports, made by zig's dlltool."""
    from elftools.elf.elffile import ELFFile  # of `make wheels` only, and there of Windows only

    folder.mkdir(parents=True, exist_ok=True)
    with python.shared_library.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".dynsym")
        symbols = {symbol.name: symbol["st_info"]["type"] for symbol in table.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF"}
    names = sorted(name for name in symbols if name.startswith(("Py", "_Py")))
    dll = f"python{python.version}"
    lines = [f"LIBRARY {dll}.dll", "EXPORTS", *(f"  {name}{' DATA' if symbols[name] == 'STT_OBJECT' else ''}" for name in names)]
    definition, library = folder / f"{dll}.def", folder / f"lib{dll}.a"
    definition.write_text("\n".join(lines) + "\n")
    subprocess.run([str(zig), "dlltool", "-m", "i386:x86-64", "-d", str(definition), "-l", str(library)], check=True)
    return library
