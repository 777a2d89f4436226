"""Conversations in three protocols: /v1/chat/completions, /v1/responses, /v1/messages."""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from . import anthropic, errors, requests, responses, sse
from .schemas import ChatBody
from .service import TheService
from .streaming import respond
from .writers import ChatWriter, MessagesWriter, ResponsesWriter

router = APIRouter(responses=errors.DESCRIBED)


@router.post("/v1/chat/completions", tags=["OpenAI"], response_model=None, responses=sse.DESCRIBED)
async def chat_completions(body: ChatBody, request: Request, service: TheService) -> Response:
    """OpenAI's chat; with `stream` as events."""
    return await respond(service, request, body, lambda chat, answer, running: ChatWriter(body, answer, running))


@router.post("/v1/responses", tags=["OpenAI"], response_model=None, responses=sse.DESCRIBED)
async def create_response(body: responses.ResponsesBody, request: Request, service: TheService) -> Response:
    """OpenAI's responses, without storage; tools that are not functions are left out."""
    with errors.faults_of_requests():
        chat = responses.to_chat(body)
    return await respond(service, request, chat, lambda chat, answer, running: ResponsesWriter(body, answer, body.model))


@router.post("/v1/messages", tags=["Anthropic"], response_model=None, responses=sse.DESCRIBED)
async def messages(body: anthropic.MessagesBody, request: Request, service: TheService) -> Response:
    """Anthropic's messages."""
    with errors.faults_of_requests():
        chat = anthropic.to_chat(body)
    return await respond(service, request, chat, lambda chat, answer, running: MessagesWriter(answer, running))


@router.post("/v1/messages/count_tokens", tags=["Anthropic"])
async def count_tokens(body: anthropic.CountBody, service: TheService) -> dict[str, int]:
    """How many tokens the prompt of such a request has."""
    lease = await service.lease(body.model)
    try:
        with errors.faults_of_requests():
            tokens = await asyncio.to_thread(requests.chat_prompt, lease.llama, anthropic.to_chat(body))
        return {"input_tokens": len(tokens)}
    finally:
        lease.end()
