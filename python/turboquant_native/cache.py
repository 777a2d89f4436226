"""Saved states under the name that pickles and programs know."""

from .api.cache import LlamaRAMCache, LlamaState

__all__ = ["LlamaRAMCache", "LlamaState"]
