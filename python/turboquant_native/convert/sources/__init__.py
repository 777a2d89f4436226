"""Models that can be converted: a Hugging Face folder, a hub id, a GGUF file."""

from pathlib import Path

from ...common.errors import ConvertError
from .base import Source

__all__ = ["Source", "open_source"]


def open_source(model: str, cache_dir: str | None = None, revision: str | None = None) -> Source:
    """Open what `model` names.

    Args:
        model: a folder with config.json, a .gguf file, or a hub id such as "org/name" (downloaded once into the hub's cache).
        cache_dir: where the hub's files go; None: the hub's own cache.
        revision: of a hub id.
    Raises ConvertError naming what is wrong.
    """
    path = Path(model)
    if path.is_dir():
        from .huggingface import HuggingFaceSource

        return HuggingFaceSource(path)
    if path.is_file():
        from .gguf_file import GgufSource

        return GgufSource(path)
    if path.suffix in (".gguf", ".safetensors") or path.is_absolute() or model.count("/") != 1 or model.startswith("."):
        raise ConvertError(f"{model}: no such file or folder")
    from .hub import download
    from .huggingface import HuggingFaceSource

    return HuggingFaceSource(download(model, cache_dir, revision), name=model.split("/")[1])
