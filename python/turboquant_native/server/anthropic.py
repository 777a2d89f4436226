"""Anthropic's Messages API, as a translation to and from OpenAI's chat."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field

from .schemas import Body, ChatBody

# A client's accounting line, different in each request: in the prompt it would keep every prefix from being found again.
_BILLING = "x-anthropic-billing-header:"
_CALLER = {"caller": {"type": "direct"}}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class AnthropicMessage(Body):
    role: str
    content: str | list[dict[str, Any]]


class CountBody(Body):
    """POST /v1/messages/count_tokens"""

    model: str | None = None
    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None


class MessagesBody(CountBody):
    """POST /v1/messages"""

    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool | None = False
    stop_sequences: list[str] | None = None
    temperature: Annotated[float | None, Field(ge=0, le=1)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    top_k: int | None = None
    output_config: dict[str, Any] | None = None


def to_chat(body: CountBody) -> ChatBody:
    """The same request in OpenAI's form; ValueError names what has no counterpart."""
    messages = _system(body.system) + [entry for index, message in enumerate(body.messages) for entry in _messages(index, message)]
    values: dict[str, Any] = {"model": body.model, "messages": messages, "tools": _tools(body.tools), **_tool_choice(body.tool_choice)}
    template: dict[str, Any] = {}
    if body.thinking is not None:
        template["enable_thinking"] = body.thinking.get("type") != "disabled"
    if isinstance(body, MessagesBody):
        values |= {name: getattr(body, name) for name in ("stream", "max_tokens", "temperature", "top_p", "top_k")}
        values["stop"] = body.stop_sequences
        if (body.output_config or {}).get("effort") is not None:
            template["reasoning_effort"] = (body.output_config or {})["effort"]
        schema = ((body.output_config or {}).get("format") or {}).get("schema")
        if schema is not None:
            values["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    if template:
        values["chat_template_kwargs"] = template
    if (body.model_extra or {}).get("mcp_servers"):
        raise ValueError("mcp_servers is not supported: give the tools themselves")
    return ChatBody.model_validate(values)


def _text(where: str, content: str | Sequence[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{where} has content of type {part.get('type')!r}; only text is supported")
    return "\n".join(part["text"] for part in content)


def _system(system: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": system}] if isinstance(system, str) else list(system or ())
    lines = _text("system", [{**part, "text": _without_billing(str(part.get("text", "")))} for part in parts])
    return [{"role": "system", "content": lines.lstrip("\n")}] if lines.strip() else []


def _without_billing(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_BILLING))


def _messages(index: int, message: AnthropicMessage) -> list[dict[str, Any]]:
    """A message may hold results of tools, which are messages of their own in OpenAI's form."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    where = f"messages.{index}"
    results, texts, calls, thoughts = [], [], [], []
    for part in message.content:
        kind = part.get("type")
        if kind == "tool_result":
            results.append(_tool_result(where, part))
        elif kind == "tool_use":
            calls.append(_tool_use(where, part))
        elif kind == "thinking":
            thoughts.append(str(part.get("thinking", "")))
        elif kind != "redacted_thinking":
            texts.append(part)
    turn: dict[str, Any] = {"role": message.role, "content": _text(where, texts)}
    if calls:
        turn["tool_calls"] = calls
    if thoughts:
        turn["reasoning_content"] = "\n".join(thoughts)
    return results + ([turn] if texts or calls or thoughts or not results else [])


def _tool_result(where: str, part: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(part.get("tool_use_id"), str):
        raise ValueError(f"{where}: a tool_result has no tool_use_id")
    return {"role": "tool", "tool_call_id": part["tool_use_id"], "content": _text(where, part.get("content") or "")}


def _tool_use(where: str, part: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(part.get("name"), str) or not isinstance(part.get("input", {}), dict):
        raise ValueError(f"{where}: a tool_use needs a name and an object as input")
    function = {"name": part["name"], "arguments": json.dumps(part.get("input", {}), ensure_ascii=False)}
    return {"id": str(part.get("id", "")), "type": "function", "function": function}


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools of the client; those that Anthropic runs itself have no schema and are left out."""
    own = [tool for tool in tools or () if "input_schema" in tool]
    if not own:
        return None
    return [
        {
            "type": "function",
            "function": {
                "name": tool.get("name"),
                "description": tool.get("description", ""),
                "parameters": tool["input_schema"],
                **({"strict": True} if tool.get("strict") else {}),
            },
        }
        for tool in own
    ]


def _tool_choice(choice: dict[str, Any] | None) -> dict[str, Any]:
    kind = (choice or {}).get("type")
    parallel = {"parallel_tool_calls": False} if (choice or {}).get("disable_parallel_tool_use") else {}
    if choice is None or kind == "auto":
        return parallel
    if kind == "tool":
        return {"tool_choice": {"type": "function", "function": {"name": choice.get("name")}}, **parallel}
    if kind in ("any", "none"):
        return {"tool_choice": "required" if kind == "any" else "none", **parallel}
    raise ValueError(f"tool_choice has the unknown type {kind!r}; known: auto, any, tool, none")


# --- answers -----------------------------------------------------------------------------------------------------------------------------


def _counts(n_input: int, n_cached: int, n_output: int, n_thinking: int) -> dict[str, Any]:
    """Anthropic's token counts, as far as they mean something here."""
    return {
        "input_tokens": n_input,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": n_output,
        "output_tokens_details": {"thinking_tokens": n_thinking},
        "server_tool_use": None,
    }


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    thinking = usage["completion_tokens_details"]["reasoning_tokens"]
    return _counts(usage["prompt_tokens"] - cached, cached, usage["completion_tokens"], thinking)


_NOT_HERE = {"cache_creation": None, "inference_geo": None, "service_tier": None}  # required of a message's usage


def _stop(choice: dict[str, Any], stopped_by: str | None) -> dict[str, Any]:
    reason = "stop_sequence" if stopped_by else _STOP_REASONS.get(choice["finish_reason"], "end_turn")
    return {"stop_reason": reason, "stop_sequence": stopped_by, "stop_details": None, "container": None}


def message(answer: dict[str, Any], stopped_by: str | None) -> dict[str, Any]:
    """A whole answer: OpenAI's form into Anthropic's."""
    choice = answer["choices"][0]
    said = choice["message"]
    content: list[dict[str, Any]] = []
    if said.get("reasoning_content"):
        content.append({"type": "thinking", "thinking": said["reasoning_content"], "signature": ""})
    if said.get("content"):
        content.append({"type": "text", "text": said["content"], "citations": None})
    for call in said.get("tool_calls") or ():
        content.append({"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": _input(call), **_CALLER})
    head = {"id": _id(answer["id"]), "type": "message", "role": "assistant", "model": answer["model"], "content": content}
    return {**head, **_stop(choice, stopped_by), "usage": {**_usage(answer["usage"]), **_NOT_HERE}}


def _id(chat_id: str) -> str:
    return "msg_" + chat_id.removeprefix("chatcmpl-")


def _input(call: dict[str, Any]) -> dict[str, Any]:
    """Arguments as an object; those that a limit cut, or that are no object, stand in it as text."""
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except ValueError:
        arguments = None
    return arguments if isinstance(arguments, dict) else {"_text": call["function"]["arguments"]}


class EventWriter:
    """The events of a streamed message: (name, data) pairs for OpenAI's chunks as they come."""

    def __init__(self, n_prompt: int) -> None:
        self._n_prompt = n_prompt
        self._block = -1  # index of the open content block
        self._kind: tuple[str, int] | None = None  # what it holds; calls by their index
        self._choice: dict[str, Any] = {"finish_reason": "stop"}
        self._opened = False

    def begin(self, chunk: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The message without content."""
        usage = {**_counts(self._n_prompt, 0, 0, 0), **_NOT_HERE}
        head = {"id": _id(chunk["id"]), "type": "message", "role": "assistant", "model": chunk["model"], "content": []}
        open_end = {"stop_reason": None, "stop_sequence": None, "stop_details": None, "container": None}
        yield "message_start", {"type": "message_start", "message": {**head, **open_end, "usage": usage}}

    def push(self, chunk: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """What one chunk adds."""
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("reasoning_content"):
                yield from self._open(("thinking", 0), {"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta({"type": "thinking_delta", "thinking": delta["reasoning_content"]})
            if delta.get("content"):
                yield from self._open(("text", 0), {"type": "text", "text": "", "citations": None})
                yield self._delta({"type": "text_delta", "text": delta["content"]})
            for call in delta.get("tool_calls") or ():
                if "id" in call:
                    block = {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": {}, **_CALLER}
                    yield from self._open(("call", call["index"]), block)
                if call["function"].get("arguments"):
                    yield self._delta({"type": "input_json_delta", "partial_json": call["function"]["arguments"]})
            if choice["finish_reason"] is not None:
                self._choice = choice

    def end(self, usage: dict[str, Any], stopped_by: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """The last events."""
        yield from self._close()
        delta = _stop(self._choice, stopped_by)
        yield "message_delta", {"type": "message_delta", "delta": delta, "usage": _usage(usage)}
        yield "message_stop", {"type": "message_stop"}

    def _open(self, kind: tuple[str, int], block: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        if kind == self._kind:
            return
        yield from self._close()
        self._block, self._kind, self._opened = self._block + 1, kind, True
        yield "content_block_start", {"type": "content_block_start", "index": self._block, "content_block": block}

    def _close(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._opened:
            self._opened = False
            if self._kind == ("thinking", 0):
                yield self._delta({"type": "signature_delta", "signature": ""})
            yield "content_block_stop", {"type": "content_block_stop", "index": self._block}

    def _delta(self, delta: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return "content_block_delta", {"type": "content_block_delta", "index": self._block, "delta": delta}
