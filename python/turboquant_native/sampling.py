"""Sampling options and lists of callables under their public name."""

from .engine.sampling import LogitsProcessorList, MinTokensLogitsProcessor, SamplingOptions, StoppingCriteriaList

__all__ = ["LogitsProcessorList", "MinTokensLogitsProcessor", "SamplingOptions", "StoppingCriteriaList"]
