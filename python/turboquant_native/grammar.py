"""Grammars under their public name."""

from .engine.grammar import LlamaGrammar

__all__ = ["LlamaGrammar"]
