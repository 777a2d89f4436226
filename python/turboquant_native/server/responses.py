"""OpenAI's Responses API, as a translation to and from its chat. Nothing is stored: a request carries the whole conversation."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from .schemas import Body, ChatBody, refuse_not_followed

Event = tuple[str, dict[str, Any]]


class ResponsesBody(Body):
    """POST /v1/responses"""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool | None = False
    max_output_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    background: bool | None = None


def to_chat(body: ResponsesBody) -> ChatBody:
    """The same request in the chat's form; ValueError names what has no counterpart."""
    if body.previous_response_id is not None:
        raise ValueError("previous_response_id is not supported: nothing is stored here, send the whole conversation as input")
    if body.background:
        raise ValueError("background is not supported")
    if body.top_logprobs or "message.output_text.logprobs" in (body.include or ()):
        raise ValueError("log-probabilities are not supported here: /v1/chat/completions has them")
    extra = body.model_extra or {}
    for name in ("conversation", "prompt"):
        if extra.get(name) is not None:
            raise ValueError(f"{name} is not supported: nothing is stored here, send the whole conversation as input")
    refuse_not_followed(extra)
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for index, item in enumerate(items):
        _append(messages, index, item)
    tools, choice = _allowed(_tools(body.tools), body.tool_choice)
    values: dict[str, Any] = {
        "model": body.model,
        "messages": messages,
        "stream": body.stream,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _format(body.text),
    }
    if (body.reasoning or {}).get("effort") is not None:
        values["reasoning_effort"] = (body.reasoning or {})["effort"]
    return ChatBody.model_validate(values)


def _append(messages: list[dict[str, Any]], index: int, item: dict[str, Any]) -> None:
    """Adds one item of the input; calls and thoughts belong to the assistant's turn before or after them."""
    kind = item.get("type", "message")
    where = f"input.{index}"
    if kind == "message":
        if not isinstance(item.get("role"), str):
            raise ValueError(f"{where} has no role")
        turn = _turn(messages) if item["role"] == "assistant" and _is_open(messages) else {"role": item["role"]}
        turn["content"] = _text(where, item.get("content"))
        if not any(turn is message for message in messages):
            messages.append(turn)
    elif kind == "function_call":
        if not isinstance(item.get("name"), str):
            raise ValueError(f"{where}: a function_call has no name")
        function = {"name": item["name"], "arguments": item.get("arguments") or "{}"}
        _turn(messages).setdefault("tool_calls", []).append({"id": str(item.get("call_id", "")), "type": "function", "function": function})
    elif kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": str(item.get("call_id", "")), "content": _text(where, item.get("output"))})
    elif kind == "reasoning":
        thoughts = [part.get("text", "") for part in item.get("content") or item.get("summary") or ()]
        messages.append({"role": "assistant", "content": "", "reasoning_content": "\n".join(thoughts)})
    # Other items (searches, shell calls, compactions) are records of tools that are not functions.


def _is_open(messages: list[dict[str, Any]]) -> bool:
    """Whether the last message is an assistant's that consists of thoughts so far."""
    return bool(messages) and messages[-1]["role"] == "assistant" and "reasoning_content" in messages[-1] and not messages[-1]["content"]


def _turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's present turn."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _text(where: str, content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ValueError(f"{where} has content that is neither text nor a list of parts")
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in ("input_text", "output_text", "text", "refusal"):
            raise ValueError(
                f"{where} has content of type {part.get('type') if isinstance(part, dict) else part!r}; only text is supported"
            )
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in content)


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Functions only: tools that OpenAI runs itself, such as web search, are left out."""
    own = [tool for tool in tools or () if tool.get("type") == "function"]
    return [
        {"type": "function", "function": {name: tool.get(name) for name in ("name", "description", "parameters", "strict") if name in tool}}
        for tool in own
    ]


def _allowed(tools: list[dict[str, Any]], choice: str | dict[str, Any] | None) -> tuple[list[dict[str, Any]], Any]:
    """The tools that may be called, and the chat's tool_choice; ValueError for a choice that cannot be met."""
    if choice is None or isinstance(choice, str):
        return tools, choice if tools or choice == "required" else None
    if choice.get("type") == "function":
        return tools, {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") != "allowed_tools":
        raise ValueError(f"tool_choice demands the tool {choice.get('type')!r}, which is not here; functions can be demanded")
    named = {tool.get("name") for tool in choice.get("tools") or () if tool.get("type") == "function"}
    allowed = [tool for tool in tools if tool["function"].get("name") in named]
    mode = choice.get("mode", "auto")
    return allowed, mode if allowed or mode == "required" else None


def _format(text: dict[str, Any] | None) -> dict[str, Any] | None:
    described = (text or {}).get("format")
    if not described or described.get("type") != "json_schema":
        return described
    return {"type": "json_schema", "json_schema": {name: value for name, value in described.items() if name != "type"}}


# --- answers -----------------------------------------------------------------------------------------------------------------------------


class ResponseWriter:
    """Builds a response of OpenAI's chunks: as a stream of (name, data) events, and as a whole in `response`."""

    def __init__(self, body: ResponsesBody, chat_id: str, model: str) -> None:
        self._id = chat_id.removeprefix("chatcmpl-")
        self._sequence = 0
        self._reason: str | None = None
        self._item: dict[str, Any] | None = None
        self.response = self._empty(body, model)

    def _empty(self, body: ResponsesBody, model: str) -> dict[str, Any]:
        """Every field that the specification demands."""
        given = {name: value for name, value in (body.model_extra or {}).items() if name in _ECHOED}
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "model": model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": None,
            "safety_identifier": None,
            "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": body.text if (body.text or {}).get("format") else {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [_tool_shown(tool) for tool in body.tools or () if tool.get("type") == "function"],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "presence_penalty": body.presence_penalty or 0.0,
            "frequency_penalty": body.frequency_penalty or 0.0,
            "truncation": "disabled",
            "usage": None,
            "metadata": body.metadata or {},
            **given,
        }

    def begin(self) -> Iterator[Event]:
        """The first events."""
        yield self._event("response.created", response=_copy(self.response))
        yield self._event("response.in_progress", response=_copy(self.response))

    def push(self, chunk: dict[str, Any]) -> Iterator[Event]:
        """What one chunk adds."""
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("reasoning_content"):
                yield from self._say("reasoning", delta["reasoning_content"])
            if delta.get("content"):
                yield from self._say("message", delta["content"])
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            self._reason = choice["finish_reason"] or self._reason

    def end(self, usage: dict[str, Any]) -> Iterator[Event]:
        """The last events; the response is complete."""
        status = "incomplete" if self._reason == "length" else "completed"
        yield from self._close(status)
        self.response |= {"status": status, "completed_at": int(time.time()), "usage": _usage(usage)}
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        yield self._event(f"response.{status}", response=_copy(self.response))

    def fail(self, message: str) -> Iterator[Event]:
        """The answer broke off."""
        yield from self._close("incomplete")
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        yield self._event("response.failed", response=_copy(self.response))

    def _event(self, name: str, /, **values: Any) -> Event:
        event = {"type": name, "sequence_number": self._sequence, **values}
        self._sequence += 1
        return name, event

    def _at(self, **values: Any) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self.response["output"]) - 1, **values}

    def _say(self, kind: str, text: str) -> Iterator[Event]:
        if self._item is None or self._item["type"] != kind:
            yield from self._close("completed")
            yield from self._open(kind)
        assert self._item is not None
        self._item["content"][0]["text"] += text
        yield self._event(f"response.{_PARTS[kind]}.delta", **self._at(content_index=0, delta=text, **_logprobs(kind)))

    def _open(self, kind: str) -> Iterator[Event]:
        """An item of text, with its one part."""
        head: dict[str, Any] = {"id": self._item_id("rs" if kind == "reasoning" else "msg"), "type": kind, "status": "in_progress"}
        own: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
        item = {**head, **own, "content": []}
        yield from self._add(item)
        part = {"type": _PARTS[kind], "text": "", **({} if kind == "reasoning" else {"annotations": []}), **_logprobs(kind)}
        yield self._event("response.content_part.added", **self._at(content_index=0, part=dict(part)))
        item["content"].append(part)

    def _call(self, call: dict[str, Any]) -> Iterator[Event]:
        if "id" in call:
            yield from self._close("completed")
            head = {"id": self._item_id("fc"), "type": "function_call", "status": "in_progress", "call_id": call["id"]}
            yield from self._add({**head, "name": call["function"]["name"], "arguments": ""})
        assert self._item is not None
        if call["function"].get("arguments"):
            self._item["arguments"] += call["function"]["arguments"]
            yield self._event("response.function_call_arguments.delta", **self._at(delta=call["function"]["arguments"]))

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._id}_{len(self.response['output'])}"

    def _add(self, item: dict[str, Any]) -> Iterator[Event]:
        self.response["output"].append(item)
        self._item = item
        yield self._event("response.output_item.added", output_index=len(self.response["output"]) - 1, item=_copy(item))

    def _close(self, status: str) -> Iterator[Event]:
        """Ends the open item."""
        item = self._item
        if item is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            done = self._at(name=item["name"], arguments=item["arguments"])
            yield self._event("response.function_call_arguments.done", **done)
        else:
            kind, part = item["type"], item["content"][0]
            done = self._at(content_index=0, text=part["text"], **_logprobs(kind))
            yield self._event(f"response.{_PARTS[kind]}.done", **done)
            yield self._event("response.content_part.done", **self._at(content_index=0, part=dict(part)))
        yield self._event("response.output_item.done", output_index=len(self.response["output"]) - 1, item=_copy(item))
        self._item = None


_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}  # item: type of its part, and name of its events
_ECHOED = ("max_tool_calls", "prompt_cache_key", "safety_identifier")


def _logprobs(kind: str) -> dict[str, Any]:
    return {} if kind == "reasoning" else {"logprobs": []}


def _copy(value: Any) -> Any:
    """A snapshot: later events must not change what was sent."""
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


def _tool_shown(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "description": None, "parameters": None, "strict": None, **tool}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)},
        "total_tokens": usage["total_tokens"],
    }


def whole(writer: ResponseWriter, answer: dict[str, Any]) -> dict[str, Any]:
    """A whole answer of the chat's as a response."""
    choice = answer["choices"][0]
    said = choice["message"]
    calls = [{"index": index, **call} for index, call in enumerate(said.get("tool_calls") or ())]
    delta = {"reasoning_content": said.get("reasoning_content"), "content": said.get("content"), "tool_calls": calls}
    for _ in writer.push({"choices": [{"delta": delta, "finish_reason": choice["finish_reason"]}]}):
        pass
    for _ in writer.end(answer["usage"]):
        pass
    return writer.response
