"""The text that a model is calibrated on: drawn from the model, of Python's own, of the user's; how it becomes windows of tokens."""

from pathlib import Path

import numpy as np
import pytest

from tiny_models import save_llama
from turboquant_native import _core
from turboquant_native.calibrate import text as calibration_text
from turboquant_native.calibrate.text import cut_windows, default_windows, file_windows
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source
from turboquant_native.engine import long_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model") / "tied")


def test_default_text_is_deterministic_and_mixed(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder), None, None)
    write_model(source, make_plan(source, Options(outtype="f32")), tmp_path / "f32.gguf")
    model = _core.Model(str(tmp_path / "f32.gguf"), precision="f32", threads=1)
    windows = default_windows(model, 8, 16, seed=3)
    assert windows.shape == (8, 16) and windows.dtype == np.int32
    assert np.array_equal(windows, default_windows(model, 8, 16, seed=3))
    assert not np.array_equal(windows, default_windows(model, 8, 16, seed=4))
    short = tmp_path / "short.txt"
    short.write_text("a")
    with pytest.raises(ConvertError, match="at least one window"):
        file_windows(model, short, 2, 16)


def test_sampling_goes_on_at_the_batch_it_was_in(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(folder), None, None)
    write_model(source, make_plan(source, Options(outtype="f32")), tmp_path / "m.gguf")
    model = _core.Model(str(tmp_path / "m.gguf"), precision="f32", threads=1)
    monkeypatch.setattr(calibration_text, "_SLOTS", 2)
    for has_bos in (True, False):
        kept = tmp_path / f"kept{has_bos}"
        if not has_bos:
            monkeypatch.setattr(calibration_text, "vocabulary_of", lambda model: None)
        whole = calibration_text.sample(model, 5, 12, 7)
        draw_batch, batches = calibration_text._sample_batch, []

        def fails_in_the_second(*args, draw_batch=draw_batch, batches=batches):
            batches.append(len(args[1]))
            if len(batches) == 2:
                raise ZeroDivisionError
            return draw_batch(*args)

        monkeypatch.setattr(calibration_text, "_sample_batch", fails_in_the_second)
        with pytest.raises(ZeroDivisionError):
            calibration_text.sample(model, 5, 12, 7, checkpoint=kept)
        with open(kept, "ab") as stream:
            stream.write(b"torn" * 13)  # a record and a bit of the second batch
        np.testing.assert_array_equal(calibration_text.sample(model, 5, 12, 7, checkpoint=kept), whole)
        assert batches == [2, 2, 2, 1]
        monkeypatch.setattr(calibration_text, "_sample_batch", draw_batch)


def test_windows_are_spread_over_the_text() -> None:
    class Words:
        add_bos, bos = False, -1

        def encode(self, text: str) -> list[int]:
            return [int(word) for word in text.split()]

    cut = cut_windows(Words(), " ".join(map(str, range(100))), 4, 10)
    assert cut[0, 0] == 0 and cut[-1, -1] == 99 and (np.diff(cut, axis=1) == 1).all()


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ""])
def test_long_texts_are_encoded_piece_by_piece(separator: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(long_text, "_PIECE", 40)
    pieces: list[str] = []

    class Letters:
        def encode(self, text: str) -> list[int]:
            pieces.append(text)
            return [ord(letter) for letter in text]

    for length in (0, 1, 39, 40, 41, 400):
        text = separator.join(f"word{i:03}" for i in range(100))[:length]
        pieces.clear()
        assert long_text.encode_long(Letters(), text, quiet=length == 0).tolist() == [ord(letter) for letter in text]
        assert all(len(piece) <= 40 and piece.endswith(separator) for piece in pieces[:-1])
        assert (f"reading text: 100 % of {length} characters" in capsys.readouterr().err) == (length > 40)
