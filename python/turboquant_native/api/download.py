"""Files by HTTP, or from another folder: resumed where they stopped, checked against their SHA-256, renamed when they are whole."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tqdm import tqdm

from .. import __version__

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


def fetch(url: str, target: Path, sha256: str, size: int, title: str | None = None) -> None:
    """Downloads (or copies a path) to `target`; with a title a bar on standard error shows bytes, rate, time left.

    What arrived before an interruption is kept in `.NAME.part` and goes on from there, where the server can.
    Raises OSError (network, disk; ConnectionError where the server refuses) and ValueError for a file that is not the promised one.
    """
    part = target.with_name(f".{target.name}.part")
    _check_disk(target, size - (part.stat().st_size if part.exists() else 0))
    with open(part, "a+b") as stream:
        stream.seek(0)
        digest, have = _digest(stream, size)
        with _opened(url, have) as (source, first):
            if first != have:  # the server begins anew
                digest, have = hashlib.sha256(), first
                stream.truncate(first)
            _copy(source, stream, digest, have, size, title)
        stream.flush()
        os.fsync(stream.fileno())
        arrived = stream.tell()
    if arrived < size:
        raise ConnectionError(f"{url}: {arrived} of {size} bytes arrived; the same command goes on from there")
    if arrived > size or digest.hexdigest() != sha256:
        part.unlink()  # going on from it would not mend it
        raise ValueError(f"{url}: {arrived} bytes with SHA-256 {digest.hexdigest()}, promised were {size} with {sha256}")
    os.replace(part, target)


def fetch_small(url: str, limit: int) -> bytes:
    """A small file, in memory; ValueError beyond `limit` bytes."""
    with _opened(url, 0) as (source, _):
        data = source.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{url}: more than {limit} bytes")
    return bytes(data)


def _check_disk(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise OSError(f"{target.parent}: {free / 1e6:.0f} MB are free on this disk, {needed / 1e6:.0f} are needed")


def _digest(stream: IO[bytes], size: int) -> tuple[Any, int]:
    """SHA-256 and length of what is there already; what is longer than the file shall be is dropped."""
    digest, have = hashlib.sha256(), 0
    while block := stream.read(_BLOCK):
        digest.update(block)
        have += len(block)
    if have > size:
        stream.truncate(0)
        return hashlib.sha256(), 0
    return digest, have


@contextmanager
def _opened(url: str, first: int) -> Iterator[tuple[Any, int]]:
    """(stream, position of its first byte): `first`, or 0 where the server knows no ranges."""
    if urlsplit(url).scheme not in ("http", "https"):
        with open(url, "rb") as file:
            file.seek(first)
            yield file, first
        return
    headers = {"User-Agent": f"turboquant-native/{__version__}"} | ({"Range": f"bytes={first}-"} if first else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as answer:
            yield answer, first if answer.status == 206 else 0
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing behind `first`: all of it is there
            yield io.BytesIO(), first
            return
        raise ConnectionError(f"{url}: the server answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise ConnectionError(f"{url}: {error.reason}") from None
    except http.client.HTTPException as error:
        raise ConnectionError(f"{url}: {type(error).__name__}: {error}") from None


def _copy(source: Any, target: IO[bytes], digest: Any, have: int, size: int, title: str | None) -> None:
    with tqdm(total=size, initial=have, desc=title, unit="B", unit_scale=True, disable=title is None) as bar:
        while have <= size and (block := source.read(_BLOCK)):
            target.write(block)
            digest.update(block)
            have += len(block)
            bar.update(len(block))
