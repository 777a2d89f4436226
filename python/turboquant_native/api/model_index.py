"""The index file: converted models that can be fetched by name.

    {"format": "tqn-index", "version": 1,
     "models": [{"name": "smollm2:4bit", "url": "smollm2-4bit.tqn.gguf", "sha256": "<64 hexadecimal digits>", "size": 70500000,
                 "license": "apache-2.0", "description": "SmolLM2 135M Instruct at 4.25 bits a weight"}]}

`name`, `url`, `sha256` and `size` (bytes) are required, unknown keys are ignored. A relative `url` counts from the index's own place. An
index that came over the network names only http(s) places. A name without a tag (`smollm2`) means the first model whose name begins with
it and a colon. TQN_INDEX or `--index` names the index, a path or a URL; without them the one that came with the package counts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from ..common.json_files import parse_object, read_object
from . import download
from .store import check_name

_OFFICIAL = Path(__file__).with_name("models.json")
_LIMIT = 1 << 24  # bytes of an index


@dataclass(frozen=True)
class Listed:
    """One model of an index. url: http(s), or a path."""

    name: str
    url: str
    sha256: str
    size: int
    license: str = ""
    description: str = ""


def load(place: str | None = None) -> list[Listed]:
    """The models of an index (None: TQN_INDEX, else the official one); ValueError names the entry and the field that is wrong."""
    place = place or os.environ.get("TQN_INDEX") or str(_OFFICIAL)
    described = parse_object(download.fetch_small(place, _LIMIT), place) if is_url(place) else read_object(Path(place), _LIMIT)
    if described.get("format") != "tqn-index" or described.get("version") != 1:
        raise ValueError(f'{place}: is no index of models ("format": "tqn-index", "version": 1)')
    models = described.get("models")
    if not isinstance(models, list):
        raise ValueError(f"{place}: models is no list")
    return [_listed(place, index, entry) for index, entry in enumerate(models)]


def find(name: str, models: list[Listed]) -> Listed | None:
    """The model of this name, or the first with a tag behind it."""
    exact = next((model for model in models if model.name == name), None)
    return exact or next((model for model in models if model.name.startswith(f"{name}:")), None)


def is_url(place: str) -> bool:
    """Whether a place is on the network."""
    return urlsplit(place).scheme in ("http", "https")


def _listed(place: str, index: int, entry: Any) -> Listed:
    where = f"{place}: models[{index}]"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is no object")
    texts = {key: entry.get(key, "") for key in ("name", "url", "sha256", "license", "description")}
    for key, value in texts.items():
        if not isinstance(value, str) or (key in ("name", "url", "sha256") and not value):
            raise ValueError(f"{where}.{key} must be a text, got {value!r}")
    size = entry.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{where}.size must be the bytes of the file, got {size!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", texts["sha256"]):
        raise ValueError(f"{where}.sha256 must be 64 hexadecimal digits, got {texts['sha256']!r}")
    check_name(texts["name"])
    return Listed(**{**texts, "url": _resolved(place, where, texts["url"])}, size=size)


def _resolved(place: str, where: str, url: str) -> str:
    """An http(s) URL, or where the index is a local file also a path."""
    if is_url(place):
        url = urljoin(place, url)
        if not is_url(url):
            raise ValueError(f"{where}.url must be an http or https URL, got {url!r}")
        return url
    return url if is_url(url) else str(Path(place).parent / url)
