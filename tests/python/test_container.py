"""Files are written whole or not at all, a killed conversion goes on where it stopped, and damage is named."""

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from spec_decoder import random_codebook
from turboquant_native import _core
from turboquant_native.convert import container
from turboquant_native.convert.container import ContainerWriter, Outliers, OutputError
from turboquant_native.convert.inspection import describe, verify


def packed(n_out: int, n_in: int, bits: int, seed: int = 0) -> Any:
    """A packed matrix of random codes."""
    random = np.random.default_rng(seed)
    sizes = _core.plane_bytes(n_out, n_in, bits)
    row_scale = np.zeros(sizes["row_scale"] // 2, np.float16)
    row_scale[:n_out] = random.random(n_out)
    codebook = random_codebook(random, bits)
    codes = random.integers(0, 256, sizes["codes"], dtype=np.uint8)
    return SimpleNamespace(bits=bits, n_out=n_out, n_in=n_in, scale=0.1, codes=codes, row_scale=row_scale, codebook=codebook)


def outliers(n_out: int) -> Outliers:
    ptr = np.zeros(n_out + 1, np.int32)
    ptr[1:] = 2
    return Outliers(ptr, np.array([1, 6], np.uint16), np.array([0.5, -2.0], np.float16))


def write(path: Path, **options: Any) -> list[str]:
    """A small model; returns the names that had to be computed."""
    computed = []
    with ContainerWriter(path, "llama", **options) as out:
        out.add_metadata("llama.block_count", 2)
        out.add_metadata("tokenizer.ggml.tokens", ["a", "\udcff", "é"])
        out.add_tensor("output_norm.weight", np.arange(8, dtype=np.float32))
        for layer in range(3):
            name = f"blk.{layer}.ffn_up.weight"
            if not out.reuse(name):
                computed.append(name)
                table = outliers(70) if layer == 1 else None
                out.add_quantized(
                    name, packed(70, 8, 2 + layer, layer), rotation="hartley-hadamard", seed=2**64 - 1 - layer, outliers=table
                )
        out.finish()
    return computed


def leftovers(folder: Path, *expected: str) -> list[str]:
    return sorted(set(os.listdir(folder)) - set(expected))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write(path)
    return path


def test_round_trip(model: Path, tmp_path: Path) -> None:
    file = _core.GgufFile(model)
    assert file.metadata["llama.block_count"] == 2
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "\udcff", "é"]
    np.testing.assert_array_equal(file.data("output_norm.weight"), np.arange(8, dtype=np.float32))
    entries = file.quantized()
    assert list(entries) == [f"blk.{layer}.ffn_up.weight" for layer in range(3)]
    expected = {"bits": 3, "n_out": 70, "n_in": 8, "scale": float(np.float32(0.1)), "rotation": "hartley-hadamard", "outliers": 2}
    assert entries["blk.1.ffn_up.weight"] == {**expected, "seed": 2**64 - 2}
    for layer in range(3):
        source, name = packed(70, 8, 2 + layer, layer), f"blk.{layer}.ffn_up.weight"
        np.testing.assert_array_equal(file.data(name + ".tqn").ravel().view(np.uint8), source.codes)
        np.testing.assert_array_equal(file.data(name + ".tqn_scale"), source.row_scale)
        np.testing.assert_array_equal(file.data(name + ".tqn_cb"), source.codebook)
    assert all(offset % 64 == 0 for _, offset, _ in file.places())
    assert leftovers(tmp_path, "model.gguf") == []


def test_the_public_reader_opens_it(model: Path) -> None:
    reader = gguf.GGUFReader(model)
    ours = _core.GgufFile(model)
    assert [tensor.name for tensor in reader.tensors] == [name for name, _, _ in ours.tensors()]
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data, ours.data(tensor.name))


def test_bfloat16_and_integers(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    with ContainerWriter(path, "llama") as out:
        out.add_tensor("b", np.array([[0x3F80, 0xC000]], np.uint16), bf16=True)
        out.add_tensor("h", np.array([[1.5], [2.5]], np.float16))
        out.add_tensor("i", np.array([7], np.int32))
        out.finish()
    file = _core.GgufFile(path)
    assert file.data("b").dtype == np.uint16
    np.testing.assert_array_equal(file.dequantize("b"), [[1.0, -2.0]])
    np.testing.assert_array_equal(file.dequantize("h", (1, 2)), [[2.5]])
    with pytest.raises(_core.UnsupportedError, match='"i" has the type I32'):
        file.dequantize("i")
    with pytest.raises(ValueError, match='rows 1 to 3 of "h"'):
        file.dequantize("h", (1, 3))
    with pytest.raises(ValueError, match='has no tensor "x"'):
        file.dequantize("x")


def test_dequantize_is_codes_scales_rotation_and_outliers(model: Path) -> None:
    file = _core.GgufFile(model)
    source, table = packed(70, 8, 3, 1), outliers(70)
    values = _core.reference_decode(source.codes, 3, 70, 8, source.codebook).astype(np.float32)
    rotated = np.float32(0.1) * source.row_scale[:70, None].astype(np.float32) * values
    expected = _core.rotate_rows(rotated, 2**64 - 2, inverse=True)
    expected[0, table.col] += table.val.astype(np.float32)
    # float32 over a rotation of 8: three additions of terms no larger than the row's largest magnitude, a few roundings each
    bound = 16 * np.finfo(np.float32).eps * np.abs(expected).max() * 8
    np.testing.assert_allclose(file.dequantize("blk.1.ffn_up.weight"), expected, rtol=0, atol=bound)
    np.testing.assert_array_equal(file.dequantize("blk.1.ffn_up.weight", (5, 9)), file.dequantize("blk.1.ffn_up.weight")[5:9])


def test_views_outlive_the_file_and_cannot_be_written(model: Path) -> None:
    view = _core.GgufFile(model).data("output_norm.weight")
    model.unlink()
    np.testing.assert_array_equal(view, np.arange(8, dtype=np.float32))
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


# --- failures while writing ------------------------------------------------------------------------------------------------------


def test_an_existing_file_is_kept(model: Path) -> None:
    before = model.read_bytes()
    with pytest.raises(FileExistsError):
        ContainerWriter(model, "llama")
    with pytest.raises(RuntimeError, match="stop"), ContainerWriter(model, "llama", overwrite=True) as out:
        out.add_tensor("x", np.ones(4, np.float32))
        raise RuntimeError("stop")
    assert model.read_bytes() == before
    assert leftovers(model.parent, "model.gguf") == []


def test_leaving_without_finish_writes_nothing(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "m.gguf", "llama") as out:
        out.add_tensor("x", np.ones(4, np.float32))
    assert leftovers(tmp_path) == []
    with pytest.raises(ValueError, match="closed"):
        out.add_tensor("y", np.ones(4, np.float32))


def test_a_folder_that_is_missing_or_forbidden_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*none/m\.gguf: No such file or directory"):
        ContainerWriter(tmp_path / "none" / "m.gguf", "llama")
    with pytest.raises(OutputError, match=r"cannot write /proc/m\.gguf"):
        ContainerWriter("/proc/m.gguf", "llama")
    with pytest.raises(FileExistsError):
        ContainerWriter(tmp_path, "llama", overwrite=True)


def in_child(work: Callable[[], None]) -> int:
    """Runs work in a forked process; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("limit", [100, 2000, 5000])
def test_a_file_size_limit_leaves_nothing_behind(tmp_path: Path, limit: int) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OutputError, match=r"cannot write .*m\.gguf: File too large"):
            write(tmp_path / "m.gguf")
        assert leftovers(tmp_path) == []

    assert in_child(work) == 0
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*m\.gguf: no space left on the device \(\d+ bytes free\)") as caught:
        write(tmp_path / "m.gguf")
    assert caught.value.errno == errno.ENOSPC
    assert leftovers(tmp_path) == []


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "m.gguf", "llama"), pytest.raises(OutputError, match="another process is writing it"):
        ContainerWriter(tmp_path / "m.gguf", "llama")


@pytest.mark.parametrize(
    ("words", "add"),
    [
        ("was added twice", lambda out: [out.add_tensor("x", np.ones(4, np.float32)) for _ in range(2)]),
        ("longer than 63 bytes", lambda out: out.add_quantized("n" * 56, packed(4, 4, 2), rotation="none", seed=0)),
        ("the type float64 cannot be stored", lambda out: out.add_tensor("x", np.ones(4))),
        ("bfloat16 is given as uint16", lambda out: out.add_tensor("x", np.ones(4, np.float32), bf16=True)),
        (r"the shape \(0,\) cannot be stored", lambda out: out.add_tensor("x", np.ones(0, np.float32))),
        (r"the shape \(\) cannot be stored", lambda out: out.add_tensor("x", np.array(1, np.float32))),
        ("unknown rotation 'hadamard'", lambda out: out.add_quantized("x", packed(4, 4, 2), rotation="hadamard", seed=0)),
        ("does not fit 64 bits", lambda out: out.add_quantized("x", packed(4, 4, 2), rotation="none", seed=2**64)),
        ("metadata k: GGUF has no empty arrays", lambda out: out.add_metadata("k", [])),
        ("metadata k: a dict cannot be stored", lambda out: out.add_metadata("k", {})),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path: Path, words: str, add: Callable[[ContainerWriter], Any]) -> None:
    with ContainerWriter(tmp_path / "m.gguf", "llama") as out, pytest.raises(ValueError, match=words):
        add(out)


# --- interrupted at any line -----------------------------------------------------------------------------------------------------


class AtLine:
    """Calls `action` when the container's code reaches its n-th line; counts the lines it runs."""

    def __init__(self, n: int, action: Callable[[], None], skip: tuple[str, ...] = ()) -> None:
        self.lines, self._n, self._action, self._skip = 0, n, action, skip

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith("container.py") or frame.f_code.co_name in self._skip:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._n:
                self._action()
        return self._trace

    def __enter__(self) -> "AtLine":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def lines_of_a_run(path: Path, skip: tuple[str, ...] = ()) -> int:
    with AtLine(-1, lambda: None, skip) as counter:
        write(path)
    return counter.lines


def kill_points(total: int) -> Iterator[int]:
    yield from range(1, total + 1, 9)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """kill -9: the target is the old file or the new one; the next run completes it, byte for byte, computing only what is missing."""
    total = lines_of_a_run(tmp_path / "whole.gguf")
    whole, old = (tmp_path / "whole.gguf").read_bytes(), b"the old file"
    reused = 0
    for n in kill_points(total):
        target = tmp_path / "model.gguf"
        target.write_bytes(old)

        def work(n: int = n, target: Path = target) -> None:
            with AtLine(n, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                write(target, overwrite=True, key="k", resume=True)

        status = in_child(work)
        assert status in (0, -signal.SIGKILL)
        assert target.read_bytes() in (old, whole), f"killed at line {n} of {total}"
        if status != 0:
            reused += 3 - len(write(target, overwrite=True, key="k", resume=True))
        assert target.read_bytes() == whole, f"resumed after a kill at line {n} of {total}"
        assert leftovers(tmp_path, "whole.gguf", "model.gguf") == []
    assert reused > total // 9 // 2  # later kills find finished matrices


def test_interrupted_at_any_moment(tmp_path: Path) -> None:
    """Ctrl-C: nothing is left behind and the old file stays (cleaning up itself is not interrupted)."""
    cleaning = ("_close", "close", "_remove", "_remove_unless_in_use", "__exit__")
    total = lines_of_a_run(tmp_path / "whole.gguf", cleaning)
    whole, old = (tmp_path / "whole.gguf").read_bytes(), b"the old file"
    target = tmp_path / "model.gguf"

    def interrupt() -> None:
        raise KeyboardInterrupt

    for n in kill_points(total):
        target.write_bytes(old)
        with pytest.raises(KeyboardInterrupt), AtLine(n, interrupt, cleaning):
            write(target, overwrite=True)
        assert target.read_bytes() in (old, whole)
        assert leftovers(tmp_path, "whole.gguf", "model.gguf") == [], f"interrupted at line {n} of {total}"


def stop_after(path: Path, matrices: int, **options: Any) -> None:
    with pytest.raises(RuntimeError), ContainerWriter(path, "llama", resume=True, **options) as out:
        for layer in range(matrices):
            out.add_quantized(
                f"blk.{layer}.ffn_up.weight", packed(70, 8, 2 + layer, layer), rotation="hartley-hadamard", seed=2**64 - 1 - layer
            )
        raise RuntimeError


def test_only_the_same_conversion_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    stop_after(path, 1, key="two bits")
    assert len(write(path, key="three bits", resume=True)) == 3
    path.unlink()
    stop_after(path, 1, key="two bits")
    assert len(write(path, key="two bits")) == 3  # not asked to resume
    path.unlink()
    stop_after(path, 1, key="two bits")
    monkeypatch.setattr(container, "__version__", "another release")  # its encoder may choose other codes
    assert len(write(path, key="two bits", resume=True)) == 3


@pytest.mark.parametrize("damage", ["data", "journal", "cut journal", "cut data"])
def test_damaged_leftovers_are_computed_again(tmp_path: Path, model: Path, damage: str) -> None:
    path = tmp_path / "m.gguf"
    stop_after(path, 1, key="k")
    spool, journal = tmp_path / ".m.gguf.partial", tmp_path / ".m.gguf.partial.journal"
    victim = journal if "journal" in damage else spool
    content = bytearray(victim.read_bytes())
    if damage.startswith("cut"):
        del content[-1]
    else:
        content[-20] ^= 1
    victim.write_bytes(content)
    assert len(write(path, key="k", resume=True)) == 3
    assert path.read_bytes() == model.read_bytes()


# --- verify and describe ---------------------------------------------------------------------------------------------------------


def test_a_whole_file_verifies(model: Path) -> None:
    result = verify(model)
    assert result.ok and result.checksummed == result.planes == 13 and result.size == model.stat().st_size


def test_every_flipped_byte_is_found_and_named(model: Path) -> None:
    file = _core.GgufFile(model)
    good, data_offset, places = model.read_bytes(), file.data_offset, file.places()
    del file
    random = np.random.default_rng(5)
    for at in [*random.integers(0, data_offset, 150), *random.integers(data_offset, len(good), 300)]:
        bad = bytearray(good)
        bad[at] ^= 1 << int(random.integers(8))
        model.write_bytes(bad)
        result = verify(model)
        assert not result.ok, f"byte {at}"
        owner = [name for name, offset, size in places if offset <= at < offset + size]
        text = " ".join(result.problems)
        if owner:
            assert f"tensor {owner[0]}: its data is damaged" in text
        elif at >= data_offset:
            assert "padding after" in text


def test_missing_and_extra_bytes_are_found(model: Path) -> None:
    good = model.read_bytes()
    model.write_bytes(good + b"\0")
    assert verify(model).problems == ["end of file: 1 bytes more than the tensors need"]
    model.write_bytes(good[:-64])
    assert "reach past the end of the data" in verify(model).problems[0]
    model.write_bytes(b"")
    assert "the file ends inside the magic number" in verify(model).problems[0]
    with pytest.raises(OSError, match="No such file"):
        verify(model.with_name("none.gguf"))


def test_a_file_without_checksums_says_so(tmp_path: Path) -> None:
    path = tmp_path / "plain.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = verify(path)
    assert result.ok and result.checksummed == 0 and result.tensors == 1


def test_describe(model: Path) -> None:
    summary = describe(model)
    assert [(t.name, t.type, t.shape) for t in summary.tensors] == [
        ("output_norm.weight", "F32", (8,)),
        ("blk.0.ffn_up.weight", "TQN2", (70, 8)),
        ("blk.1.ffn_up.weight", "TQN3", (70, 8)),
        ("blk.2.ffn_up.weight", "TQN4", (70, 8)),
    ]
    planes = 128 * 2 + 32
    assert [t.bytes for t in summary.tensors] == [32, 256 + planes, 384 + planes + 71 * 4 + 2 * 4, 512 + planes]
    assert summary.parameters == 8 + 3 * 560 and summary.outliers == 2 and summary.size == model.stat().st_size
    assert summary.bits_per_weight == 8 * summary.tensor_bytes / summary.parameters
