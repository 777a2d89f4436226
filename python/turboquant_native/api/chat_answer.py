"""A chat's answer in OpenAI's shape: pieces as they come, or the whole."""

import secrets
import string
import time
import uuid
from collections.abc import Sequence
from typing import Any

from ..engine.generation import Chunk, TokenLogprob
from .answer import AnswerReader, message_of
from .completion import Completion
from .logprobs import Offsets, token_name
from .tool_calls import AnswerEvent, CallArguments, CallStart, ReasoningDelta, TextDelta

_CALL_ID = string.ascii_letters + string.digits


def new_call_id() -> str:
    """Nine letters and digits: the only form that Mistral's templates accept back."""
    return "".join(secrets.choice(_CALL_ID) for _ in range(9))


class ChatAnswer:
    """Shapes the chunks of one completion. It does not fetch them, so that they may come from an iterator or an event loop.

    Args:
        completion: the request below. reader: takes its text apart. with_logprobs: report the tokens' log-probabilities.
        model: the name to report.
    """

    def __init__(self, completion: Completion, reader: AnswerReader, vocabulary: Any, with_logprobs: bool, model: str) -> None:
        self._completion, self._reader, self._vocabulary, self._with_logprobs = completion, reader, vocabulary, with_logprobs
        self._head: dict[str, Any] = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._offsets, self._length = Offsets(vocabulary), 0
        self._waiting: list[tuple[int, TokenLogprob]] = []
        self._call_ids: list[str] = []
        self._reasoning_tokens = 0

    @property
    def id(self) -> str:
        """The answer's name."""
        return str(self._head["id"])

    # --- in pieces -----------------------------------------------------------------------------------------------------------------------

    def begin(self) -> list[dict[str, Any]]:
        """What comes before the first token."""
        return [self._chunk({"role": "assistant"})]

    def push(self, chunk: Chunk) -> list[dict[str, Any]]:
        """What one chunk of the completion adds."""
        return self._pieces(self._read(chunk))

    def end(self) -> list[dict[str, Any]]:
        """What was held back, and the finish reason."""
        pieces = self._pieces(self._reader.finish())
        return [*pieces, self._chunk({}, finish_reason=self.finish_reason)]

    def _read(self, chunk: Chunk) -> list[AnswerEvent]:
        self._length += len(chunk.text)
        self._waiting = self._completion.visible(self._waiting + self._completion.place(chunk.logprobs, self._offsets), self._length)
        events = self._reader.push(chunk.text)
        self._reasoning_tokens += len(chunk.tokens) if self._reader.is_thinking else 0
        return events

    def _pieces(self, events: Sequence[AnswerEvent]) -> list[dict[str, Any]]:
        pieces = []
        for event in events:
            pieces.append(self._chunk(self._delta(event), self._logprobs([entry for _, entry in self._waiting])))
            self._waiting = []
        return pieces

    def _delta(self, event: AnswerEvent) -> dict[str, Any]:
        if isinstance(event, TextDelta):
            return {"content": event.text}
        if isinstance(event, ReasoningDelta):
            return {"reasoning_content": event.text}
        if isinstance(event, CallStart):
            function = {"name": event.name, "arguments": ""}
            return {"tool_calls": [{"index": event.index, "id": self._call_id(event.index), "type": "function", "function": function}]}
        assert isinstance(event, CallArguments)
        return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}

    def _call_id(self, index: int) -> str:
        while len(self._call_ids) <= index:
            self._call_ids.append(new_call_id())
        return self._call_ids[index]

    def _chunk(self, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    # --- as a whole ----------------------------------------------------------------------------------------------------------------------

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """The answer that all chunks come to."""
        events = [event for chunk in chunks for event in self._read(chunk)] + self._reader.finish()
        message = message_of(events, [self._call_id(index) for index in range(self._reader.calls)])
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs([entry for _, entry in self._waiting]),
            "finish_reason": self.finish_reason,
        }
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self.usage()}

    # --- facts about it ------------------------------------------------------------------------------------------------------------------

    @property
    def finish_reason(self) -> str:
        """Why it ended; "tool_calls" only where the model itself ended behind a call, so that a cut one shows as cut."""
        reason = self._completion.generation.finish_reason or "stop"
        return "tool_calls" if reason == "stop" and self._reader.calls else reason

    def usage(self) -> dict[str, Any]:
        """OpenAI's token counts."""
        generation, handle = self._completion.generation, self._completion.handle
        return {
            "prompt_tokens": generation.n_prompt,
            "completion_tokens": generation.n_generated,
            "total_tokens": generation.n_prompt + generation.n_generated,
            "prompt_tokens_details": {"cached_tokens": handle.cached_tokens if handle else 0},
            "completion_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
        }

    def chunk_with(self, **values: Any) -> dict[str, Any]:
        """A chunk without choices that carries other facts, such as usage."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], **values}

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """The chat endpoint's form: one object per token."""
        if not self._with_logprobs:
            return None
        content = [
            {**self._token(entry.token, entry.logprob), "top_logprobs": [self._token(token, logprob) for token, logprob in entry.top]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        name, piece = token_name(self._vocabulary, token), self._vocabulary.piece(token)
        return {"token": name, "bytes": list(piece), "logprob": logprob}
