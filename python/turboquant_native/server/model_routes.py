"""Models, embeddings, tokens, and the server's own state."""

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .. import __version__
from ..api import embedding
from ..api.llama import Llama
from . import errors
from .schemas import EmbeddingBody, ModelName, TextBody, TokensBody
from .service import TheService, scheduler_stats

router = APIRouter(responses=errors.DESCRIBED)


# --- models ------------------------------------------------------------------------------------------------------------------------------


@router.get("/v1/models", tags=["OpenAI"])
async def list_models(service: TheService) -> dict[str, Any]:
    """All models that the server knows, loaded or not."""
    return {"object": "list", "data": [model.describe() for model in service.models]}


@router.get("/v1/models/{name:path}", tags=["OpenAI"])
async def get_model(name: str, service: TheService) -> dict[str, Any]:
    """One model."""
    return service.models.named(name).describe()


@router.post("/models/load", tags=["server"])
async def load_model(body: ModelName, service: TheService) -> dict[str, Any]:
    """Loads a model, unless it is loaded."""
    lease = await service.lease(body.model)
    lease.end()
    return lease.model.describe()


@router.post("/models/unload", tags=["server"])
async def unload_model(body: ModelName, service: TheService) -> dict[str, Any]:
    """Frees a model's memory; 409 while it answers."""
    model = service.models.named(body.model)
    if model.llama is not None and not await service.models.unload(model):
        raise errors.ApiError(409, f"the model {model.name!r} is in use", code="model_in_use", param="model")
    return model.describe()


# --- embeddings --------------------------------------------------------------------------------------------------------------------------


@router.post("/v1/embeddings", tags=["OpenAI"])
async def embeddings(body: EmbeddingBody, service: TheService) -> dict[str, Any]:
    """Normalized embeddings of texts or tokens."""
    lease = await service.lease(body.model)
    try:
        with errors.faults_of_requests():
            vectors, count = await asyncio.to_thread(_embed, lease.llama, body)
    finally:
        lease.end()
    data = [{"object": "embedding", "index": index, "embedding": _encoded(vector, body)} for index, vector in enumerate(vectors)]
    return {"object": "list", "data": data, "model": lease.name, "usage": {"prompt_tokens": count, "total_tokens": count}}


def _embed(llama: Llama, body: EmbeddingBody) -> tuple[list[Any], int]:
    if body.dimensions not in (None, llama.n_embd()):
        raise errors.ApiError(400, f"dimensions must be {llama.n_embd()}, the model's own", code="invalid_value", param="dimensions")
    given: Any = body.input
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
    tokens = [llama.vocabulary.encode_document(entry) if isinstance(entry, str) else entry for entry in inputs]
    for ids in tokens:
        if len(ids) > llama.n_ctx():
            raise errors.context_length_exceeded(len(ids), llama.n_ctx(), "input")
    vectors = [embedding.embed(llama.session, ids, llama.pooling_type, True) for ids in tokens]
    return vectors, sum(map(len, tokens))


def _encoded(vector: Any, body: EmbeddingBody) -> Any:
    if body.encoding_format == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return vector.tolist()


# --- tokens ------------------------------------------------------------------------------------------------------------------------------


@router.post("/tokenize", tags=["server"])
async def tokenize(body: TextBody, service: TheService) -> dict[str, list[int]]:
    """Tokens of a text."""
    lease = await service.lease(body.model)
    try:
        encode = lease.llama.vocabulary.encode
        with errors.faults_of_requests():
            return {"tokens": await asyncio.to_thread(encode, body.content, body.add_special, body.parse_special)}
    finally:
        lease.end()


@router.post("/detokenize", tags=["server"])
async def detokenize(body: TokensBody, service: TheService) -> dict[str, str]:
    """The text of tokens."""
    lease = await service.lease(body.model)
    try:
        with errors.faults_of_requests():
            return {"content": lease.llama.detokenize(body.tokens, special=True).decode("utf-8", "replace")}
    finally:
        lease.end()


# --- state -------------------------------------------------------------------------------------------------------------------------------


@router.get("/health", tags=["server"])
async def health(service: TheService) -> Response:
    """200 when requests are answered, 503 while the first model is being loaded, after it could not be, and when the server is ending."""
    if service.registry.closing:
        return errors.response("/health", errors.unavailable("the server is ending"))
    if service.models.starting:
        return errors.response("/health", errors.unavailable("the model is being loaded"))
    if service.models.default.state == "failed":
        return errors.response("/health", errors.unavailable("the model cannot be loaded", 60))
    return JSONResponse({"status": "ok"})


@router.get("/metrics", tags=["server"], response_class=PlainTextResponse)
async def metrics(service: TheService) -> Response:
    """Figures for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/props", tags=["server"])
async def props(service: TheService, model: str | None = None) -> dict[str, Any]:
    """What the model is and what a request gets that says nothing."""
    lease = await service.lease(model)
    try:
        llama = lease.llama
        return {
            "model": lease.name,
            "model_path": llama.model_path,
            "build_info": f"turboquant-native {__version__}",
            "total_slots": service.settings.n_slots,
            "n_ctx": llama.n_ctx(),
            "n_vocab": llama.n_vocab(),
            "n_embd": llama.n_embd(),
            "n_params": llama.engine.core.parameters,
            "architecture": llama.metadata.get("general.architecture"),
            "cache": llama.engine.cache,
            "why_cache": llama.engine.why_cache,
            "chat_template": llama.metadata.get("tokenizer.chat_template"),
            "default_generation_settings": {"n_ctx": llama.n_ctx(), "params": dict(service.settings.sampling)},
        }
    finally:
        lease.end()


@router.get("/slots", tags=["server"])
async def slots(service: TheService, model: str | None = None) -> list[dict[str, Any]]:
    """What the slots hold. Without a word of what was said."""
    lease = await service.lease(model)
    try:
        entries: list[dict[str, Any]] = scheduler_stats(lease.llama)["slots"]
        return entries
    finally:
        lease.end()
