"""What the server makes of an answer: tool calls, thinking apart from the rest, channels, schemas that hold."""

import json

import pytest
from starlette.testclient import TestClient

from server_tools import CALL, CHATML, COLOURS, TOOLS, ask, chunks, events, post, saying, spoken
from turboquant_native import Llama
from turboquant_native.server import Settings, create_app


def test_auto_tools_become_calls(client, llama, monkeypatch):
    with saying(monkeypatch, spoken(llama, "Let me see.\n" + CALL)):
        answer = post(client, "/v1/chat/completions", ask(tools=TOOLS, tool_choice="auto"))
        streamed = chunks(post(client, "/v1/chat/completions", ask(tools=TOOLS, stream=True)))
    choice = answer["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Let me see."
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'} and len(call["id"]) == 9
    deltas = [piece["choices"][0]["delta"] for piece in streamed]
    pieces = [call["function"]["arguments"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert "".join(pieces) == '{"city": "Paris"}' and sum(bool(piece) for piece in pieces) > 3
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    assert streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_cut_call_ends_with_length(client, llama, monkeypatch):
    limit = len(llama.vocabulary.encode(CALL[: CALL.index("aris")]))
    with saying(monkeypatch, spoken(llama, CALL)):
        choice = post(client, "/v1/chat/completions", ask(tools=TOOLS, max_tokens=limit))["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["tool_calls"][0]["function"]["name"] == "weather"


def test_a_named_tool_is_called(client):
    choice = {"type": "function", "function": {"name": "weather"}}
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
    for demanded in (choice, "required"):
        answer = post(client, "/v1/chat/completions", ask(tools=tools, tool_choice=demanded, max_tokens=100))["choices"][0]
        assert json.loads(answer["message"]["tool_calls"][0]["function"]["arguments"])["city"] in ("Paris", "Rome")
        assert answer["finish_reason"] == "tool_calls" and answer["message"]["content"] is None


def test_any_of_several_tools_is_called(client):
    tools = [{"type": "function", "function": {"name": name, "parameters": COLOURS}} for name in ("paint", "wash")]
    streamed = chunks(post(client, "/v1/chat/completions", ask(tools=tools, tool_choice="required", max_tokens=100, stream=True)))
    calls = [call for piece in streamed for call in piece["choices"][0]["delta"].get("tool_calls", ())]
    assert calls[0]["function"]["name"] in ("paint", "wash") and streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert json.loads("".join(call["function"]["arguments"] for call in calls))["c"] in ("red", "blue")
    assert not any(piece["choices"][0]["delta"].get("content") for piece in streamed)


def test_a_strict_tools_schema_is_kept_by_its_own_calls(client, llama, monkeypatch):
    """The model writes a call's beginning by itself; from there on it can only make one that fits."""
    function = {"name": "paint", "strict": True, "parameters": COLOURS}
    with saying(monkeypatch, spoken(llama, "So.\n<tool_call>", end=False)):
        body = ask(tools=[{"type": "function", "function": function}], max_tokens=150)
        choice = post(client, "/v1/chat/completions", body)["choices"][0]
    calls = choice["message"]["tool_calls"]
    assert calls[0]["function"]["name"] == "paint" and json.loads(calls[0]["function"]["arguments"])["c"] in ("red", "blue")
    assert choice["message"]["content"].startswith("So.")


def strict_paint(**more):
    return ask(tools=[{"type": "function", "function": {"name": "paint", "strict": True, "parameters": COLOURS}}], max_tokens=150, **more)


@pytest.mark.parametrize(
    ("mark", "begun"),
    [
        ("", '{"name": "paint"'),
        ("", 'So.\n```json\n{"name": "paint",'),
        ("<|python_tag|>", '{"name": "paint", "para'),
        ("<|python_tag|>", '<|python_tag|>{"type": "function", "name": "paint"'),
        ("[TOOL_CALLS]", '[TOOL_CALLS][{"name": "paint"'),
        ("[TOOL_CALLS]", "[TOOL_CALLS]paint[ARGS]{"),
    ],
)
def test_a_strict_tool_is_kept_in_every_json_family(llama, monkeypatch, mark, begun):
    """The model names the tool by itself; from there on only arguments that fit can follow."""
    monkeypatch.setattr(llama.session, "chat_format", CHATML + f"{{# {mark} #}}")
    with TestClient(create_app(llama, Settings(n_slots=4))) as client, saying(monkeypatch, spoken(llama, begun, end=False)):
        choice = post(client, "/v1/chat/completions", strict_paint())["choices"][0]
    call = choice["message"]["tool_calls"][0]["function"]
    assert call["name"] == "paint" and json.loads(call["arguments"])["c"] in ("red", "blue")


def test_a_strict_call_that_cannot_be_bound_fails_aloud(llama, monkeypatch):
    """Arguments before the name: when the tool is known, they stand already."""
    monkeypatch.setattr(llama.session, "chat_format", CHATML)
    app, begun = create_app(llama, Settings(n_slots=4)), '{"parameters": {"c": "green"}, "name": "paint"'
    with TestClient(app, raise_server_exceptions=False) as client, saying(monkeypatch, spoken(llama, begun)):
        assert post(client, "/v1/chat/completions", strict_paint(), 500)["error"]["code"] == "strict_tool_call_failed"
        assert events(post(client, "/v1/chat/completions", strict_paint(stream=True)))[-2][1]["error"]["code"] == "strict_tool_call_failed"


@pytest.mark.parametrize("mark", ["<function=", "<|tool_call>", "<start_function_call>", "<start_of_turn>"])
def test_a_strict_tool_is_refused_where_it_cannot_be_kept(llama, monkeypatch, mark):
    monkeypatch.setattr(llama.session, "chat_format", CHATML + f"{{# {mark} #}}")
    with TestClient(create_app(llama, Settings(n_slots=4))) as client:
        assert "'paint' is strict" in post(client, "/v1/chat/completions", strict_paint(), 400)["error"]["message"]
        body = strict_paint(tool_choice="required")
        assert json.loads(post(client, "/v1/chat/completions", body)["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])[
            "c"
        ] in ("red", "blue")


TWO_CALLS = {
    "<tool_call>": "Both.\n" + CALL + "\n" + CALL + "\nDone.",
    "[TOOL_CALLS]": 'Both.[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "weather", "arguments": {}}]',
    "<start_of_turn>": 'Both.\n```tool_code\nweather(city="Paris")\nweather(city="Rome")\n```',
}


@pytest.mark.parametrize("mark", TWO_CALLS)
def test_one_call_where_calls_must_not_be_parallel(llama, monkeypatch, mark):
    monkeypatch.setattr(llama.session, "chat_format", CHATML + f"{{# {mark} #}}")
    body, script = ask(tools=TOOLS), spoken(llama, TWO_CALLS[mark])
    with TestClient(create_app(llama, Settings(n_slots=4))) as client, saying(monkeypatch, script):
        both = post(client, "/v1/chat/completions", body)
        one = post(client, "/v1/chat/completions", {**body, "parallel_tool_calls": False})
        streamed = chunks(post(client, "/v1/chat/completions", {**body, "parallel_tool_calls": False, "stream": True}))
        messages = {"messages": body["messages"], "max_tokens": 200, "tools": [{"name": "weather", "input_schema": {}}]}
        anthropic = post(client, "/v1/messages", {**messages, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}})
        tools = [{"type": "function", "name": "weather"}]
        response = post(client, "/v1/responses", {"model": "tiny", "input": "a", "tools": tools, "parallel_tool_calls": False})
    assert len(both["choices"][0]["message"]["tool_calls"]) == 2
    message = one["choices"][0]["message"]
    assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [{"city": "Paris"}]
    assert (message["content"], one["choices"][0]["finish_reason"]) == ("Both.", "tool_calls")
    calls = [call for piece in streamed for call in piece["choices"][0]["delta"].get("tool_calls", ())]
    assert {call["index"] for call in calls} == {0} and streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert [part["type"] for part in anthropic["content"]] == ["text", "tool_use"] and anthropic["stop_reason"] == "tool_use"
    assert [item["type"] for item in response["output"]] == ["message", "function_call"]
    if mark != "<start_of_turn>":  # whose calls come all at once
        assert one["usage"]["completion_tokens"] < both["usage"]["completion_tokens"]  # the second call was not written


def test_no_tools_no_calls(client, llama, monkeypatch):
    with saying(monkeypatch, spoken(llama, CALL)):
        for body in (ask(), ask(tools=TOOLS, tool_choice="none")):
            choice = post(client, "/v1/chat/completions", body)["choices"][0]
            assert choice["message"]["content"] == CALL and "tool_calls" not in choice["message"] and choice["finish_reason"] == "stop"


def test_thinking_is_split_off(thinking_client, thinker, monkeypatch):
    with saying(monkeypatch, spoken(thinker, "Hm.\n</think>\n\nYes.")):
        answer = post(thinking_client, "/v1/chat/completions", ask())
        streamed = chunks(post(thinking_client, "/v1/chat/completions", ask(stream=True)))
    assert answer["choices"][0]["message"]["reasoning_content"] == "Hm." and answer["choices"][0]["message"]["content"] == "Yes."
    assert 0 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] < answer["usage"]["completion_tokens"]
    deltas = [piece["choices"][0]["delta"] for piece in streamed]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."


def test_template_switches_thinking_off(thinking_client, thinker, monkeypatch):
    with saying(monkeypatch, spoken(thinker, "Yes.")):
        message = post(thinking_client, "/v1/chat/completions", ask(chat_template_kwargs={"enable_thinking": False}))["choices"][0][
            "message"
        ]
    assert message["content"] == "Yes." and "reasoning_content" not in message


STRICT = {"type": "json_schema", "json_schema": {"name": "colour", "strict": True, "schema": COLOURS}}


def test_a_schema_binds_the_answer_and_not_the_thinking(thinking_client, thinker, monkeypatch):
    with saying(monkeypatch, spoken(thinker, "no JSON here </think>", end=False)):
        message = post(thinking_client, "/v1/chat/completions", ask(response_format=STRICT, max_tokens=200))["choices"][0]["message"]
    assert message["reasoning_content"] == "no JSON here"
    assert json.loads(message["content"])["c"] in ("red", "blue")


def test_answers_in_channels(chat_model, monkeypatch):
    """gpt-oss's: thinking, a call, and a schema that binds what stands in the last channel."""
    think, call = "<|channel|>analysis<|message|>no JSON<|end|><|start|>assistant", "<|channel|>commentary to=functions.weather<|message|>"
    final = "<|channel|>final<|message|>"
    with (
        Llama(str(chat_model), n_ctx=512, n_threads=1, chat_format=CHATML + "{# <|channel|> #}", verbose=False) as llm,
        TestClient(create_app(llm, Settings()), raise_server_exceptions=False) as client,
    ):

        def answer(text, **more):
            with saying(monkeypatch, spoken(llm, think + text, end="response_format" not in more)):
                return post(client, "/v1/chat/completions", ask(max_tokens=300, **more))["choices"][0]

        message = answer(final + "Yes.")["message"]
        assert (message["content"], message["reasoning_content"]) == ("Yes.", "no JSON")
        choice = answer(call + '{"city": "Paris"}<|call|>', tools=TOOLS)
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["reasoning_content"] == "no JSON"
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
        message = answer(final, response_format=STRICT)["message"]
        assert message["reasoning_content"] == "no JSON" and json.loads(message["content"])["c"] in ("red", "blue")


@pytest.mark.parametrize("thinks", [True, False])
def test_demanded_calls_in_channels(chat_model, monkeypatch, thinks):
    """By name and of several tools: free thinking, then the call's own header and arguments by the schema, whatever the model says."""
    think = "<|channel|>analysis<|message|>no JSON<|end|>" if thinks else ""
    paint = strict_paint()["tools"][0]
    with (
        Llama(str(chat_model), n_ctx=512, n_threads=1, chat_format=CHATML + "{# <|channel|> #}", verbose=False) as llm,
        TestClient(create_app(llm, Settings()), raise_server_exceptions=False) as client,
    ):

        def answer(text, choice, path="/v1/chat/completions", **more):
            with saying(monkeypatch, spoken(llm, think + text, end=False)):
                return post(client, path, ask(max_tokens=300, tools=[*TOOLS, paint], tool_choice=choice, **more))

        call = "<|start|>assistant" * thinks + "<|channel|>commentary to=functions."
        for text, choice, name in (
            (call[:-12], {"type": "function", "function": {"name": "paint"}}, "paint"),
            (call + "paint <|constrain|>json<|message|>", "required", "paint"),
            (call + 'weather <|constrain|>json<|message|>{"city": "Paris"}', "required", "weather"),
        ):
            one = answer(text, choice)["choices"][0]
            [found] = one["message"]["tool_calls"]
            assert (found["function"]["name"], one["finish_reason"]) == (name, "tool_calls") and not one["message"]["content"]
            assert one["message"].get("reasoning_content") == ("no JSON" if thinks else None)
            arguments = json.loads(found["function"]["arguments"])
            assert arguments["c"] in ("red", "blue") if name == "paint" else isinstance(arguments, dict)
        pieces = chunks(answer(call[:-12], {"type": "function", "function": {"name": "paint"}}, stream=True))
        calls = [each for piece in pieces for each in piece["choices"][0]["delta"].get("tool_calls", ())]
        assert calls[0]["function"]["name"] == "paint"
        assert json.loads("".join(each["function"]["arguments"] for each in calls))["c"] in ("red", "blue")
        odd = [{"type": "function", "function": {"name": "a b"}}]
        with saying(monkeypatch, spoken(llm, "x")):
            assert (
                "'a b' cannot be demanded"
                in post(client, "/v1/chat/completions", ask(tools=odd, tool_choice="required"), 400)["error"]["message"]
            )


def test_a_schema_is_kept(client):
    for body in (ask(response_format=STRICT), ask(json_schema=COLOURS), ask(grammar='root ::= "{\\"c\\": \\"red\\"}"')):
        content = post(client, "/v1/chat/completions", {**body, "max_tokens": 100})["choices"][0]["message"]["content"]
        assert json.loads(content)["c"] in ("red", "blue")


@pytest.mark.parametrize(
    "constraint",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
        {"response_format": {"type": "yaml"}},
        {"grammar": "root ::= unknown"},
        {"response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema": {"type": "array", "uniqueItems": True}}}},
        {"json_schema": {"$ref": "#/$defs/none"}},
        {"response_format": STRICT, "grammar": 'root ::= "a"'},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "none"}}},
    ],
)
def test_what_cannot_constrain_is_an_error(client, constraint):
    error = post(client, "/v1/chat/completions", ask(max_tokens=4, **constraint), status=400)["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
