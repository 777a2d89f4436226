"""The text that a model is calibrated on: sampled from the model itself and mixed with what every Python has, or the user's own."""

from __future__ import annotations

import importlib.util
import json
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.errors import ConvertError
from ..common.journal import Journal
from ..engine.long_text import encode_long
from ..engine.vocabulary import Vocabulary

Tokens = NDArray[np.int32]
SAMPLED_SHARE = 0.75  # of the default mix; the rest is half documentation, half source text of the standard library
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".jsonl")
_SLOTS = 32  # sequences sampled side by side


def default_windows(
    model: Any, windows: int, seq_len: int, seed: int, progress: Callable[[int], None] = lambda done: None, checkpoint: Path | None = None
) -> Tokens:
    """(windows, seq_len) tokens of the offline mix; the same for the same seed. `progress` is called with the windows done;
    `checkpoint`: where sampled ones are kept until all are there."""
    vocabulary = vocabulary_of(model)
    if vocabulary is None:
        return sample(model, windows, seq_len, seed, progress, checkpoint)
    library = round(windows * (1 - SAMPLED_SHARE))
    sampled = sample(model, windows - library, seq_len, seed, progress, checkpoint)
    return np.concatenate([sampled, library_windows(model, library, seq_len)])


def library_windows(model: Any, windows: int, seq_len: int) -> Tokens:
    """(windows, seq_len) tokens of every Python's documentation, then of its standard library's sources. The model has a tokenizer."""
    vocabulary = vocabulary_of(model)
    assert vocabulary is not None
    parts = [np.empty((0, seq_len), np.int32)]
    need = windows * seq_len * 8  # characters: more than enough of them for a token
    for texts, count in ((_documentation(), windows // 2), (_sources(need), windows - windows // 2)):
        if count:
            parts.append(cut_windows(vocabulary, texts, count, seq_len))
    return np.concatenate(parts)


def vocabulary_of(model: Any) -> Vocabulary | None:
    """The model's tokenizer, None where its file carries none."""
    try:
        return Vocabulary(model.file.metadata, model.config["n_vocab"])
    except ValueError:
        return None


def file_windows(model: Any, path: Path, windows: int, seq_len: int, overlap: bool = True, quiet: bool = True) -> Tokens:
    """(windows, seq_len) tokens, evenly spaced over the texts of a file or folder; fewer where they must not overlap and there is not more.
    ConvertError where there is too little. quiet: show no progress."""
    vocabulary = vocabulary_of(model)
    if vocabulary is None:
        raise ConvertError(f"--calib {path}: the model has no tokenizer to read it with")
    return cut_windows(vocabulary, "\n\n".join(_read_texts(path)), windows, seq_len, str(path), overlap, quiet)


def cut_windows(
    vocabulary: Vocabulary,
    text: str,
    windows: int,
    seq_len: int,
    what: str = "calibration text",
    overlap: bool = True,
    quiet: bool = True,
) -> Tokens:
    """Evenly spaced windows; where the text is short they overlap, or are fewer, but one at least must fit."""
    tokens = encode_long(vocabulary, text, quiet)
    if len(tokens) < seq_len:
        raise ConvertError(f"{what}: {len(tokens)} tokens, at least one window of {seq_len} is needed")
    count = windows if overlap else min(windows, len(tokens) // seq_len)
    starts = np.linspace(0, len(tokens) - seq_len, count).astype(np.int64)
    cut = np.stack([tokens[start : start + seq_len] for start in starts])
    if vocabulary.add_bos:
        cut[:, 0] = vocabulary.bos
    return cut


def _read_texts(path: Path) -> Iterator[str]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _TEXT_SUFFIXES and file.is_file())
        if not files:
            raise ConvertError(f"--calib {path}: no {', '.join(_TEXT_SUFFIXES)} files in this folder")
    elif path.is_file():
        files = [path]
    else:
        raise ConvertError(f"--calib {path}: no such file or folder")
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        yield "\n\n".join(_json_texts(file, text)) if file.suffix == ".jsonl" else text


def _json_texts(file: Path, lines: str) -> Iterator[str]:
    """The field "text" (or "content") of every line, or the line itself where it is a string."""
    for number, line in enumerate(lines.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ConvertError(f"--calib {file}: line {number} is not JSON: {error}") from None
        text = value if isinstance(value, str) else (value.get("text") or value.get("content")) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise ConvertError(f'--calib {file}: line {number} has no string under "text" or "content"')
        yield text


def _documentation() -> str:
    """The language reference that pydoc carries."""
    from pydoc_data import topics

    return "\n\n".join(topics.topics[key] for key in sorted(topics.topics))


def _sources(characters: int) -> str:
    """The openings of the standard library's modules, up to about `characters` of them."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(library.glob("*.py"))
    if not files:  # a frozen installation
        spec = importlib.util.find_spec("json")
        files = sorted(Path(spec.origin).parent.glob("*.py")) if spec and spec.origin else []
    each = max(2000, characters // max(len(files), 1))
    return "\n\n".join(file.read_text(encoding="utf-8", errors="replace")[:each] for file in files)


def sample(
    model: Any,
    windows: int,
    seq_len: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
    checkpoint: Path | None = None,
) -> Tokens:
    """(windows, seq_len) tokens drawn from the model at temperature 1, from BOS (or a random token where it has none). With
    `checkpoint`, each batch of sequences is kept in that file, and those found there are not drawn again."""
    rng = np.random.default_rng(seed)
    vocabulary = vocabulary_of(model)
    journal = None if checkpoint is None else Journal(checkpoint, (seq_len,), np.int32)
    out = np.empty((windows, seq_len), np.int32)
    for first in range(0, windows, _SLOTS):
        count = min(_SLOTS, windows - first)
        start = rng.integers(0, model.config["n_vocab"], count) if vocabulary is None or vocabulary.bos < 0 else [vocabulary.bos] * count
        if journal is not None and len(journal) >= first + count:
            out[first : first + count] = journal.read()[first : first + count]
            rng.random((seq_len - 1, count))  # what drawing them took
            continue

        def report(part: float, first: int = first, count: int = count) -> None:
            progress(first + int(part * count))

        out[first : first + count] = _sample_batch(model, np.array(start, np.int32), seq_len, rng, report)
        if journal is not None:
            journal.put(first, out[first : first + count])
    return out


def _sample_batch(model: Any, start: Tokens, seq_len: int, rng: np.random.Generator, progress: Callable[[float], None]) -> Tokens:
    count = len(start)
    slots = np.arange(count, dtype=np.int32)
    out = np.empty((count, seq_len), np.int32)
    out[:, 0] = start
    context = _core.Context(model, n_ctx=seq_len, n_slots=count, n_batch=count)
    try:
        for position in range(seq_len - 1):
            logits = context.forward(out[:, position].copy(), np.full(count, position, np.int32), slots, slots)
            out[:, position + 1] = draw(logits, rng)
            progress((position + 1) / seq_len)
    finally:
        context.close()
    return out


def draw(logits: NDArray[np.float32], rng: np.random.Generator) -> Tokens:
    """One token a row, from softmax(logits): the inverse of the cumulative distribution."""
    if not np.isfinite(logits).all():
        raise ConvertError("the model's logits are not finite: it cannot be sampled from")
    weights = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float32).cumsum(axis=1, dtype=np.float64)
    points = rng.random(len(weights)) * weights[:, -1]
    return np.array([np.searchsorted(row, point, side="right") for row, point in zip(weights, points, strict=True)], np.int32)
