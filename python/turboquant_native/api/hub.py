"""Models from the Hugging Face hub: a ready file, or safetensors that are converted once."""

import fnmatch
import logging
from pathlib import Path
from typing import Any

from ..common.errors import listing

logger = logging.getLogger(__name__)


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
    """The TQN file of a safetensors repository or folder, made on first use and kept in the cache."""
    from huggingface_hub.constants import HF_HOME

    from ..convert.conversion import Options, make_plan, plain_rounding, write_model
    from ..convert.sources import open_source

    folder = Path(cache_dir or HF_HOME) / "turboquant_native"
    local = Path(repo_id).resolve() if Path(repo_id).is_dir() else None
    parts = local.parts[1:] if local else repo_id.split("/")
    target = folder / "--".join([*parts, *([revision] if revision else []), f"{bits}bit.gguf"])
    if not target.exists() or (local and _is_newer(local, target)):
        folder.mkdir(parents=True, exist_ok=True)
        source = open_source(repo_id, cache_dir, revision)
        logger.warning("converting %s to %d bits, once: %s", repo_id, bits, target)
        plan = make_plan(source, Options(bits=bits))
        write_model(source, plan, target, rounder=plain_rounding(), overwrite=True, resume=True, quiet=True)
    return str(target)


def _is_newer(folder: Path, file: Path) -> bool:
    return any(path.stat().st_mtime > file.stat().st_mtime for path in folder.iterdir())
