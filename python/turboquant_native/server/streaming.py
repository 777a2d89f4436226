"""One way to run an answer for all protocols: as a stream of events, or as a whole."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..api.chat_answer import ChatAnswer
from ..api.chat_completion import ChatCompletion
from . import errors, logs, requests, sse
from .running import Running, unless_gone
from .schemas import ChatBody
from .service import Service


class Writer(Protocol):
    """How a protocol writes the chunks of OpenAI's chat as events, and the whole answer."""

    keep_alive: bytes

    def begin(self, chunk: dict[str, Any]) -> bytes: ...
    def push(self, chunk: dict[str, Any]) -> bytes: ...
    def progress(self, progress: dict[str, int]) -> bytes: ...
    def end(self) -> bytes: ...
    def fail(self, error: errors.ApiError) -> bytes: ...
    def whole(self, answer: dict[str, Any]) -> dict[str, Any]: ...


async def respond(
    service: Service, request: Request, body: ChatBody, new_writer: Callable[[ChatCompletion, ChatAnswer, Running], Writer]
) -> Response:
    """Runs a chat and answers in the form of a protocol's writer."""
    settings = service.settings
    lease = await service.lease(body.model)
    try:
        with errors.faults_of_requests():
            chat = await asyncio.to_thread(requests.chat, lease.llama, body, settings, lease.name)
        running = Running(chat.completion, lease.name, service.metrics, settings.max_seconds, service.registry)
    except BaseException:
        lease.end()
        raise

    def end() -> None:
        running.close()
        lease.end()

    answer = chat.answer()
    writer = new_writer(chat, answer, running)
    if settings.log_prompts:
        logs.event("prompt", id=answer.id, messages=[message.model_dump(exclude_unset=True) for message in body.messages])
    if body.stream:
        return sse.EventStream(sse.with_keep_alive(_events(running, answer, writer), settings.keep_alive, writer.keep_alive), end)
    chunks = await unless_gone(request, running.chunks(), end)
    return JSONResponse(writer.whole(answer.whole(chunks)))


async def _events(running: Running, answer: ChatAnswer, writer: Writer) -> AsyncIterator[bytes]:
    """The events of a streamed answer. What goes wrong after the first one is an event too."""
    try:
        yield b"".join(writer.begin(chunk) for chunk in answer.begin())
        in_prompt = True
        async for chunks in running.steps():
            written = writer.progress(running.progress()) if in_prompt else b""  # the last time with the first chunk: all is evaluated
            in_prompt = in_prompt and not chunks
            written += b"".join(writer.push(piece) for chunk in chunks for piece in answer.push(chunk))
            if written:
                yield written
        yield b"".join(writer.push(piece) for piece in answer.end()) + writer.end()
    except Exception as error:
        yield writer.fail(logged(error))


def logged(error: Exception) -> errors.ApiError:
    """What the client is told of an error; one of our own making goes to the log in full."""
    known = errors.of_exception(error)
    if known.status >= 500 and not isinstance(error, errors.ApiError):
        logs.logger.error("an answer failed", exc_info=error)
    return known
