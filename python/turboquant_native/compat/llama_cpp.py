"""`import turboquant_native.compat.llama_cpp as llama_cpp`: the names that public code takes from llama-cpp-python.

Importing this module also registers it as `llama_cpp` (with the submodules that are imported from), so that libraries which import
that name, such as LangChain's `LlamaCpp`, run on this engine. When the real package is loaded already, nothing is registered and a
warning says so.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .. import __version__
from ..api.arguments import (
    LLAMA_POOLING_TYPE_CLS,
    LLAMA_POOLING_TYPE_LAST,
    LLAMA_POOLING_TYPE_MEAN,
    LLAMA_POOLING_TYPE_NONE,
    LLAMA_POOLING_TYPE_UNSPECIFIED,
)
from ..api.cache import LlamaRAMCache, LlamaState
from ..api.llama import LLAMA_DEFAULT_SEED, Llama
from ..api.llama_tokenizer import LlamaTokenizer
from ..engine.grammar import LlamaGrammar
from ..engine.sampling import LogitsProcessor, LogitsProcessorList, MinTokensLogitsProcessor, StoppingCriteria, StoppingCriteriaList
from ..engine.speculative import LlamaDraftModel, LlamaPromptLookupDecoding
from ..engine.vocabulary import Vocabulary

LlamaCache = LlamaRAMCache
LLAMA_SPLIT_MODE_NONE, LLAMA_SPLIT_MODE_LAYER, LLAMA_SPLIT_MODE_ROW = 0, 1, 2
LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED = -1
GGML_TYPE_F32, GGML_TYPE_F16 = 0, 1

__all__ = [
    "GGML_TYPE_F16",
    "GGML_TYPE_F32",
    "LLAMA_DEFAULT_SEED",
    "LLAMA_POOLING_TYPE_CLS",
    "LLAMA_POOLING_TYPE_LAST",
    "LLAMA_POOLING_TYPE_MEAN",
    "LLAMA_POOLING_TYPE_NONE",
    "LLAMA_POOLING_TYPE_UNSPECIFIED",
    "LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED",
    "LLAMA_SPLIT_MODE_LAYER",
    "LLAMA_SPLIT_MODE_NONE",
    "LLAMA_SPLIT_MODE_ROW",
    "Llama",
    "LlamaCache",
    "LlamaDraftModel",
    "LlamaGrammar",
    "LlamaPromptLookupDecoding",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "__version__",
    "llama_backend_free",
    "llama_backend_init",
    "llama_log_set",
    "llama_model_get_vocab",
    "llama_supports_gpu_offload",
    "llama_token_to_piece",
    "llama_vocab_eos",
    "llama_vocab_n_tokens",
]

# submodule: what is imported from it
_SUBMODULES = {
    "llama": ("Llama", "LlamaState", "LogitsProcessorList", "StoppingCriteriaList", "LogitsProcessor", "StoppingCriteria", "LlamaGrammar"),
    "llama_cache": ("LlamaCache", "LlamaRAMCache"),
    "llama_grammar": ("LlamaGrammar",),
    "llama_speculative": ("LlamaDraftModel", "LlamaPromptLookupDecoding"),
    "llama_tokenizer": ("LlamaTokenizer",),
}


def llama_backend_init() -> None:
    """Nothing to do."""


def llama_backend_free() -> None:
    """Nothing to do."""


def llama_model_get_vocab(model: Vocabulary) -> Vocabulary:
    """The vocabulary of `Llama.model`."""
    return model


def llama_vocab_n_tokens(vocab: Vocabulary) -> int:
    """Number of tokens."""
    return vocab.n_vocab


def llama_vocab_eos(vocab: Vocabulary) -> int:
    """The end-of-sequence token."""
    return vocab.eos


def llama_token_to_piece(vocab: Vocabulary, token: int, buf: Any, length: int, lstrip: int, special: bool) -> int:
    """Writes a token's bytes into a ctypes buffer; the number of bytes, negative when they do not fit."""
    piece = vocab.piece(token) if special or not vocab.is_control(token) else b""
    if len(piece) > length:
        return -len(piece)
    buf[: len(piece)] = piece
    return len(piece)


def llama_supports_gpu_offload() -> bool:
    """Whether a GPU can be used."""
    from .. import _core

    return any(state.startswith("available") for name, state in _core.backends().items() if name != "cpu")


class _Callback(logging.Handler):
    """Hands log records to a callback of llama.cpp's form: (ggml level, text in bytes, user data)."""

    def __init__(self, callback: Callable[[int, bytes, Any], None], user_data: Any) -> None:
        super().__init__()
        self._callback, self._user_data = callback, user_data

    def emit(self, record: logging.LogRecord) -> None:
        level = 4 if record.levelno >= logging.ERROR else 3 if record.levelno >= logging.WARNING else 2
        self._callback(level, (self.format(record) + "\n").encode(), self._user_data)


def llama_log_set(callback: Callable[[int, bytes, Any], None] | None, user_data: Any = None) -> None:
    """Sends this package's log to a callback; None ends that. (The log is `logging`'s, under "turboquant_native".)"""
    package = logging.getLogger("turboquant_native")
    package.handlers = [handler for handler in package.handlers if not isinstance(handler, _Callback)]
    if callback is not None:
        package.addHandler(_Callback(callback, user_data))


def _register() -> None:
    this = sys.modules[__name__]
    if sys.modules.setdefault("llama_cpp", this) is not this:
        warnings.warn("llama_cpp is imported already; it stays what it is", stacklevel=3)
        return
    for name, exports in _SUBMODULES.items():
        module = ModuleType(f"llama_cpp.{name}", this.__doc__)
        vars(module).update({export: getattr(this, export) for export in exports})
        sys.modules[module.__name__] = module


_register()
