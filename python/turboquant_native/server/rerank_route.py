"""Documents in the order of their relevance to a query, in the form that Jina, Cohere and llama-server share."""

import asyncio
import uuid
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from pydantic import Field, field_validator

from ..api import embedding, scores
from ..api.llama import Llama
from . import errors
from .schemas import Body
from .service import TheService

router = APIRouter(responses=errors.DESCRIBED)


class RerankBody(Body):
    """POST /v1/rerank"""

    model: str | None = None
    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[list[str | dict[str, Any]], Field(min_length=1)]
    top_n: Annotated[int | None, Field(ge=1)] = None
    return_documents: bool | None = False

    @property
    def texts(self) -> list[str]:
        """The documents, which are texts once they are validated."""
        return [entry for entry in self.documents if isinstance(entry, str)]

    @field_validator("documents")
    @classmethod
    def _texts(cls, value: list[str | dict[str, Any]]) -> list[str]:
        texts: list[str] = []
        for index, entry in enumerate(value):
            text = entry if isinstance(entry, str) else entry.get("text")
            if not isinstance(text, str) or not text:
                raise ValueError(f"document {index} must be a text, or an object with a text, that is not empty")
            texts.append(text)
        return texts


@router.post("/rerank", tags=["server"])
@router.post("/v2/rerank", tags=["server"])
@router.post("/v1/rerank", tags=["server"])
async def rerank(body: RerankBody, service: TheService) -> dict[str, Any]:
    """The documents from the most relevant: by a reranker's scores, or for a model that was trained to embed by the cosine of their
    embeddings to the query's."""
    lease = await service.lease(body.model)
    try:
        with errors.faults_of_requests():
            found, count = await asyncio.to_thread(_scores, lease.llama, body)
    finally:
        lease.end()
    order = sorted(range(len(found)), key=lambda index: -found[index])[: body.top_n]
    results = [{"index": index, "relevance_score": found[index], **_document(body, index)} for index in order]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"id": f"rerank-{uuid.uuid4().hex}", "object": "list", "model": lease.name, "results": results, "usage": usage}


def _document(body: RerankBody, index: int) -> dict[str, Any]:
    return {"document": {"text": body.documents[index]}} if body.return_documents else {}


def _scores(llama: Llama, body: RerankBody) -> tuple[list[float], int]:
    """What each document has to do with the query, and the tokens of all texts."""
    if scores.is_reranker(llama.session):
        return scores.rerank(llama.session, body.query, body.texts)
    if not embedding.is_declared(llama.session):
        raise ValueError(
            "the model cannot rank documents: it is neither a reranker nor was it trained to embed (its file declares no pooling); "
            "serve an embedding model, or send the documents to /v1/chat/completions"
        )
    tokens = embedding.tokens_of(llama.session, [body.query, *body.texts], truncate=False)
    vectors = np.array([embedding.embed(llama.session, ids, llama.pooling_type, True) for ids in tokens])
    if vectors.ndim != 2:
        raise ValueError("the model gives a vector for each token: documents cannot be ranked without pooling")
    return [float(score) for score in vectors[1:] @ vectors[0]], sum(map(len, tokens))
