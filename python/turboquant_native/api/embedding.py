"""Embeddings: what the model's last layer makes of a text, as one vector."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..engine.prefix_cache import check_tokens
from .arguments import LLAMA_POOLING_TYPE_CLS, LLAMA_POOLING_TYPE_LAST, LLAMA_POOLING_TYPE_NONE

if TYPE_CHECKING:
    from .llama import Llama


def embed(llm: "Llama", tokens: Sequence[int], normalize: bool) -> NDArray[np.float32]:
    """Pools the final hidden states of tokens: (n_embd,), or (n, n_embd) without pooling. Uses up the engine's cache."""
    ids = check_tokens(tokens, llm.n_vocab())
    if not 0 < len(ids) <= llm.n_ctx():
        raise ValueError(f"a text to embed must have 1 to {llm.n_ctx()} tokens (n_ctx), got {len(ids)}")
    hidden: NDArray[Any] = _hidden_states(llm, ids)
    if llm.pooling_type == LLAMA_POOLING_TYPE_NONE:
        pooled = hidden
    elif llm.pooling_type == LLAMA_POOLING_TYPE_CLS:
        pooled = hidden[0]
    elif llm.pooling_type == LLAMA_POOLING_TYPE_LAST:
        pooled = hidden[-1]
    else:
        pooled = hidden.mean(axis=0, dtype=np.float64).astype(np.float32)
    if normalize:
        norm = np.linalg.norm(pooled, axis=-1, keepdims=True)
        pooled = pooled / np.where(norm > 0, norm, 1)
    return np.asarray(pooled, np.float32)


def _hidden_states(llm: "Llama", ids: NDArray[np.intc]) -> NDArray[np.float32]:
    """(n, n_embd) after the output norm."""
    rows = []
    with llm._lock:
        llm._cache.truncate(0)
        for start in range(0, len(ids), llm.context_params.n_batch):
            part = ids[start : start + llm.context_params.n_batch]
            positions = np.arange(start, start + len(part), dtype=np.int32)
            rows.append(llm._context.embed(part, positions, np.zeros(len(part), np.int32), np.arange(len(part), dtype=np.int32)))
    return np.concatenate(rows)


def create(llm: "Llama", texts: str | Sequence[str], model: str | None) -> dict[str, Any]:
    """Embeddings in OpenAI's form."""
    inputs = [texts] if isinstance(texts, str) else list(texts)
    tokens = [llm.tokenize(text.encode(), special=True) for text in inputs]
    data = [{"object": "embedding", "embedding": embed(llm, ids, True).tolist(), "index": index} for index, ids in enumerate(tokens)]
    count = sum(map(len, tokens))
    return {"object": "list", "data": data, "model": model or llm.model_path, "usage": {"prompt_tokens": count, "total_tokens": count}}
