"""Models from the Hugging Face hub: a ready file, or safetensors that are converted once."""

import fnmatch
from pathlib import Path
from typing import Any


def find_file(repo_id: str, pattern: str, **options: Any) -> str:
    """Downloads the one GGUF file of a repository that matches a glob; ValueError when none or several do."""
    from huggingface_hub import HfApi, hf_hub_download

    names = HfApi().list_repo_files(repo_id, revision=options.get("revision"))
    matches = [name for name in names if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(Path(name).name, pattern)]
    if len(matches) != 1:
        found = ", ".join(matches) if matches else "it has " + ", ".join(name for name in names if name.endswith(".gguf"))
        raise ValueError(f"{pattern!r} matches {len(matches)} files of {repo_id}, expected one ({found})")
    return str(hf_hub_download(repo_id, matches[0], **options))


def converted(repo_id: str, bits: int, cache_dir: str | None = None) -> str:
    """The TQN file of a safetensors repository, made on first use and kept in the cache."""
    from huggingface_hub.constants import HF_HOME

    from .convert_hf_to_tq import convert

    folder = Path(cache_dir) if cache_dir else Path(HF_HOME).parent / "turboquant_native"
    target = folder / f"{repo_id.replace('/', '--')}-{bits}bit.gguf"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        convert(repo_id, target, bits=bits)
    return str(target)
