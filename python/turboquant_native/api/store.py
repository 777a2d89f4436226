"""The models that are kept on this machine, by name.

    ROOT/models/NAME/LAST.gguf    the file (NAME percent-encoded, so that no two names share a folder; LAST: what follows its slash)
    ROOT/models/NAME/model.json   {"name", "source", "created", "origin"}; a model without it is not finished and does not count
    ROOT/run/PID.json             servers that run (running.py)

ROOT is TQN_HOME, else turboquant-native in XDG_DATA_HOME, else in ~/.local/share.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from ..common.json_files import read_object, write_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?(:[A-Za-z0-9][A-Za-z0-9._-]*)?")
_MAX_NAME = 96  # leaves room in a file name for what is encoded


@dataclass(frozen=True)
class Entry:
    """A model that is kept. source: where it came from, as text; created: seconds since 1970; size: bytes."""

    name: str
    path: Path
    size: int
    source: str
    created: float
    origin: dict[str, Any]  # what tells whether the source has changed since; empty where that is not asked

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "path": str(self.path)}


def home() -> Path:
    """The folder of everything that is kept."""
    if chosen := os.environ.get("TQN_HOME"):
        return Path(chosen).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "turboquant-native"


def check_name(name: str) -> str:
    """The name; ValueError when no model can be called so. Names look like `smollm2`, `org/name` or `org/name:3bit`."""
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a model: letters, digits, . _ -, one / and one :, at most {_MAX_NAME} characters")
    return name


class Store:
    """The models below a folder. Several processes may use it at once."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = home() if root is None else root
        self._models = self.root / "models"

    def __iter__(self) -> Iterator[Entry]:
        """By name."""
        found = [self._read(folder) for folder in self._models.iterdir()] if self._models.is_dir() else []
        return iter(sorted((entry for entry in found if entry is not None), key=lambda entry: entry.name))

    def find(self, name: str) -> Entry | None:
        """The model of this name, None where there is none."""
        return self._read(self._folder(name)) if _NAME.fullmatch(name) else None

    def add(
        self, name: str, source: str, make: Callable[[Path], object], origin: dict[str, Any] | None = None, replace: bool = False
    ) -> Entry:
        """Makes a model unless it is there already; of several processes one makes it and the others wait.

        Args:
            make: writes the file at the path it is given; what it leaves half done beside it, it may find again.
            origin: of the source; a model of another origin is made again.
            replace: make it also where it is there.
        """
        folder = self._folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.time()
        with FileLock(folder / ".lock"):
            found = self._read(folder)
            if found is not None and found.origin == (origin or {}) and not (replace and found.created < started):
                return found
            make(folder / _file_name(name))
            write_json(folder / "model.json", {"name": name, "source": source, "created": time.time(), "origin": origin or {}})
        made = self._read(folder)
        if made is None:
            raise ValueError(f"{folder / _file_name(name)}: was not made")
        return made

    def remove(self, name: str) -> int:
        """Deletes a model, also one that is half made; the bytes that this frees. ValueError where there is none."""
        folder = self._folder(name)
        if not folder.is_dir():
            raise ValueError(f"no model is called {name!r}; `tqn ls` lists those that are kept")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        (folder / "model.json").unlink(missing_ok=True)  # first: from now on it does not count
        shutil.rmtree(folder)
        return size

    def _folder(self, name: str) -> Path:
        return self._models / quote(check_name(name), safe="")

    def _read(self, folder: Path) -> Entry | None:
        """The model of a folder; None for one that is not finished or that somebody else put there."""
        try:
            described = read_object(folder / "model.json")
        except (OSError, ValueError):
            return None
        name, source, created, origin = (described.get(key) for key in ("name", "source", "created", "origin"))
        whole = isinstance(name, str) and isinstance(source, str) and isinstance(created, (int, float)) and isinstance(origin, dict)
        if not whole or not _NAME.fullmatch(str(name)) or self._folder(str(name)) != folder:
            return None
        path = folder / _file_name(str(name))
        if not path.is_file():
            return None
        return Entry(str(name), path, path.stat().st_size, str(source), float(created or 0), dict(origin or {}))


def _file_name(name: str) -> str:
    """Of a model's file: what programs show that know nothing of names."""
    return name.rpartition("/")[2].replace(":", "-") + ".gguf"
