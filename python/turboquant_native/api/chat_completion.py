"""Chat completions as llama-cpp-python and OpenAI shape them."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..engine.generation import TokenLogprob
from ..engine.grammar import LlamaGrammar
from .chat_prompt import Message, prompt_of
from .completion import Completion, CompletionRequest, usage
from .logprobs import Offsets, token_name
from .session import Session
from .tool_choice import DemandedCall, demanded


def grammar_for(response_format: dict[str, Any] | None) -> LlamaGrammar | None:
    """The grammar of OpenAI's `response_format` (also with llama-cpp-python's "schema" key)."""
    if response_format is not None and not isinstance(response_format, dict):
        raise TypeError(f"response_format must be a dict such as {{'type': 'json_object'}}, got {response_format!r}")
    kind = (response_format or {"type": "text"}).get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return LlamaGrammar.from_json_schema(response_format.get("schema") or {"type": "object"})
    if kind == "json_schema":
        described = response_format.get("json_schema") or {}
        return LlamaGrammar.from_json_schema(described.get("schema") or {"type": "object"})
    raise ValueError(f"response_format has the unknown type {kind!r}; known: text, json_object, json_schema")


class ChatCompletion:
    """One chat request: the completion below it, and the shapes above it.

    Args:
        request: sampling and limits; its prompt and grammar are set here.
        tools, tool_choice: the tools go to the template; a call that is demanded constrains the answer.
        response_format: constrains the answer.
        chat_template_kwargs: more variables of the template.
    """

    def __init__(
        self,
        session: Session,
        messages: Sequence[Message],
        request: CompletionRequest,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: Any = None,
        response_format: dict[str, Any] | None = None,
        model: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        functions = demanded(tools, tool_choice)
        self._session, self._demanded = session, DemandedCall(functions) if functions else None
        grammar = request.grammar or grammar_for(response_format)
        if self._demanded is not None:
            grammar = self._demanded.grammar()
        prompt = prompt_of(session, messages, None if tool_choice == "none" else tools, chat_template_kwargs)
        self._with_logprobs = request.logprobs is not None
        self._completion = Completion(session, replace(request, prompt=prompt, grammar=grammar))
        self._head: dict[str, Any] = {"id": f"chatcmpl-{uuid.uuid4()}", "created": int(time.time()), "model": model or session.model_path}

    def finish(self) -> dict[str, Any]:
        """The whole answer."""
        result = self._completion.finish()
        message = (
            {"role": "assistant", "content": result.text} if self._demanded is None else self._call_message(self._demanded, result.text)
        )
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(result.logprobs),
            "finish_reason": self._reason(result.finish_reason),
        }
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage(result)}

    def stream(self) -> Iterator[dict[str, Any]]:
        """The answer in pieces: the role, the text, the finish reason."""
        yield self._chunk({"role": "assistant"})
        offsets, length, first = Offsets(self._session.vocabulary), 0, True
        waiting: list[tuple[int, TokenLogprob]] = []
        for chunk in self._completion.chunks():
            length += len(chunk.text)
            waiting = self._completion.visible(waiting + self._completion.place(chunk.logprobs, offsets), length)
            text = chunk.text if self._demanded is None else self._demanded.push(chunk.text)
            if text:
                delta = {"content": text} if self._demanded is None else self._call_delta(self._demanded, text, first)
                yield self._chunk(delta, self._logprobs([entry for _, entry in waiting]))
                first, waiting = False, []
        if self._demanded is not None and (text := self._demanded.finish()):
            yield self._chunk(self._call_delta(self._demanded, text, first), self._logprobs([entry for _, entry in waiting]))
        yield self._chunk({}, finish_reason=self._reason(self._completion.generation.finish_reason))

    def _reason(self, reason: str | None) -> str | None:
        """A call whose arguments are complete ends with "tool_calls"."""
        return "tool_calls" if self._demanded is not None and reason == "stop" else reason

    def _chunk(self, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _call(self, name: str | None, arguments: str) -> dict[str, Any]:
        return {"id": "call_0_" + self._head["id"], "type": "function", "function": {"name": name, "arguments": arguments}}

    def _call_message(self, demanded: DemandedCall, text: str) -> dict[str, Any]:
        arguments = demanded.push(text) + demanded.finish()
        if demanded.name is None:  # cut before it was known
            return {"role": "assistant", "content": text}
        call = self._call(demanded.name, arguments)
        return {"role": "assistant", "content": None, "tool_calls": [call], "function_call": call["function"]}

    def _call_delta(self, demanded: DemandedCall, text: str, first: bool) -> dict[str, Any]:
        call = self._call(demanded.name, text) if first else {"function": {"arguments": text}}
        return {"tool_calls": [{"index": 0, **call}]}

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
        return {
            "token": token_name(self._session.vocabulary, token),
            "bytes": list(self._session.vocabulary.piece(token)),
            "logprob": logprob,
        }
