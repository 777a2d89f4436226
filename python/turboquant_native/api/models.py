"""From what a user calls a model to a file that can be run: a file, a folder, a kept name, a name of the index, `org/name` of the hub."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..common.errors import ConvertError, listing
from . import download, model_index
from .store import Entry, Store

# Converts what `tqn convert` takes (a folder, a hub id) to the file, with further options of that command.
Converter = Callable[[str, Path, Sequence[str]], None]


class Models:
    """Finds models, and fetches or makes those that are not here.

    Args:
        convert: makes a TQN file of a source.
        index: place of the index of converted models; None: the configured one.
    """

    def __init__(self, convert: Converter, store: Store | None = None, index: str | None = None) -> None:
        self._convert, self.store, self._index = convert, store or Store(), index

    def path(self, model: str) -> Path:
        """The file to run; what is not here is fetched or converted first, and kept. ValueError, OSError or ConvertError say why not."""
        place = Path(model)
        if place.is_dir():
            return self._folder(place)
        if place.exists() or place.suffix == ".gguf" or place.is_absolute() or model.startswith("."):
            if not place.is_file():
                raise (
                    ValueError(f"{model}: is no regular file") if place.exists() else FileNotFoundError(f"{model}: no such file or folder")
                )
            return place
        found = self._kept(model)
        return found.path if found else self.pull(model).path

    def pull(self, name: str, options: Sequence[str] = (), again: bool = False) -> Entry:
        """Fetches a name of the index, or `org/name[:tag]` of the hub: its TQN file where it has one, else converted here, once.

        tag: a part of the file's name, or 3bit, 2.5bpw for the conversion. options: of `tqn convert`, for a conversion. again: also where
        it is kept already.
        """
        listed = model_index.find(name, model_index.load(self._index))
        if listed is not None:
            make = partial(_from_index, listed)
            return self.store.add(listed.name, listed.url, make, {"sha256": listed.sha256}, again)
        repo_id, _, tag = name.partition(":")
        if repo_id.count("/") != 1:
            raise ValueError(
                f"{name}: no such file or folder, no kept model (tqn ls) and no name of the index; "
                "org/name takes a model from the Hugging Face hub"
            )
        file = _tqn_file(repo_id, tag)
        if file is not None:
            return self.store.add(name, f"{repo_id}/{file}", lambda path: _from_hub(repo_id, file, path), None, again)
        widths = [*_widths(name, tag), *options]
        return self.store.add(name, repo_id, lambda path: self._convert(repo_id, path, widths), None, again)

    def _kept(self, name: str) -> Entry | None:
        """By its name, or by the name without its tag where only one model has it."""
        tagged = [entry for entry in self.store if entry.name.startswith(f"{name}:")]
        return self.store.find(name) or (tagged[0] if len(tagged) == 1 else None)

    def _folder(self, folder: Path) -> Path:
        """A folder's only GGUF file, or what its safetensors were converted to; again when one of its files has changed."""
        files = sorted(folder.glob("*.gguf"))
        if not (folder / "config.json").exists():
            if len(files) == 1:
                return files[0]
            raise ValueError(f"{folder}: has no config.json, and {len(files)} GGUF files: {listing(file.name for file in files)}")
        full = str(folder.resolve())
        label = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-")[:40] or "model"
        name = f"local/{label}-{hashlib.sha256(full.encode(errors='surrogateescape')).hexdigest()[:8]}"
        return self.store.add(name, full, lambda path: self._convert(full, path, ()), _fingerprint(folder)).path


def _from_index(listed: model_index.Listed, target: Path) -> None:
    download.fetch(listed.url, target, listed.sha256, listed.size, listed.name)


def _fingerprint(folder: Path) -> dict[str, Any]:
    """Tells whether a file of the folder has changed since."""
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file())
    return {"files": hashlib.sha256(repr(files).encode()).hexdigest()}


def _widths(name: str, tag: str) -> list[str]:
    """Options of the conversion for a tag."""
    if not tag:
        return []
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)(bit|bpw)", tag):
        return ["--bits" if found[2] == "bit" else "--bpw", found[1]]
    raise ValueError(f"{name}: the repository has no TQN file with {tag!r} in its name; to convert it here write :4bit or :2.5bpw")


def _tqn_file(repo_id: str, tag: str) -> str | None:
    """The TQN file of a repository, by its name; None where it has none (with this tag), ValueError where it has several."""
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(repo_id)
    except Exception as error:  # the hub, its HTTP client and the file system each have their own
        raise ConvertError(f"{repo_id}: cannot be had from the Hugging Face hub: {_first_line(error)}") from error
    found = [name for name in names if name.endswith(".gguf") and "tqn" in name.lower() and tag.lower() in name.lower()]
    if len(found) > 1:
        raise ValueError(f"{repo_id} has several TQN files: {listing(found)}; name one by a part of its name: tqn pull {repo_id}:PART")
    return found[0] if found else None


def _from_hub(repo_id: str, file: str, target: Path) -> None:
    """Downloads a TQN file, with the hub's own progress bar, resumed where it stopped; it must be whole."""
    from huggingface_hub import hf_hub_download

    from ..convert.inspection import verify

    folder = target.parent / ".download"
    try:
        path = hf_hub_download(repo_id, file, local_dir=folder)
    except Exception as error:
        raise ConvertError(f"{repo_id}: {file} cannot be downloaded: {_first_line(error)}") from error
    result = verify(path)
    if not result.ok:
        shutil.rmtree(folder)
        raise ValueError(f"{repo_id}: {file} is damaged: {result.problems[0]}")
    shutil.move(path, target)
    shutil.rmtree(folder)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
