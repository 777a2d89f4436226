"""/v1/completions: prompts without a template."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..api.completion import Completion, CompletionRequest
from ..api.logprobs import Offsets, legacy_logprobs
from ..engine.generation import Chunk, TokenLogprob
from . import errors, requests, sse
from .running import Running, unless_gone
from .schemas import CompletionBody
from .service import TheService
from .streaming import logged

router = APIRouter(responses=errors.DESCRIBED)


class _Choice:
    """One prompt's completion as a choice of the answer."""

    def __init__(self, index: int, request: CompletionRequest, completion: Completion, running: Running, vocabulary: Any) -> None:
        self.index, self._request, self._completion, self.running = index, request, completion, running
        self._vocabulary = vocabulary
        self._offsets, self._length = Offsets(vocabulary, completion.echoed), len(completion.echoed)
        self._waiting: list[tuple[int, TokenLogprob]] = []

    def begin(self) -> list[dict[str, Any]]:
        """The echoed prompt."""
        return [self._choice(self._completion.echoed)] if self._completion.echoed else []

    def push(self, chunk: Chunk) -> list[dict[str, Any]]:
        self._length += len(chunk.text)
        self._waiting += self._completion.place(chunk.logprobs, self._offsets)
        self._waiting = self._completion.visible(self._waiting, self._length)
        return [self._choice(chunk.text)] if chunk.text else []

    def end(self) -> list[dict[str, Any]]:
        return [self._choice("", self._completion.generation.finish_reason or "stop")]

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        for chunk in chunks:
            self.push(Chunk("", chunk.tokens, chunk.logprobs))
        text = self._completion.echoed + "".join(chunk.text for chunk in chunks)
        self._waiting = self._completion.visible(self._waiting, len(text))
        return self._choice(text, self._completion.generation.finish_reason or "stop")

    def _choice(self, text: str, finish_reason: str | None = None) -> dict[str, Any]:
        logprobs = None
        if self._request.logprobs is not None:
            entries, offsets = [entry for _, entry in self._waiting], [offset for offset, _ in self._waiting]
            logprobs = legacy_logprobs(self._vocabulary, entries, offsets)
        self._waiting = []
        return {"text": text, "index": self.index, "logprobs": logprobs, "finish_reason": finish_reason}


class _Answer:
    """All choices of a request."""

    def __init__(self, body: CompletionBody, choices: Sequence[_Choice], model: str) -> None:
        self._body, self._choices = body, choices
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": model}

    def close(self) -> None:
        for choice in self._choices:
            choice.running.close()

    async def whole(self) -> dict[str, Any]:
        chosen = [choice.whole(await choice.running.chunks()) for choice in self._choices]
        return {**self._head, "choices": chosen, "usage": self._usage(), "timings": self._choices[-1].running.timings()}

    async def events(self) -> AsyncIterator[bytes]:
        """Choice by choice; the engine works on all of them meanwhile."""
        try:
            for choice in self._choices:
                for piece in choice.begin():
                    yield self._event(piece)
                async for chunks in choice.running.steps():
                    for piece in (piece for chunk in chunks for piece in choice.push(chunk)):
                        yield self._event(piece)
                for piece in choice.end():
                    yield self._event(piece, timings=choice.running.timings())
            if self._body.stream_options is not None and self._body.stream_options.include_usage:
                yield sse.data({**self._head, "choices": [], "usage": self._usage()})
        except Exception as error:
            yield sse.data(logged(error).openai())
        yield sse.DONE

    def _event(self, choice: dict[str, Any], **more: Any) -> bytes:
        return sse.data({**self._head, "choices": [choice], **more})

    def _usage(self) -> dict[str, Any]:
        generations = [choice.running.completion.generation for choice in self._choices]
        prompt, generated = sum(entry.n_prompt for entry in generations), sum(entry.n_generated for entry in generations)
        cached = sum(choice.running.handle.cached_tokens for choice in self._choices)
        counts = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
        return {**counts, "prompt_tokens_details": {"cached_tokens": cached}}


@router.post("/v1/completions", tags=["OpenAI"], response_model=None, responses=sse.DESCRIBED)
async def completions(body: CompletionBody, request: Request, service: TheService) -> Response:
    """Continues one prompt or several, texts or tokens; with `stream` as events."""
    settings = service.settings
    lease = await service.lease(body.model)
    choices: list[_Choice] = []
    answer = _Answer(body, choices, lease.name)

    def end() -> None:
        answer.close()
        lease.end()

    try:
        with errors.faults_of_requests():
            made = await asyncio.to_thread(requests.completions, lease.llama, body, settings)
        for index, (asked, completion) in enumerate(made):
            running = Running(completion, lease.name, service.metrics, settings.max_seconds, service.registry)
            choices.append(_Choice(index, asked, completion, running, lease.llama.vocabulary))
    except BaseException:
        end()
        raise
    if body.stream:
        return sse.EventStream(sse.with_keep_alive(answer.events(), settings.keep_alive), end)
    return JSONResponse(await unless_gone(request, answer.whole(), end))
