"""Small JSON files: read with a named error, written beside the target, synced, renamed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """The file holds the old value or the new one, never half of one. Its folder is made; only its owner may read what is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(value, stream, ensure_ascii=False, indent=1)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def read_object(path: Path, limit: int = 1 << 24) -> dict[str, Any]:
    """A JSON object from a regular file of at most `limit` bytes; ValueError names the file and what is wrong."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is no regular file")
    if path.stat().st_size > limit:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; at most {limit} are read")
    return parse_object(path.read_bytes(), str(path))


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object from bytes; ValueError names what `name` says it is."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: holds a JSON {type(value).__name__}, not an object")
    return value
