"""Models from the Hugging Face hub: a ready file, or safetensors that are converted once."""

import fnmatch
import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from ..common.errors import listing
from ..common.files import file_state, printable
from ..common.journal import only_one_process

logger = logging.getLogger(__name__)

_SOURCE_KEY = "turboquant.source"  # of a file in the cache: the state of the folder that it was made of
_MAX_READABLE = 120  # bytes of a name's readable part; a file system allows 255 with everything that stands beside the file


def find_file(repo_id: str, pattern: str, **options: Any) -> str:
    """Downloads the one file of a repository that a name or glob matches; ValueError when none or several do.

    A plain name asks the hub for nothing else, so that a cached file opens without a network.
    """
    from huggingface_hub import HfApi, hf_hub_download

    if not any(character in pattern for character in "*?["):
        return str(hf_hub_download(repo_id, pattern, **options))
    names = HfApi().list_repo_files(repo_id, revision=options.get("revision"))
    matches = [name for name in names if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(Path(name).name, pattern)]
    if len(matches) != 1:
        found = listing(matches or [name for name in names if name.endswith(".gguf")])
        raise ValueError(f"{pattern!r} matches {len(matches)} files of {repo_id}, expected one of: {found or 'no GGUF files'}")
    return str(hf_hub_download(repo_id, matches[0], **options))


def converted(repo_id: str, bits: int, cache_dir: str | None = None, revision: str | None = None) -> str:
    """The TQN file of a safetensors repository or folder, made on first use and kept in the cache.

    A folder's is made again when a file of it changed. Processes that ask for the same at the same time wait for the first.
    """
    from huggingface_hub.constants import HF_HOME

    cache = Path(cache_dir or HF_HOME) / "turboquant_native"
    folder = Path(repo_id).resolve() if Path(repo_id).is_dir() else None
    target = cache / cached_name(repo_id if folder is None else folder, bits, revision)
    source = None if folder is None else _state_of(folder)
    if not _is_current(target, source):
        cache.mkdir(parents=True, exist_ok=True)
        with only_one_process(target):
            if not _is_current(target, source):
                _convert(repo_id, bits, target, cache_dir, revision, source)
    return str(target)


def cached_name(model: str | Path, bits: int, revision: str | None) -> str:
    """The name of a model's file in the cache: readable, of bounded length, another for every other model, revision and width.

    model: a hub id, or the absolute path of a folder.
    """
    kind = "folder" if isinstance(model, Path) else "hub"
    parts = [kind.encode(), os.fsencode(model), os.fsencode(revision or ""), str(bits).encode()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
    words = [*(model.parts[1:] if isinstance(model, Path) else model.split("/")), *([revision] if revision else [])]
    readable = re.sub(r"[^A-Za-z0-9._-]", "-", "--".join(words))[-_MAX_READABLE:].lstrip(".-")
    return f"{readable}--{bits}bit-{digest}.gguf"


def _state_of(folder: Path) -> str:
    """What changes with any file that a conversion reads, also when an older one is put in its place."""
    from ..convert.sources.model_files import model_files

    states = [(path.name, *file_state(path), path.stat().st_ctime_ns) for path in model_files(folder) if path.exists()]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def _is_current(target: Path, source: str | None) -> bool:
    """Whether the file is there, and made of what the folder (None: a repository, which is converted once) holds now."""
    from .. import _core

    if not target.is_file():
        return False
    try:
        return source is None or _core.GgufFile(target, validate=False).metadata.get(_SOURCE_KEY) == source
    except (_core.FormatError, _core.UnsupportedError):
        return False


def _convert(repo_id: str, bits: int, target: Path, cache_dir: str | None, revision: str | None, source: str | None) -> None:
    from ..convert.conversion import Options, make_plan, plain_rounding, write_model
    from ..convert.sources import open_source

    model = open_source(repo_id, cache_dir, revision)
    logger.warning("converting %s to %d bits, once: %s", printable(repo_id), bits, printable(target))
    write_model(
        model,
        make_plan(model, Options(bits=bits)),
        target,
        rounder=plain_rounding(),
        overwrite=True,
        resume=True,
        quiet=True,
        extra_metadata={_SOURCE_KEY: source} if source else None,
    )
