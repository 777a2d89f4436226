"""Models that can be converted: a Hugging Face folder, a hub id, a GGUF file."""

from pathlib import Path

from ...common.errors import ConvertError
from .base import Source

__all__ = ["Source", "open_source"]


def open_source(model: str, cache_dir: str | None = None, revision: str | None = None, needs_tokenizer: bool = True) -> Source:
    """Open what `model` names.

    Args:
        model: a folder with config.json, a .gguf file, or a hub id such as "org/name" (downloaded once into the hub's cache).
        cache_dir: where the hub's files go; None: the hub's own cache.
        revision: of a hub id.
        needs_tokenizer: refuse a model without a tokenizer, from whose file no text could be made.
    Raises ConvertError naming what is wrong.
    """
    source = _open(model, cache_dir, revision)
    if needs_tokenizer and source.tokenizer is None:
        wanted = "tokenizer.ggml.tokens" if source.path.is_file() else "tokenizer.json and no tokenizer.model"
        raise ConvertError(f"{source.path}: has no {wanted}; put the tokenizer of the original model beside its weights")
    return source


def _open(model: str, cache_dir: str | None, revision: str | None) -> Source:
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
