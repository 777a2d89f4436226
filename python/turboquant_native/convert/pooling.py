"""How an embedding model makes one vector of a text: what sentence-transformers' files and GGUF's keys say of it, as keys of our files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.errors import ConvertError
from ..common.files import is_present, read_json, read_text
from .fields import FLAG, GGUF_FIELDS, checked, refused, shown
from .heads import RANK_POOLING

NORMALIZE_KEY = "turboquant.embedding_normalize"
_MEAN, _CLS, _LAST = 1, 2, 3  # GGUF's numbers
_MODES = {"mean": _MEAN, "mean_tokens": _MEAN, "cls": _CLS, "cls_token": _CLS, "lasttoken": _LAST}


def embedding_keys_of_folder(folder: Path) -> dict[str, Any]:
    """{"pooling_type": number, NORMALIZE_KEY: True} as far as a folder says; ConvertError for steps that the engine does not have."""
    path = folder / "modules.json"
    if not is_present(path):
        single = folder / "1_Pooling" / "config.json"
        return {"pooling_type": _pooling(single)} if is_present(single) else {}
    keys: dict[str, Any] = {}
    for module in _modules(path):
        kind, place = str(module.get("type")).rpartition(".")[2], module.get("path")
        if kind == "Pooling":
            if not isinstance(place, str) or Path(place).name != place:
                raise refused(str(path), "the path of Pooling", place, "a folder beside it")
            keys["pooling_type"] = _pooling(folder / place / "config.json")
        elif kind == "Normalize":
            keys[NORMALIZE_KEY] = True
        elif kind != "Transformer":
            raise ConvertError(f"{path}: the module {shown(kind)} is not supported (supported: Transformer, Pooling, Normalize)")
    return keys


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: cannot be read: {error}") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ConvertError(f"{path}: expected a list of objects")
    return modules


def _pooling(path: Path) -> int:
    """The pooling of a Pooling module: today's `pooling_mode` or yesterday's flags, of which one must be set."""
    config = read_json(path)
    modes = [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else []
    flags = {name: value for name, value in config.items() if name.startswith("pooling_mode_")}
    flags = checked(str(path), dict.fromkeys(flags, FLAG), flags)
    modes = modes or [name.removeprefix("pooling_mode_") for name, value in flags.items() if value] or ["mean"]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise refused(str(path), "the pooling mode", " and ".join(modes), "one of mean, cls, lasttoken")
    return _MODES[modes[0]]


def embedding_keys_of_gguf(origin: str, architecture: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """The same of a GGUF file's metadata."""
    names = {f"{architecture}.pooling_type": GGUF_FIELDS["pooling_type"], NORMALIZE_KEY: FLAG}
    found = checked(origin, names, {name: metadata[name] for name in names if name in metadata})
    found = {name: value for name, value in found.items() if value != RANK_POOLING}  # of a head, not of embeddings
    return {name.removeprefix(f"{architecture}."): value for name, value in found.items()}
