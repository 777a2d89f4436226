"""Chat completions, tools, constrained output."""

import json

import pytest

from turboquant_native import Llama, LlamaGrammar
from turboquant_native.api.chat_format import TemplateError

MESSAGES = [{"role": "user", "content": "The quick brown fox"}]
GREEDY = {"temperature": 0.0, "max_tokens": 20}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"], "additionalProperties": False},
    },
}


@pytest.fixture
def chatml(tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=256, chat_format="chatml") as llm:
        yield llm


def test_answer_has_openais_shape(chatml):
    answer = chatml.create_chat_completion(MESSAGES, **GREEDY)
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant" and isinstance(choice["message"]["content"], str)
    assert choice["finish_reason"] in ("stop", "length") and choice["logprobs"] is None
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_the_prompt_is_the_templates(chatml):
    rendered = "<|im_start|>user\nThe quick brown fox<|im_end|>\n<|im_start|>assistant\n"
    chat = chatml.create_chat_completion(MESSAGES, **GREEDY)
    plain = chatml.create_completion(rendered, **GREEDY)
    assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
    assert plain["usage"].items() <= chat["usage"].items()


def test_stream(chatml):
    whole = chatml.create_chat_completion(MESSAGES, **GREEDY)["choices"][0]
    chunks = list(chatml.create_chat_completion(MESSAGES, stream=True, **GREEDY))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant"} and deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == whole["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_the_files_template_is_used_and_tools_reach_it(tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=256) as llm:
        assert llm.create_chat_completion(MESSAGES, **GREEDY)["usage"]["prompt_tokens"] == len(llm.tokenize(b"The quick brown fox"))
    template = "{{ messages[0].content }}{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}"
    with Llama(str(tiny_tqn), n_ctx=256, chat_format=template) as llm:
        with_tools = llm.create_chat_completion(MESSAGES, tools=[WEATHER], **GREEDY)
        assert with_tools["usage"]["prompt_tokens"] == len(llm.tokenize(b"The quick brown foxweather"))
        without = llm.create_chat_completion(MESSAGES, tools=[WEATHER], tool_choice="none", **GREEDY)
        assert without["usage"]["prompt_tokens"] == len(llm.tokenize(b"The quick brown fox"))


def test_logprobs(chatml):
    answer = chatml.create_chat_completion(MESSAGES, logprobs=True, top_logprobs=2, **GREEDY)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    assert (
        b"".join(bytes(entry["bytes"]) for entry in content)
        .decode("utf-8", "ignore")
        .startswith(answer["choices"][0]["message"]["content"].split("\ufffd")[0])
    )
    assert all(entry["logprob"] == entry["top_logprobs"][0]["logprob"] and len(entry["top_logprobs"]) == 2 for entry in content)


def test_text_parts_are_joined_and_others_refused(chatml):
    parts = [{"role": "user", "content": [{"type": "text", "text": "The quick "}, {"type": "text", "text": "brown fox"}]}]
    assert chatml.create_chat_completion(parts, **GREEDY)["choices"] == chatml.create_chat_completion(MESSAGES, **GREEDY)["choices"]
    with pytest.raises(ValueError, match="message 0 has content of type image_url"):
        chatml.create_chat_completion([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
    with pytest.raises(ValueError, match="message 0 has the content part 'fox'; a part is an object"):
        chatml.create_chat_completion([{"role": "user", "content": ["fox"]}])
    with pytest.raises(ValueError, match="message 0 has a part without text"):
        chatml.create_chat_completion([{"role": "user", "content": [{"type": "text"}]}])
    with pytest.raises(ValueError, match="message 1 has no role"):
        chatml.create_chat_completion([*MESSAGES, {"content": "x"}])


def test_a_template_is_not_touched_before_it_is_needed(tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=64, chat_format="{% broken") as llm:
        llm("fox", max_tokens=1)
        with pytest.raises(TemplateError):
            llm.create_chat_completion(MESSAGES)


def test_a_chat_handler_takes_over(tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=64, chat_handler=lambda **given: {"given": sorted(given)}) as llm:
        assert {"llama", "messages", "tools", "stream"} <= set(llm.create_chat_completion(MESSAGES)["given"])


def test_openai_objects(chatml):
    pytest.importorskip("openai")
    answer = chatml.create_chat_completion_openai_v1(MESSAGES, **GREEDY)
    assert answer.choices[0].message.content == chatml.create_chat_completion(MESSAGES, **GREEDY)["choices"][0]["message"]["content"]
    assert next(iter(chatml.create_chat_completion_openai_v1(MESSAGES, stream=True, **GREEDY))).choices[0].delta.role == "assistant"


# --- constrained output: random weights write nothing sensible of themselves, so what fits the grammar is the grammar's doing

SCHEMA = {
    "type": "object",
    "properties": {"fox": {"type": "boolean"}, "kind": {"enum": ["red", "grey"]}},
    "required": ["fox", "kind"],
    "additionalProperties": False,
}
DRAW = {"temperature": 1.2, "max_tokens": 100}


def is_fox(text):
    answer = json.loads(text)
    return set(answer) == {"fox", "kind"} and isinstance(answer["fox"], bool) and answer["kind"] in ("red", "grey")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_response_format(chatml, seed, kind):
    pytest.importorskip("llguidance")
    described = {"schema": SCHEMA} if kind == "json_object" else {"json_schema": {"name": "fox", "schema": SCHEMA}}
    answer = chatml.create_chat_completion(MESSAGES, response_format={"type": kind, **described}, seed=seed, **DRAW)
    assert is_fox(answer["choices"][0]["message"]["content"]) and answer["choices"][0]["finish_reason"] == "stop"


def test_unknown_response_format(chatml):
    with pytest.raises(ValueError, match="'xml'"):
        chatml.create_chat_completion(MESSAGES, response_format={"type": "xml"})


@pytest.mark.parametrize("stream", [False, True])
def test_a_demanded_tool_is_called(chatml, stream):
    pytest.importorskip("llguidance")
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = chatml.create_chat_completion(MESSAGES, tools=[WEATHER], tool_choice=choice, seed=1, stream=stream, **DRAW)
    if stream:
        chunks = list(answer)
        calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
        name, arguments = calls[0]["function"]["name"], "".join(call["function"]["arguments"] for call in calls)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        name, arguments, reason = call["function"]["name"], call["function"]["arguments"], answer["choices"][0]["finish_reason"]
    assert name == "weather" and json.loads(arguments) in ({"days": 1}, {"days": 2}) and reason == "tool_calls"


NEWS = {
    "type": "function",
    "function": {
        "name": 'ne"ws',
        "parameters": {
            "type": "object",
            "properties": {"about": {"$ref": "#/$defs/kind"}},
            "required": ["about"],
            "$defs": {"kind": {"enum": ["foxes", "{}"]}},
        },
    },
}
QUIET = {"type": "function", "function": {"name": "stop"}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_call_is_of_any_one_of_the_tools(chatml, stream):
    pytest.importorskip("llguidance")
    called = set()
    for seed in range(8):
        answer = chatml.create_chat_completion(
            MESSAGES, tools=[WEATHER, NEWS], tool_choice="required", seed=seed, stream=stream, temperature=1.2, max_tokens=100
        )
        name, arguments, reason = call_of(answer, stream)
        right = {"weather": [{"days": 1}, {"days": 2}], 'ne"ws': [{"about": "foxes"}, {"about": "{}"}]}
        assert json.loads(arguments) in right[name] and reason == "tool_calls"
        called.add(name)
    assert called == {"weather", 'ne"ws'}


def call_of(answer, stream):
    """Name, arguments and finish reason of an answer that is one call."""
    if not stream:
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        return call["function"]["name"], call["function"]["arguments"], answer["choices"][0]["finish_reason"]
    chunks = list(answer)
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert all("name" not in call["function"] for call in calls[1:])
    return (
        calls[0]["function"]["name"],
        "".join(call["function"]["arguments"] for call in calls),
        chunks[-1]["choices"][0]["finish_reason"],
    )


def test_a_single_required_tool(chatml):
    pytest.importorskip("llguidance")
    answer = chatml.create_chat_completion(MESSAGES, tools=[WEATHER], tool_choice="required", seed=1, **DRAW)
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize("tokens", [1, 12, 20])
def test_a_call_that_is_cut_says_so(chatml, tokens):
    pytest.importorskip("llguidance")
    choice = chatml.create_chat_completion(MESSAGES, tools=[WEATHER, QUIET], tool_choice="required", seed=1, max_tokens=tokens)["choices"][
        0
    ]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([WEATHER], "any", "'any'"),
        ([], "required", "without tools"),
        ([{"type": "function"}], "required", "tool 0 is not"),
        ([WEATHER], {"function": None}, "None, which is not among"),
    ],
)
def test_choices_that_cannot_be_met(chatml, tools, choice, message):
    with pytest.raises(ValueError, match=message):
        chatml.create_chat_completion(MESSAGES, tools=tools, tool_choice=choice)


def test_a_tool_that_is_not_there(chatml):
    with pytest.raises(ValueError, match="'rain'"):
        chatml.create_chat_completion(MESSAGES, tools=[WEATHER], tool_choice={"function": {"name": "rain"}})


GBNF = 'root ::= "fox" digit+ "!"\ndigit ::= [0-3]'
LARK = 'start: "fox" DIGIT+ "!"\nDIGIT: /[0-3]/'


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "make", [lambda: LlamaGrammar.from_string(GBNF), lambda: LlamaGrammar.from_string(LARK), lambda: LlamaGrammar.from_regex("fox[0-3]+!")]
)
def test_grammars(llm, make, seed):
    pytest.importorskip("llguidance")
    text = llm("The", grammar=make(), seed=seed, max_tokens=200, temperature=1.5)["choices"][0]["text"]
    assert text.startswith("fox") and text.endswith("!") and set(text[3:-1]) <= set("0123") and len(text) > 4


def test_a_grammar_serves_many_calls(llm):
    pytest.importorskip("llguidance")
    grammar = LlamaGrammar.from_json_schema(json.dumps(SCHEMA))
    answers = llm.generate_batch(["The", "quick", "fox"], grammar=grammar, n_slots=2, **DRAW)
    assert all(is_fox(answer["choices"][0]["text"]) for answer in answers)


@pytest.mark.parametrize("seed", range(4))
def test_objects_have_no_other_properties_unless_the_schema_says_so(llm, seed):
    pytest.importorskip("llguidance")
    inner = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema = {"type": "object", "properties": {"in": inner}, "required": ["in"]}
    text = llm("The", grammar=LlamaGrammar.from_json_schema(schema), seed=seed, max_tokens=200)["choices"][0]["text"]
    assert json.loads(text) in ({"in": {"a": True}}, {"in": {"a": False}})


@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaGrammar.from_string("root ::= ("),
        lambda: LlamaGrammar.from_regex("(a"),
        lambda: LlamaGrammar.from_json_schema({"type": "thing"}),
    ],
)
def test_bad_grammars_are_refused_at_once(make):
    pytest.importorskip("llguidance")
    with pytest.raises(ValueError, match="grammar"):
        make()
