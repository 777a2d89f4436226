"""Embeddings: what the model's last layer makes of a text, as one vector."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.tokens import check_tokens
from .arguments import (
    LLAMA_POOLING_TYPE_CLS,
    LLAMA_POOLING_TYPE_LAST,
    LLAMA_POOLING_TYPE_MEAN,
    LLAMA_POOLING_TYPE_NONE,
    LLAMA_POOLING_TYPE_UNSPECIFIED,
)
from .session import Session

logger = logging.getLogger(__name__)


def texts_of(given: Any) -> list[str]:
    """The texts of an embedding request; TypeError for what is no text, ValueError names an empty one."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise TypeError(f"input must be a text or a list of texts, got {given!r}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"input {index} must be a text, got {text!r}")
        if not text:
            raise ValueError(f"input {index} is an empty text, which has no embedding")
    return list(texts)


def tokens_of(session: Session, texts: Sequence[str], truncate: bool) -> list[list[int]]:
    """Tokens of texts; those beyond n_ctx are cut, with a warning, or raise ValueError."""
    found = []
    for index, text in enumerate(texts):
        if not truncate:
            session.vocabulary.check_length(text, session.n_ctx())
        ids = session.vocabulary.encode_document(text)
        if len(ids) > session.n_ctx():
            if not truncate:
                raise ValueError(f"input {index} has {len(ids)} tokens; the context holds {session.n_ctx()} (n_ctx)")
            logger.warning("input %d has %d tokens and is cut to the %d of the context (n_ctx)", index, len(ids), session.n_ctx())
            ids = session.vocabulary.encode_document(text, limit=session.n_ctx())
        found.append(ids)
    return found


def declared(session: Session, pooling: int, normalize: bool) -> tuple[int, bool]:
    """(pooling, normalize) with what the model was trained with in place of what was not asked for."""
    keys = session.metadata
    if pooling == LLAMA_POOLING_TYPE_UNSPECIFIED:
        name = f"{keys.get('general.architecture')}.pooling_type"
        pooling = keys.get(name, LLAMA_POOLING_TYPE_MEAN)
        if type(pooling) is not int or not LLAMA_POOLING_TYPE_NONE <= pooling <= LLAMA_POOLING_TYPE_LAST:
            raise ValueError(f"{name} is {pooling!r} in the file, which is not supported; pooling_type chooses another")
    return pooling, normalize or keys.get("turboquant.embedding_normalize") is True


def is_declared(session: Session) -> bool:
    """Whether the file says how its vectors are made: the model was trained to embed."""
    keys = session.metadata
    return f"{keys.get('general.architecture')}.pooling_type" in keys or "turboquant.embedding_normalize" in keys


def embed(session: Session, tokens: Sequence[int], pooling: int, normalize: bool) -> NDArray[np.float32]:
    """Pools the final hidden states of tokens: (n_embd,), or (n, n_embd) without pooling.

    pooling: unspecified (-1): as the file says, else the mean. normalize: always where the file says so.
    """
    pooling, normalize = declared(session, pooling, normalize)
    ids = check_tokens(tokens, session.n_vocab())
    hidden: NDArray[Any] = session.engine.evaluate(ids, len(ids), hidden=True)
    if pooling == LLAMA_POOLING_TYPE_NONE:
        pooled = hidden
    elif pooling == LLAMA_POOLING_TYPE_CLS:
        pooled = hidden[0]
    elif pooling == LLAMA_POOLING_TYPE_LAST:
        pooled = hidden[-1]
    else:
        pooled = hidden.mean(axis=0, dtype=np.float64).astype(np.float32)
    if normalize:
        norm = np.linalg.norm(pooled, axis=-1, keepdims=True)
        pooled = pooled / np.where(norm > 0, norm, 1)
    return np.asarray(pooled, np.float32)


def create(session: Session, given: Any, pooling: int, model: str | None, truncate: bool) -> dict[str, Any]:
    """Normalized embeddings in OpenAI's form."""
    tokens = tokens_of(session, texts_of(given), truncate)
    vectors = [embed(session, ids, pooling, True).tolist() for ids in tokens]
    data = [{"object": "embedding", "embedding": vector, "index": index} for index, vector in enumerate(vectors)]
    count = sum(map(len, tokens))
    return {"object": "list", "data": data, "model": model or session.model_path, "usage": {"prompt_tokens": count, "total_tokens": count}}
