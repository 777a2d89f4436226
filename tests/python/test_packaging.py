"""What a release is made of: notes, bill of materials, one version, what a target's Python looks like from here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
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
