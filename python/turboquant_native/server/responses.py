"""Requests of OpenAI's Responses API, as a translation to its chat. Nothing is stored: a request carries the whole conversation."""

from typing import Annotated, Any

from pydantic import Field

from .schemas import Body, ChatBody, refuse_not_followed


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
