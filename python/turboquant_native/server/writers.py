"""The three protocols' ways to write a chat's answer."""

from typing import Any

from .. import __version__
from ..api.chat_answer import ChatAnswer
from . import anthropic, errors, response_events, responses, sse
from .running import Running
from .schemas import ChatBody

_FINGERPRINT = f"turboquant-native-{__version__}"


class ChatWriter:
    """OpenAI's chat: chunks as they are, `[DONE]` at the end."""

    keep_alive = sse.KEEP_ALIVE

    def __init__(self, body: ChatBody, answer: ChatAnswer, running: Running) -> None:
        self._body, self._answer, self._running = body, answer, running
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage

    def begin(self, chunk: dict[str, Any]) -> bytes:
        """OpenAI's first delta has an empty text, and some clients read it."""
        choices = [{**choice, "delta": {**choice["delta"], "content": ""}} for choice in chunk["choices"]]
        return self.push({**chunk, "choices": choices})

    def push(self, chunk: dict[str, Any]) -> bytes:
        ends = any(choice["finish_reason"] is not None for choice in chunk["choices"])
        if ends and not self._with_usage:
            chunk = {**chunk, "timings": self._running.timings()}
        return sse.data({**chunk, "usage": None} if self._with_usage else chunk)

    def progress(self, progress: dict[str, int]) -> bytes:
        return sse.data(self._answer.chunk_with(prompt_progress=progress)) if self._body.return_progress else b""

    def end(self) -> bytes:
        facts = {"usage": self._answer.usage(), "timings": self._running.timings()}
        return (sse.data(self._answer.chunk_with(**facts)) if self._with_usage else b"") + sse.DONE

    def fail(self, error: errors.ApiError) -> bytes:
        return sse.data(error.openai()) + sse.DONE

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        message = {"refusal": None, "annotations": [], **answer["choices"][0]["message"]}
        choices = [{**answer["choices"][0], "message": message}]
        return {**answer, "choices": choices, "system_fingerprint": _FINGERPRINT, "timings": self._running.timings()}


class MessagesWriter:
    """Anthropic's messages."""

    keep_alive = sse.data({"type": "ping"}, "ping")

    def __init__(self, answer: ChatAnswer, running: Running) -> None:
        self._answer, self._running = answer, running
        self._events = anthropic.EventWriter(running.completion.generation.n_prompt)

    def begin(self, chunk: dict[str, Any]) -> bytes:
        return _written(self._events.begin(chunk)) + self.keep_alive

    def push(self, chunk: dict[str, Any]) -> bytes:
        return _written(self._events.push(chunk))

    def progress(self, progress: dict[str, int]) -> bytes:
        return b""

    def end(self) -> bytes:
        return _written(self._events.end(self._answer.usage(), self._running.completion.generation.stopped_by))

    def fail(self, error: errors.ApiError) -> bytes:
        return sse.data(error.anthropic(), "error")

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        return anthropic.message(answer, self._running.completion.generation.stopped_by)


class ResponsesWriter:
    """OpenAI's responses."""

    keep_alive = sse.KEEP_ALIVE

    def __init__(self, body: responses.ResponsesBody, answer: ChatAnswer, model: str) -> None:
        self._answer = answer
        self._response = response_events.ResponseWriter(body, answer.id, model)

    def begin(self, chunk: dict[str, Any]) -> bytes:
        return _written(self._response.begin())

    def push(self, chunk: dict[str, Any]) -> bytes:
        return _written(self._response.push(chunk))

    def progress(self, progress: dict[str, int]) -> bytes:
        return b""

    def end(self) -> bytes:
        return _written(self._response.end(self._answer.usage()))

    def fail(self, error: errors.ApiError) -> bytes:
        return _written(self._response.fail(error.message))

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        return response_events.whole(self._response, answer)


def _written(events: Any) -> bytes:
    return b"".join(sse.data(event, name) for name, event in events)
