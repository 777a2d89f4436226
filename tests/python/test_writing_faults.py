"""Files among strangers: planted links, second writers, sources that change, and every byte of a finished file."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from test_container import write
from tiny_models import LLAMA, llama_tensors, save_llama, write_gguf
from turboquant_native import _core
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert import container
from turboquant_native.convert.container import ContainerWriter, OutputError
from turboquant_native.convert.conversion import Options, check_target, make_plan, plain_rounding, write_model
from turboquant_native.convert.inspection import verify
from turboquant_native.convert.sources import open_source

VICTIM = b"somebody else's file"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(VICTIM)
    return path


# --- every byte counts


def test_every_byte_of_the_end_counts(tmp_path: Path) -> None:
    """The last tensor is an outlier table, which ends anywhere: what follows it up to the alignment is covered too."""
    path = tmp_path / "m.gguf"
    with ContainerWriter(path, "llama") as out:
        out.add_tensor("a", np.arange(5, dtype=np.float32))
        out.add_tensor("b", np.arange(3, dtype=np.float32))
        out.finish()
    good = path.read_bytes()
    data_offset = _core.GgufFile(path).data_offset
    assert verify(path).ok and len(good) == data_offset + 128
    for at in range(data_offset - 80, len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x20
        path.write_bytes(bad)
        problems = verify(path).problems
        assert problems, f"byte {at} of {len(good)}"
        if at >= data_offset + 64 + 12:
            assert problems == ["padding after tensor b: damaged"]


# --- planted names


@pytest.mark.parametrize("name", [".o.gguf.partial", ".o.gguf.partial.journal", ".o.gguf.partial.out"])
@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_planted_links_are_not_followed(tmp_path: Path, victim: Path, name: str, plant: Callable[[Path, Path], None]) -> None:
    plant(tmp_path / name, victim)
    try:
        write(tmp_path / "o.gguf")
    except OutputError as error:
        assert name in str(error)
    else:
        assert verify(tmp_path / "o.gguf").ok and name.endswith(".out")  # a name of ours that is only ever made anew
    assert victim.read_bytes() == VICTIM


def test_a_fifo_in_place_of_the_spool_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".o.gguf.partial")
    with pytest.raises(OutputError, match="no regular file of its own"):
        write(tmp_path / "o.gguf")


def test_only_regular_files_are_replaced(tmp_path: Path, victim: Path) -> None:
    source = open_source(str(save_llama(tmp_path / "model")))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name, words in (("fifo", "no regular file"), ("null", "no regular file"), ("folder", "is a folder")):
        with pytest.raises(FileExistsError, match=words):
            ContainerWriter(tmp_path / name, "llama", overwrite=True)
        with pytest.raises(ConvertError, match=words):
            check_target(source, tmp_path / name, overwrite=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileExistsError, match="exists already"):
        ContainerWriter(tmp_path / "dangling", "llama")
    (tmp_path / "link").symlink_to(victim)
    write(tmp_path / "link", overwrite=True)  # the link is replaced, not what it points to
    assert victim.read_bytes() == VICTIM and not (tmp_path / "link").is_symlink() and verify(tmp_path / "link").ok


def test_a_fifo_that_comes_while_writing_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "o.gguf"
    with ContainerWriter(path, "llama") as out, pytest.raises(OutputError, match="no regular file"):
        out.add_tensor("a", np.ones(4, np.float32))
        os.mkfifo(path)
        out.finish()
    assert path.is_fifo()


# --- writers at the same time


def test_a_lock_on_a_file_that_is_gone_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer ends, and removes the spool, between our opening it and our locking it."""
    spool, calls = tmp_path / ".o.gguf.partial", []
    original = container.lock_file

    def lock_file(fd: int, wait: bool) -> None:
        if not calls:
            spool.unlink()
        calls.append(wait)
        original(fd, wait)

    monkeypatch.setattr(container, "lock_file", lock_file)
    with ContainerWriter(tmp_path / "o.gguf", "llama") as out:
        assert len(calls) == 2 and spool.exists()
        with pytest.raises(OutputError, match="another process is writing it"):
            ContainerWriter(tmp_path / "o.gguf", "llama")
        assert spool.exists()  # the refused writer has removed nothing
        out.add_tensor("a", np.ones(4, np.float32))
        out.finish()
    assert verify(tmp_path / "o.gguf").ok


# --- sources that change


def _grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b" ")


def _replace_by_older(path: Path) -> None:
    info = path.stat()
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, (info.st_atime - 1000, info.st_mtime - 1000))
    os.replace(copy, path)


@pytest.mark.parametrize("change", [_grow, _replace_by_older, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "model.gguf"])
def test_a_source_that_changes_gives_no_file(tmp_path: Path, name: str, change: Callable[[Path], None]) -> None:
    folder = save_llama(tmp_path / "model")
    if name == "model.gguf":
        write_gguf(folder / name, "llama", LLAMA, llama_tensors())
    source = open_source(str(folder / name if name == "model.gguf" else folder), needs_tokenizer=False)
    done = []

    def rounder(tensor: str, *arguments: Any) -> Any:
        if not done:
            change(folder / name)
        done.append(tensor)
        return plain_rounding(1)(tensor, *arguments)

    # an open file may also be missed by its reader
    with pytest.raises((ConvertError, OSError), match=name):
        write_model(source, make_plan(source, Options(bits=2)), tmp_path / "out.gguf", rounder=rounder)
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_a_source_replaced_before_writing_is_seen(tmp_path: Path) -> None:
    """Calibration may take hours between opening a model and writing it."""
    folder = save_llama(tmp_path / "model")
    source = open_source(str(folder))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({name: w * 2 for name, w in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(ConvertError, match=r"model\.safetensors: changed while the model was converted"):
        write_model(source, make_plan(source, Options(outtype="f16")), tmp_path / "out.gguf")


# --- after the rename


@pytest.mark.parametrize("name", ["sync_folder", "_remove"])
def test_what_fails_after_the_rename_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(*((container, name, fail) if name == "sync_folder" else (container._Spool, name, fail)))
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "o.gguf")
    assert verify(tmp_path / "o.gguf").ok
    assert "Input/output error" in caplog.text and "o.gguf" in caplog.text
