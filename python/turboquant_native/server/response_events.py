"""Answers in the form of OpenAI's Responses API, from those of its chat: whole, and as a stream of events."""

import time
from collections.abc import Iterator
from typing import Any

from .responses import ResponsesBody

Event = tuple[str, dict[str, Any]]


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
