"""Results of long work: kept as they come, so that a killed run goes on behind the last one, and made once by processes that share them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .system import OPEN_PLAIN_FILE, lock_file


@contextmanager
def only_one_process(path: Path) -> Iterator[None]:
    """For one process at a time: the others that need the file `path` wait until it is made (or its maker has died)."""
    fd = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | OPEN_PLAIN_FILE, 0o644)
    try:
        lock_file(fd, wait=True)
        yield
    finally:
        os.close(fd)


class Journal:
    """Arrays of one shape, one after the other in a file. A record that a kill cut short does not count."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._path, self._shape, self._dtype = path, shape, np.dtype(dtype)
        self._record = int(np.prod(shape)) * self._dtype.itemsize

    def __len__(self) -> int:
        return self._path.stat().st_size // self._record if self._path.exists() else 0

    def put(self, index: int, records: NDArray[Any]) -> None:
        """(n, *shape), the first in place `index`, behind or over those that are there."""
        assert index <= len(self) and records.shape[1:] == self._shape and records.dtype == self._dtype
        with open(self._path, "r+b" if self._path.exists() else "wb") as stream:
            stream.seek(index * self._record)
            stream.write(np.ascontiguousarray(records).tobytes())

    def read(self) -> NDArray[Any]:
        """(records, *shape)"""
        data = self._path.read_bytes()[: len(self) * self._record] if self._path.exists() else b""
        return np.frombuffer(data, self._dtype).reshape(-1, *self._shape).copy()
