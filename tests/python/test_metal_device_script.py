"""benchmarks/metal_device.sh, the one command of a Mac's owner: its parts and its report, with stand-ins for the programs that it calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "metal_device.sh"
PARTS = [
    "machine",
    "the package",
    "the C++ build",
    "tqn doctor",
    "tests: operations and kernels",
    "tests: whole models on the device",
    "kernels",
]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="on a Mac the script measures the Mac")


def stand_in(path: Path, answer: str, code: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{answer} $1"\nexit {code}\n')
    path.chmod(0o755)


def run(folder: Path, *arguments: str, failing: str = "") -> tuple[int, str]:
    """Exit status and report. failing: the program of the environment that exits with 3."""
    for name in ("pip", "cmake", "ctest", "python", "tqn"):
        stand_in(folder / "venv/bin" / name, name, 3 if name == failing else 0)
    stand_in(folder / "build/metal_kernels", "metal_kernels")
    stand_in(folder / "path/python3", "python3")
    environment = {"VENV": "venv", "BUILD": "build", "REPORT": "report.txt"}
    environment = {name: str(folder / value) for name, value in environment.items()}
    path = f"{folder / 'path'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", str(SCRIPT), *arguments], cwd=folder, env=os.environ | environment | {"PATH": path}, capture_output=True, text=True
    )
    assert "please attach it" in done.stdout and not (folder / "report.txt.part").exists()
    return done.returncode, (folder / "report.txt").read_text()


def test_every_part_is_reported(tmp_path: Path) -> None:
    code, report = run(tmp_path, "model.gguf")
    model = str(tmp_path / "model.gguf")
    assert code == 0 and [line[3:] for line in report.splitlines() if line.startswith("== ")] == [
        *PARTS,
        f"{model}: speed",
        f"{model}: text",
    ]
    assert "metal_kernels small" in report and "64 greedy tokens are the same" in report and report.count("(exit 0)") == len(PARTS) + 2


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    code, report = run(tmp_path, failing="ctest")
    assert code == 1 and report.count("(exit 3)") == 1 and "metal_kernels small" in report
