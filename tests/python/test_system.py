"""What differs between operating systems, as far as this one shows it; and that the package imports without what it does not need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from turboquant_native import _core
from turboquant_native.commands import cli
from turboquant_native.common import memory, system


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | system.OPEN_PLAIN_FILE)


def test_a_lock_is_one_holders_until_the_file_is_closed(tmp_path: Path) -> None:
    first, second = _opened(tmp_path / "f"), _opened(tmp_path / "f")
    system.lock_file(first, wait=False)
    with pytest.raises(BlockingIOError):
        system.lock_file(second, wait=False)
    os.write(second, b"others may still write")
    os.close(first)
    system.lock_file(second, wait=True)
    os.close(second)
    assert (tmp_path / "f").read_bytes() == b"others may still write"


def test_memory_figures_are_bytes_of_this_machine() -> None:
    assert 1 << 20 < system.peak_memory() < 1 << 50
    assert 1 << 20 < memory.available_memory() <= system.free_memory() + (1 << 34) < 1 << 50


def test_a_process_has_a_birth_while_it_lives() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = system.process_birth(process.pid)
    assert born is not None and born != "dead" and system.process_birth(process.pid) == born
    assert system.process_birth(os.getpid()) is not None
    system.end_process(process.pid, force=True)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    assert system.process_birth(process.pid) is None
    system.end_process(process.pid, force=False)  # gone: no error


_OPTIONAL = ("torch", "transformers", "llguidance", "fastapi", "uvicorn", "matplotlib", "lm_eval", "ray", "accelerate", "prometheus_client")
_BLOCKING = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {_OPTIONAL!r}:
            raise ImportError(name + " is optional, and was imported")
sys.meta_path.insert(0, Absent())
import turboquant_native
heavy = sorted(set(sys.modules) & {{"numpy", "tokenizers", "gguf", "huggingface_hub", "jinja2", "turboquant_native._core"}})
assert not heavy, heavy
from turboquant_native import *
import turboquant_native.commands.run, turboquant_native.commands.convert, turboquant_native.commands.doctor
print(turboquant_native.Llama.__name__)
"""


def test_the_package_imports_without_any_optional_one_and_loads_little() -> None:
    done = subprocess.run([sys.executable, "-c", _BLOCKING], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "Llama\n"), done.stderr


def test_version_says_the_build_and_the_instruction_sets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and out.startswith("turboquant-native ")
    assert f"built by {_core.BUILD}" in out and _core.BUILD.startswith(("gcc ", "clang "))
    assert f"in use: {_core.isa()}" in out and ", ".join(_core.available_isas()) in out


@pytest.mark.skipif(sys.platform != "linux", reason="names Linux' library")
def test_a_cuda_library_that_does_not_load_says_why(tmp_path: Path) -> None:
    shutil.copy(_core.__file__, tmp_path)
    (tmp_path / "libtq_cuda.so").write_bytes(b"no library")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import _core; print(_core.backends()['cuda'])"
    status = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert status.startswith("unsupported: no CUDA backend") and f"{tmp_path}/libtq_cuda.so: " in status
