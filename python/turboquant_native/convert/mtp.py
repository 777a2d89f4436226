"""Layers that predict further tokens (MTP, "nextn"): stored behind a model's own, and no part of what we run."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..common.errors import listing

_NEXTN = re.compile(r"blk\.(\d+)\.nextn\.")
_BLOCK = re.compile(r"blk\.(\d+)\.")


def main_layers(arch: str, metadata: Mapping[str, Any], names: Iterable[str]) -> int | None:
    """The number of a GGUF file's layers before those; None where it has no such layers, or its keys are no numbers.

    llama.cpp's block_count has them in it. A file may have the keys without the tensors.
    """
    count, more = metadata.get(f"{arch}.block_count"), metadata.get(f"{arch}.nextn_predict_layers", 0)
    names = list(names)
    if any(isinstance(n, bool) or not isinstance(n, int) for n in (count, more)):
        return None
    if marked := [int(match[1]) for name in names if (match := _NEXTN.match(name))]:
        return min(marked)
    held = max((int(match[1]) + 1 for name in names if (match := _BLOCK.match(name))), default=0)
    return count - more if 0 < more < count and held <= count - more else None


def without_mtp(arch: str, metadata: Mapping[str, Any], n_layers: int) -> dict[str, Any]:
    """The metadata of the model alone: what it says of each layer, it says of these."""
    count = metadata[f"{arch}.block_count"]

    def cut(value: Any) -> Any:
        return value[:n_layers] if isinstance(value, list | tuple) and len(value) == count else value

    own = {key: cut(value) if key.startswith(f"{arch}.") else value for key, value in metadata.items()}
    return own | {f"{arch}.block_count": n_layers}


def is_mtp(name: str, n_layers: int | None) -> bool:
    """Whether a tensor belongs to such layers, which begin at n_layers."""
    match = _BLOCK.match(name)
    return n_layers is not None and match is not None and int(match[1]) >= n_layers


def note_of(names: list[str]) -> str:
    """For the user."""
    return f"left out, since further tokens are not predicted at once (MTP): {listing(names, 2)}"
