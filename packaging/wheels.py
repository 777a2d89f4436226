"""`make wheels`: wheels for every system, made on one Linux machine. Compiler: zig (PyPI's `ziglang`), driven by scikit-build-core and
cmake/zig.cmake.

One wheel for each CPython and target. The core is compiled once for a target, with its first CPython; the others compile the bindings only
(seven files). The same tree, epoch and tools give the same bytes (docs/wheels.md).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import ziglang
from inspect_wheels import faults
from targets import TARGETS, Python, Target, headers, import_library, interrogate

ROOT = Path(__file__).resolve().parent.parent
ZIG = Path(ziglang.__file__).parent / "zig"
_BUILD = "import json, sys, scikit_build_core.build as b; b.build_wheel(sys.argv[1], json.loads(sys.argv[2]))"


def epoch() -> str:
    """Seconds of SOURCE_DATE_EPOCH, else of the last commit, else (a source distribution) the day that zip files begin with."""
    if value := os.environ.get("SOURCE_DATE_EPOCH"):
        return value
    told = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    return told.stdout.strip() if told.returncode == 0 and told.stdout.strip() else "315532800"


def _compiler_version() -> str:
    """LLVM's, which is that of the libraries that zig brings: "22.1.8"."""
    return subprocess.run([str(ZIG), "c++", "--version"], check=True, capture_output=True, text=True).stdout.split()[2]


def _bill(target: Target, work: Path, environment: dict[str, str]) -> Path:
    out = work / "sbom" / "turboquant-native.cdx.json"
    clang = _compiler_version()
    versions = {name: ziglang_version() if name == "mingw-w64" else clang for name in target.runtime}
    linked = [f"{name}={version}" for name, version in {**versions, "pybind11": pybind11.__version__}.items()]
    subprocess.run([sys.executable, str(ROOT / "packaging" / "sbom.py"), str(out), *linked], check=True, env=environment)
    return out


def ziglang_version() -> str:
    """zig's: mingw-w64 has no version of its own in it."""
    return "zig-" + subprocess.run([str(ZIG), "version"], check=True, capture_output=True, text=True).stdout.strip()


def _folder(work: Path, name: str, python: Python) -> Path:
    return work / f"{name}-cp{python.version}"


def build(name: str, python: Python, out: Path, work: Path, core: Path | None) -> Path:
    """One wheel, around `core` where an earlier one left it; CalledProcessError when something does not compile (what, is on stderr)."""
    target, folder = TARGETS[name], _folder(work, name, python)
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": epoch(),
        "_PYTHON_HOST_PLATFORM": target.platform,
        "SETUPTOOLS_EXT_SUFFIX": target.suffix.format(python.version),
        "PYTHONPATH": str(Path(pybind11.__file__).parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    defines = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "cmake" / "zig.cmake",
        "TQ_ZIG": ZIG,
        "TQ_TARGET": target.zig,
        "TQ_SBOM": _bill(target, folder, environment),
        "Python_INCLUDE_DIR": headers(python, target, folder / "include"),
        "PYTHON_MODULE_EXTENSION": target.suffix.format(python.version),
        "PYTHON_MODULE_DEBUG_POSTFIX": "",
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "TQ_CORE": core or "",
    }
    if target.system == "windows":
        defines["Python_LIBRARY"] = import_library(python, ZIG, folder / "lib")
    settings = {f"cmake.define.{key}": str(value) for key, value in defines.items()} | {"build-dir": str(folder / "cmake")}
    fresh = folder / "dist"
    shutil.rmtree(fresh, ignore_errors=True)
    subprocess.run([str(python.executable), "-c", _BUILD, str(fresh), json.dumps(settings)], check=True, cwd=ROOT, env=environment)
    (wheel,) = fresh.glob("*.whl")
    out.mkdir(parents=True, exist_ok=True)
    return _promised(wheel, target, out, environment)


def _promised(wheel: Path, target: Target, out: Path, environment: dict[str, str]) -> Path:
    """The wheel under the tag of its target. auditwheel gives Linux's, after a look at every symbol that is needed from outside."""
    if target.system != "linux":
        return Path(shutil.move(wheel, out / wheel.name))
    command = [sys.executable, str(ROOT / "packaging" / "audit.py"), str(wheel), target.tag, str(out)]
    subprocess.run(command, check=True, env=environment)
    return out / wheel.name.replace(f"{target.platform.replace('-', '_')}.whl", f"{target.tag}.whl")


def main() -> None:
    """Builds what is asked for and prints name, size and SHA-256 of each wheel; a version without an interpreter is named and left out."""
    parser = argparse.ArgumentParser(description="Wheels for every system, made on one Linux machine.")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--pythons", nargs="+", default=[f"python3.{minor}" for minor in range(10, 15)], help="interpreters to build for")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "wheels")
    args = parser.parse_args()
    pythons = []
    for executable in args.pythons:
        try:
            pythons.append(interrogate(executable))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no wheels for {executable}: {error}", file=sys.stderr)
    if not pythons:
        sys.exit(f"none of these interpreters runs: {', '.join(args.pythons)}")
    for name in args.targets:
        core, work = None, args.work.resolve()
        for python in pythons:
            wheel = build(name, python, args.out.resolve(), work, core)
            if wrong := faults(wheel):
                sys.exit(f"{wheel.name}: {'; '.join(wrong)}")
            core = core or _folder(work, name, python) / "cmake" / "libtq_core.a"
            data = wheel.read_bytes()
            print(f"{wheel.name}  {len(data)} bytes  sha256 {hashlib.sha256(data).hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
