"""Chat completions as llama-cpp-python and OpenAI shape them."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..engine.generation import TokenLogprob
from ..engine.grammar import LlamaGrammar
from . import chat_format
from .completion import Completion, CompletionRequest, usage
from .logprobs import Offsets, token_name
from .session import Session

Message = dict[str, Any]


def prompt_of(session: Session, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None, **values: Any) -> list[int]:
    """Tokens of a conversation by the model's template, ready for the assistant's turn. The template writes BOS itself."""
    vocabulary = session.vocabulary
    template = chat_format.choose_template(session.chat_format, session.metadata, lambda text: vocabulary.id_of(text) >= 0)
    text = chat_format.render(
        template,
        [_plain(index, message) for index, message in enumerate(messages)],
        tools=list(tools) if tools else None,
        bos_token=_text_of(session, vocabulary.bos),
        eos_token=_text_of(session, vocabulary.eos),
        **values,
    )
    return vocabulary.encode(text, special=True)


def _text_of(session: Session, token: int) -> str:
    return token_name(session.vocabulary, token) if token >= 0 else ""


def _plain(index: int, message: Message) -> Message:
    """A message whose content is text; ValueError names the message that has no role, or parts that are no text."""
    if not isinstance(message, dict) or "role" not in message:
        raise ValueError(f"message {index} has no role")
    content = message.get("content")
    if isinstance(content, list):
        kinds = {part.get("type") for part in content} - {"text"}
        if kinds:
            raise ValueError(f"message {index} has content of type {', '.join(map(str, sorted(kinds)))}; only text is supported")
        content = "".join(part["text"] for part in content)
    return {**message, "content": "" if content is None else content}


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


def forced_tool(tools: Sequence[dict[str, Any]] | None, tool_choice: Any) -> dict[str, Any] | None:
    """The function that `tool_choice` demands, None when the model may choose."""
    if tool_choice in (None, "none", "auto"):
        return None
    if tool_choice == "required" and tools and len(tools) == 1:
        return dict(tools[0]["function"])
    if not isinstance(tool_choice, dict):
        raise ValueError(f"tool_choice={tool_choice!r} with {len(tools or ())} tools is not supported; give none, auto, or a tool by name")
    name = tool_choice.get("function", {}).get("name")
    for tool in tools or ():
        if tool.get("function", {}).get("name") == name:
            return dict(tool["function"])
    raise ValueError(f"tool_choice names {name!r}, which is not among the tools")


class ChatCompletion:
    """One chat request: the completion below it, and the shapes above it.

    Args:
        request: sampling and limits; its prompt and grammar are set here.
        tools, tool_choice: the tools go to the template; a tool that is demanded by name constrains the answer to its arguments.
        response_format: constrains the answer.
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
    ) -> None:
        self._session, self._tool = session, forced_tool(tools, tool_choice)
        grammar = request.grammar or grammar_for(response_format)
        if self._tool is not None:
            grammar = LlamaGrammar.from_json_schema(self._tool.get("parameters") or {"type": "object"})
        prompt = prompt_of(session, messages, None if tool_choice == "none" else tools)
        self._with_logprobs = request.logprobs is not None
        self._completion = Completion(session, replace(request, prompt=prompt, grammar=grammar))
        self._head: dict[str, Any] = {"id": f"chatcmpl-{uuid.uuid4()}", "created": int(time.time()), "model": model or session.model_path}

    def finish(self) -> dict[str, Any]:
        """The whole answer."""
        result = self._completion.finish()
        message = {"role": "assistant", "content": result.text} if self._tool is None else self._call_message(result.text)
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
            if chunk.text:
                delta = {"content": chunk.text} if self._tool is None else self._call_delta(chunk.text, first)
                yield self._chunk(delta, self._logprobs([entry for _, entry in waiting]))
                first, waiting = False, []
        yield self._chunk({}, finish_reason=self._reason(self._completion.generation.finish_reason))

    def _reason(self, reason: str | None) -> str | None:
        """A call whose arguments are complete ends with "tool_calls"."""
        return "tool_calls" if self._tool is not None and reason == "stop" else reason

    def _chunk(self, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _call(self, arguments: str) -> dict[str, Any]:
        assert self._tool is not None
        return {"id": "call_0_" + self._head["id"], "type": "function", "function": {"name": self._tool["name"], "arguments": arguments}}

    def _call_message(self, arguments: str) -> dict[str, Any]:
        call = self._call(arguments)
        return {"role": "assistant", "content": None, "tool_calls": [call], "function_call": call["function"]}

    def _call_delta(self, text: str, first: bool) -> dict[str, Any]:
        call = self._call(text) if first else {"function": {"arguments": text}}
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
