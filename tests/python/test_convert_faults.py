"""A conversion that is killed: the target stays whole, and --resume makes the same file without doing finished work again."""

import os
import signal
from pathlib import Path

import pytest

from tiny_models import save_llama
from turboquant_native.commands import convert as convert_hf_to_tq
from turboquant_native.convert import conversion
from turboquant_native.convert.inspection import verify

MATRICES = 15  # of the tiny model: the embedding and seven in each of two layers


def convert(source: Path, target: Path, *options: str) -> int:
    plain = () if "--bpw" in options else ("--bits", "3", "--outliers", "0.01", "--effort", "none")
    return convert_hf_to_tq.main([str(source), str(target), *plain, "--quiet", *options])


def count_matrices(monkeypatch: pytest.MonkeyPatch, kill_at: int = -1) -> list[str]:
    """The names of the matrices that are rounded from now on; the process is killed when it comes to one of them."""
    names: list[str] = []
    original = conversion.quantize_matrix

    def quantize(*args, **options):
        names.append("matrix")
        if len(names) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    monkeypatch.setattr(conversion, "quantize_matrix", quantize)
    return names


def killed_at(matrix: int, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    pid = os.fork()
    if pid == 0:
        count_matrices(monkeypatch, matrix)
        os._exit(convert(*arguments))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("matrix", [1, 2, 9, MATRICES])
def test_a_killed_conversion_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, matrix: int) -> None:
    source, target, whole = save_llama(tmp_path / "model"), tmp_path / "killed.gguf", tmp_path / "whole.gguf"
    assert killed_at(matrix, monkeypatch, source, target) == -signal.SIGKILL
    assert not target.exists()
    done = count_matrices(monkeypatch)
    assert convert(source, target, "--resume") == 0
    assert len(done) == MATRICES - (matrix - 1)
    assert convert(source, whole) == 0
    assert target.read_bytes() == whole.read_bytes() and verify(target).ok
    assert sorted(os.listdir(tmp_path)) == ["killed.gguf", "model", "whole.gguf"]


@pytest.mark.parametrize(
    ("options", "message"),
    [((), "nothing is kept"), (("--resume",), "run again with --resume"), (("--bpw", "3"), "the same command goes on")],
)
def test_ctrl_c_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, options: tuple[str, ...], message: str) -> None:
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "quantize_matrix", interrupt)
    monkeypatch.setattr("turboquant_native.calibrate.quantizer.default_windows", interrupt)
    target = tmp_path / "model.gguf"
    assert convert(save_llama(tmp_path / "model"), target, *options) == 130
    err = capsys.readouterr().err
    assert err.startswith("interrupted; ") and message in err and not target.exists()
    assert (tmp_path / ".model.gguf.work").exists() == ("--bpw" in options)


def test_other_settings_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = save_llama(tmp_path / "model"), tmp_path / "killed.gguf"
    assert killed_at(9, monkeypatch, source, target) == -signal.SIGKILL
    done = count_matrices(monkeypatch)
    assert convert(source, target, "--resume", "--seed", "1") == 0
    assert len(done) == MATRICES
