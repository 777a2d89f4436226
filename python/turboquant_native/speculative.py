"""Draft models under their public name."""

from .engine.speculative import LlamaDraftModel, LlamaModelDraft, LlamaPromptLookupDecoding

__all__ = ["LlamaDraftModel", "LlamaModelDraft", "LlamaPromptLookupDecoding"]
