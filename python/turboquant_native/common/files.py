"""Files that come from elsewhere: opened only where they are ordinary files, and told apart from what stood there before."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from .errors import ConvertError

FileState = tuple[int, int, int, int]  # device, inode, size in bytes, time of the last change of its content in ns
MAX_JSON_BYTES = 256 << 20  # the largest tokenizer.json in use are a tenth of it


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text that every stream can take: bytes that are no UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_state(path: Path) -> FileState:
    """What changes when somebody replaces a file or writes to it."""
    info = path.stat()
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def is_present(path: Path) -> bool:
    """Whether there is an ordinary file; ConvertError where something else has its name: a FIFO would be waited for without end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise ConvertError(f"{path}: is a link to {os.readlink(path)}, which does not exist") from None
        return False
    except OSError as error:  # a name too long, a link to itself, no permission
        raise ConvertError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise ConvertError(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}, expected a file")
    return True


def read_text(path: Path) -> str:
    """The text of a file; ConvertError names it."""
    if not is_present(path):
        raise ConvertError(f"{path}: no such file")
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ConvertError(f"{path}: has {size} bytes, expected at most {MAX_JSON_BYTES}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path}: cannot be read: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ConvertError names the file and the place."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConvertError(f"{path}: holds no JSON object")
    return content


def read_optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file."""
    return read_json(path) if is_present(path) else {}
