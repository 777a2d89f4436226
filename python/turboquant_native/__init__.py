"""Extreme compression of language models, and an engine that runs them in their compressed form.

>>> from turboquant_native import Llama
>>> with Llama("model.gguf", n_ctx=2048) as llm:
...     print(llm("The capital of France is", max_tokens=8)["choices"][0]["text"])

Importing is light: the compiled core and the tokenizer load on first use.
"""

import importlib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _distribution_version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.cache import LlamaRAMCache, LlamaState
    from .api.llama import Llama
    from .engine.grammar import LlamaGrammar
    from .engine.sampling import LogitsProcessorList, MinTokensLogitsProcessor, StoppingCriteriaList
    from .engine.speculative import LlamaPromptLookupDecoding

_EXPORTS = {
    "Llama": "api.llama",
    "LlamaGrammar": "engine.grammar",
    "LlamaPromptLookupDecoding": "engine.speculative",
    "LlamaRAMCache": "api.cache",
    "LlamaState": "api.cache",
    "LogitsProcessorList": "engine.sampling",
    "MinTokensLogitsProcessor": "engine.sampling",
    "StoppingCriteriaList": "engine.sampling",
}

__all__ = [
    "Llama",
    "LlamaGrammar",
    "LlamaPromptLookupDecoding",
    "LlamaRAMCache",
    "LlamaState",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteriaList",
    "__version__",
]

try:
    __version__ = _distribution_version("turboquant-native")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
