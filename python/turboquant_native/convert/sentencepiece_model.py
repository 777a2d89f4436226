"""SentencePiece's tokenizer.model: as much of its protobuf as a BPE vocabulary needs, as the keys that GGUF files have for it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..common.errors import ConvertError
from ..common.files import is_present

# Numbers of fields in sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE, _BOS_ID, _EOS_ID, _ADD_DUMMY_PREFIX = 3, 41, 42, 3
_BPE = 2
_MAX_BYTES = 256 << 20


def read_sentencepiece(path: Path) -> dict[str, Any]:
    """tokenizer.ggml.* of a tokenizer.model; ConvertError where it is damaged or no BPE model."""
    if not is_present(path) or path.stat().st_size > _MAX_BYTES:
        raise ConvertError(f"{path}: expected a file of at most {_MAX_BYTES} bytes")
    try:
        return _keys(list(_fields(path.read_bytes())))
    except (IndexError, struct.error, ValueError, TypeError) as error:
        raise ConvertError(f"{path}: not a readable SentencePiece model: {error}") from None


def _keys(model: list[tuple[int, Any]]) -> dict[str, Any]:
    pieces = [dict(_fields(value)) for field, value in model if field == _PIECES]
    trainer = dict(_fields(next((value for field, value in model if field == _TRAINER), b"")))
    normalizer = dict(_fields(next((value for field, value in model if field == _NORMALIZER), b"")))
    if trainer.get(_MODEL_TYPE, 1) != _BPE:
        raise ValueError("its kind is not BPE; save the tokenizer as tokenizer.json with transformers")
    if not pieces:
        raise ValueError("it has no pieces")
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.get(_TEXT, b"").decode() for piece in pieces],
        "tokenizer.ggml.scores": [struct.unpack("<f", piece.get(_SCORE, bytes(4)))[0] for piece in pieces],
        "tokenizer.ggml.token_type": [piece.get(_KIND, 1) for piece in pieces],  # numbered as in GGUF
        "tokenizer.ggml.add_space_prefix": bool(normalizer.get(_ADD_DUMMY_PREFIX, 1)),
    }
    for name, field, default in (("bos", _BOS_ID, 1), ("eos", _EOS_ID, 2)):
        token = trainer.get(field, default)
        if token < len(pieces):  # -1, "none", is a number of ten bytes
            keys[f"tokenizer.ggml.{name}_token_id"] = token
    return keys


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message's fields: int for varints, bytes for everything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has the unknown kind {kind}")
        if size > len(data) - at:
            raise ValueError(f"a field of {size} bytes does not fit the {len(data) - at} that are left")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than ten bytes")
