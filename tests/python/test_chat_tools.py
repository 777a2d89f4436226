"""Calls of tools that are sent back, and which template they meet: held against transformers' rendering.

The templates are written here, each in the manner of a family: what they do with `arguments` is what matters.
"""

import copy
import json
from pathlib import Path

import pytest

from tiny_models import LLAMA, gguf_tokenizer_keys, llama_tensors, save_llama, train_bpe, write_gguf
from turboquant_native import Llama
from turboquant_native.api import chat_format
from turboquant_native.api.chat_prompt import prompt_of

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What <it> will be",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"enum": [1, 2]}}, "required": ["city"]},
        },
    }
]
ARGUMENTS = {"city": 'Zürich "<&>" \\ 🚀', "days": 2, "deep": {"a": [1, None, True]}}


def conversation(arguments):
    """Two turns with calls, whose arguments are given as text or as an object."""

    def call(i):
        return {"id": f"call{i}abcde", "type": "function", "function": {"name": "weather", "arguments": copy.deepcopy(arguments)}}

    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call(1)]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call1abcde"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "", "tool_calls": [call(2), call(3)]},
        {"role": "tool", "content": "rain", "tool_call_id": "call2abcde"},
    ]


HERMES = """{%- if tools %}
{{- '<|system|>' }}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'assistant' and message.tool_calls %}
    {{- '<|assistant|>' }}{%- if message.content %}{{ message.content }}{% endif %}
    {%- for tool_call in message.tool_calls %}
      {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
      {{- '<call>{"name": "' + tool_call.name + '", "arguments": ' + (tool_call.arguments | tojson) + '}</call>' }}
    {%- endfor %}
  {%- else %}{{- '<|' + message.role + '|>' + message.content }}{%- endif %}
{%- endfor %}"""
EITHER_FORM = HERMES.replace(
    "(tool_call.arguments | tojson)", "(tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson)"
)
ITEMS = """{%- for message in messages %}
  {%- if message.tool_calls is defined and message.tool_calls %}
    {%- for tool_call in message.tool_calls %}
      <function={{ tool_call.function.name }}>
      {%- for key, value in tool_call.function.arguments | items %}
        <{{ key }}>{{ value if value is string else value | tojson(indent=2) }}</{{ key }}>
      {%- endfor %}
      {%- for key in tool_call.function.arguments.keys() %}{{ key }},{{ tool_call.function.arguments[key] | string }}{% endfor %}
    {%- endfor %}
  {%- elif message.content is none %}nothing{% else %}<|{{ message.role }}|>{{ message.content }}{%- endif %}
{%- endfor %}"""
LLAMA3 = """{{- bos_token }}
{%- for message in messages %}
  {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
    {{- '<|start|>' + message['role'] + '<|end|>' + message['content'] | trim }}
  {%- elif 'tool_calls' in message %}
    {%- for call in message.tool_calls %}{%- set tool_call = call.function %}
      {{- '<|start|>assistant<|end|>{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- '}' }}
    {%- endfor %}
  {%- else %}{{- '<|start|>ipython<|end|>' }}{{- (message.content | tojson) if message.content is mapping else message.content }}
  {%- endif %}
{%- endfor %}{{- strftime_now('%Y')[:2] }}"""
MISTRAL = """{%- for message in messages %}
  {%- if message.tool_calls is defined and message.tool_calls is not none and message.tool_calls | length > 0 %}
    {{- '[CALLS][' }}
    {%- for tool_call in message.tool_calls %}
      {%- set out = tool_call.function | tojson %}
      {{- out[:-1] }}
      {%- if tool_call.id is not defined or tool_call.id | length < 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
      {{- ', "id": "' + tool_call.id + '"}' }}{% if not loop.last %}{{ ', ' }}{% endif %}
    {%- endfor %}{{- ']' + eos_token }}
  {%- else %}{{- '[' + message.role + ']' + message.content }}{%- endif %}
{%- endfor %}"""
OLMO3 = """{%- for message in messages %}
  {%- if message.role == 'assistant' %}
    {{- '<|im_start|>assistant\n' + (message.get('content') or '') }}
    {%- if message.get('tool_calls') %}
      {{- '<function_calls>' }}
      {%- for call in message['tool_calls'] %}
        {{- call['function']['name'] + '(' }}
        {%- for name, value in call['function']['arguments'].items() %}
          {{- name + '=' + (value | tojson) }}{% if not loop.last %}{{ ', ' }}{% endif %}
        {%- endfor %}{{- ')' }}{% if not loop.last %}{{ '\n' }}{% endif %}
      {%- endfor %}{{- '</function_calls>' }}
    {%- endif %}
  {%- else %}{{- '<|im_start|>' + ('environment' if message.role == 'tool' else message.role) + '\n' + message.content }}
    {%- if message.role == 'system' and tools %}{{- '<functions>' + (tools | tojson) + '</functions>' }}{%- endif %}
  {%- endif %}{{- '<|im_end|>\n' }}
{%- endfor %}"""
MINISTRAL3 = """{%- for message in messages %}
  {%- if message['role'] == 'assistant' %}
    {%- if message['content'] is string and message['content'] != '' %}{{- message['content'] }}{%- endif %}
    {%- for tool in message['tool_calls'] or [] %}
      {%- set arguments = tool['function']['arguments'] %}
      {%- if arguments is not string %}{%- set arguments = arguments | tojson | safe %}{%- endif %}
      {{- '[TOOL_CALLS]' + tool['function']['name'] + '[ARGS]' + arguments }}
    {%- endfor %}{{- eos_token }}
  {%- else %}{{- '[' + message.role + ']' + message.content }}{%- endif %}
{%- endfor %}"""
TEMPLATES = {
    "hermes": HERMES, "either form": EITHER_FORM, "items": ITEMS, "llama3": LLAMA3, "mistral": MISTRAL, "olmo3": OLMO3,
    "ministral3": MINISTRAL3,
}  # fmt: skip


def by_transformers(template, messages, tools=None):
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered, _ = utilities.render_jinja_template(
        conversations=[messages], chat_template=template, tools=tools, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    return rendered[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_arguments_as_text_render_as_transformers_renders_objects(name):
    template = TEMPLATES[name]
    expected = by_transformers(template, conversation(ARGUMENTS), TOOLS)
    for arguments in (ARGUMENTS, json.dumps(ARGUMENTS), json.dumps(ARGUMENTS, ensure_ascii=False)):
        given = conversation(arguments)
        text = chat_format.render(template, given, tools=TOOLS, bos_token="<s>", eos_token="</s>")
        if name == "either form" and arguments != ARGUMENTS:
            assert "Zürich" in text and text == expected
        assert text == expected
        assert given == conversation(arguments)  # the caller's messages stay


def test_a_template_that_wants_text_gets_it():
    """In the manner of DeepSeek: concatenated and printed."""
    call = "{{ '`' + c.function.arguments + '`' }}{{ c.function.arguments }}"
    template = "{% for m in messages %}{% for c in m.tool_calls or [] %}" + call + "{% endfor %}{% endfor %}"
    text = json.dumps({"a": "é", "b": 1}, separators=(",", ":"))
    messages = [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": text}}]}]
    assert chat_format.render(template, messages) == f"`{text}`{text}" == by_transformers(template, messages)


@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [("", "{}"), ("{}", "{}"), ('{"a": ', '"{\\"a\\": "'), ("[1]", '"[1]"'), ("[" * 100000, None), ("3", '"3"')],
)
def test_arguments_that_are_no_object(arguments, rendered):
    """A call without arguments has none; what a model broke, or cut, stays text."""
    template = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
    assert chat_format.render(template, messages) == (json.dumps(arguments) if rendered is None else rendered)


def test_calls_in_other_shapes_stay_as_they_are():
    template = "{{ messages[0] | tojson }}"
    for calls in (None, "x", [1], [{"function": None}], [{"name": "f", "arguments": {"a": 1}}], {}):
        message = {"role": "assistant", "content": "", "tool_calls": calls}
        assert json.loads(chat_format.render(template, [message])) == message
    bare = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": '{"a": 1}'}]}
    assert json.loads(chat_format.render(template, [bare]))["tool_calls"] == [{"name": "f", "arguments": {"a": 1}}]


# --- through the whole of Llama


@pytest.mark.parametrize("name", TEMPLATES)
def test_our_own_answer_sent_back(tiny_tqn, name):
    pytest.importorskip("llguidance")
    template = TEMPLATES[name]
    choice = {"type": "function", "function": {"name": "weather"}}
    with Llama(str(tiny_tqn), n_ctx=2048, chat_format=template) as llm:
        messages = [{"role": "user", "content": "Weather?"}]
        for _ in range(2):
            answer = llm.create_chat_completion(messages, tools=TOOLS, tool_choice=choice, seed=1, temperature=1.0, max_tokens=1000)
            assert answer["choices"][0]["finish_reason"] == "tool_calls"
            message = answer["choices"][0]["message"]
            messages += [message, {"role": "tool", "content": "sunny", "tool_call_id": message["tool_calls"][0]["id"]}]
        as_objects = copy.deepcopy(messages)
        for message in as_objects:
            for call in message.get("tool_calls", []):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        utilities = pytest.importorskip("transformers.utils.chat_template_utils")
        bos, eos = (llm.detokenize([token], special=True).decode() for token in (llm.token_bos(), llm.token_eos()))
        rendered, _ = utilities.render_jinja_template(
            conversations=[as_objects], chat_template=template, tools=TOOLS, add_generation_prompt=True, bos_token=bos, eos_token=eos
        )
        tokens = prompt_of(llm._session, messages, TOOLS).tokens
        assert tokens == llm.vocabulary.encode(rendered[0], special=True)


def prompt_tokens(llm, **options):
    return llm.create_chat_completion([{"role": "user", "content": "fox"}], max_tokens=1, **options)["usage"]["prompt_tokens"]


def folder_with(tmp_path: Path, default: str, others: dict[str, str], way: str) -> Path:
    folder = save_llama(tmp_path / "model", {**LLAMA, "max_position_embeddings": 256})
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if way == "additional_chat_templates":
        (folder / "chat_template.jinja").write_text(default)
        (folder / way).mkdir()
        for name, text in others.items():
            (folder / way / f"{name}.jinja").write_text(text)
        older = [{"name": name, "template": "of another time"} for name in ("default", "tool_use", "json")]  # transformers drops them
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": older}))
        return folder
    templates = {"default": default, **others}
    named = [{"name": name, "template": text} for name, text in templates.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named if way == "list" else templates}))
    return folder


@pytest.mark.parametrize("way", ["additional_chat_templates", "list", "object", "gguf"])
def test_tools_select_their_template(tmp_path, way):
    from conftest import convert

    default, others = "fox", {"tool_use": "fox fox fox{{ extra }}", "rag": "fox fox"}
    if way == "gguf":
        keys = gguf_tokenizer_keys(train_bpe(), "smollm") | {f"tokenizer.chat_template.{name}": text for name, text in others.items()}
        keys |= {"tokenizer.chat_template": default, "tokenizer.chat_templates": list(others)}
        source = write_gguf(tmp_path / "in.gguf", "llama", {**LLAMA, "max_position_embeddings": 256}, llama_tensors(), keys)
    else:
        source = folder_with(tmp_path, default, others, way)
    target = str(convert(source, tmp_path / "out.gguf", "--bits", "8"))
    with Llama(target, n_ctx=64) as llm:
        assert llm.metadata["tokenizer.chat_template"] == default
        assert sorted(llm.metadata["tokenizer.chat_templates"]) == sorted(others)
        lengths = {n: len(llm.tokenize(b" ".join([b"fox"] * n))) for n in (1, 2, 3)}
        assert prompt_tokens(llm) == lengths[1]
        assert prompt_tokens(llm, tools=TOOLS) == lengths[3]
        assert prompt_tokens(llm, tools=TOOLS, tool_choice="none") == lengths[1]
        longer = prompt_tokens(llm, tools=TOOLS, chat_template_kwargs={"extra": "!!!!"})
        assert longer == len(llm.tokenize(b"fox fox fox!!!!"))
    with Llama(target, n_ctx=64, chat_format="rag") as llm:
        assert prompt_tokens(llm, tools=TOOLS) == lengths[2]
    with (
        Llama(target, n_ctx=64, chat_format="other") as llm,
        pytest.raises(chat_format.TemplateError, match=r"tool_use, rag|rag, tool_use"),
    ):
        prompt_tokens(llm)


@pytest.mark.parametrize("stored", [3, [1], [{"name": "x"}], [{"template": "x"}], {"default": 3}])
def test_templates_of_a_wrong_form_are_named(tmp_path, stored):
    from turboquant_native.common.errors import ConvertError
    from turboquant_native.convert.tokenizer import tokenizer_of_folder

    folder = save_llama(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    with pytest.raises(ConvertError, match=r"tokenizer_config\.json: chat_template must be"):
        tokenizer_of_folder(folder, 320, LLAMA)


def test_chat_template_kwargs(tiny_tqn):
    template = "{% if enable_thinking is defined and not enable_thinking %}fox{% endif %}fox{{ add_generation_prompt }}"
    with Llama(str(tiny_tqn), n_ctx=64, chat_format=template) as llm:
        assert prompt_tokens(llm) == len(llm.tokenize(b"foxTrue"))
        assert prompt_tokens(llm, chat_template_kwargs={"enable_thinking": False}) == len(llm.tokenize(b"foxfoxTrue"))
        assert prompt_tokens(llm, chat_template_kwargs={"add_generation_prompt": False}) == len(llm.tokenize(b"foxFalse"))
        with pytest.raises(ValueError, match="'messages', which is an argument of its own"):
            prompt_tokens(llm, chat_template_kwargs={"messages": []})
        with pytest.raises(TypeError, match="must be a dict"):
            prompt_tokens(llm, chat_template_kwargs=["x"])
