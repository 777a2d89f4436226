"""Calls of tools in the markup of each family, read whole and in pieces of any size."""

import json

import pytest

from turboquant_native.api.answer import AnswerReader, reader_for
from turboquant_native.api.reasoning import ReasoningSplitter, ThinkingTags
from turboquant_native.api.tool_calls import CallArguments, CallStart, ReasoningDelta, TextDelta

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "where": {"type": "object"},
                    "units": {"type": "array"},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
HERMES, XML, LLAMA, MISTRAL = "<tool_call>", "<tool_call><function=", "<|python_tag|>", "[TOOL_CALLS]"
GEMMA_3, FUNCTION_GEMMA, GEMMA_4, NONE = "<start_of_turn>", "<start_function_call>", "<|tool_call>", "{{ messages }}"
HARMONY = "<|start|>assistant<|channel|>final<|message|>"
OLMO_3 = "<|im_start|>environment <function_calls>"
PARIS = ("weather", {"city": "Paris"})
NOW = ("now", {})


def read(reader: AnswerReader, text: str, size: int) -> tuple[str, str, list[tuple[str, str]], list]:
    """(thinking, text, calls with raw arguments, all events) of an answer that comes in pieces of `size` characters."""
    events = [event for start in range(0, len(text), size) for event in reader.push(text[start : start + size])] + reader.finish()
    calls: list[list[str]] = []
    for event in events:
        if isinstance(event, CallStart):
            assert event.index == len(calls)
            calls.append([event.name, ""])
        elif isinstance(event, CallArguments):
            assert event.index == len(calls) - 1 and event.text
            calls[event.index][1] += event.text
    said = "".join(event.text for event in events if isinstance(event, TextDelta))
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    return thought, said, [(name, arguments) for name, arguments in calls], events


CASES = {
    "hermes": (HERMES, '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>', "", [PARIS]),
    "hermes, text before": (HERMES, 'Let me see.\n\n<tool_call>{"name": "now", "arguments": {}}</tool_call>', "Let me see.", [NOW]),
    "hermes, text after": (HERMES, '<tool_call>{"name": "now", "arguments": {}}</tool_call>\nDone.', "Done.", [NOW]),
    "hermes, two": (
        HERMES,
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n<tool_call>\n{"name": "now"}\n</tool_call>',
        "",
        [PARIS, NOW],
    ),
    "hermes, arguments first": (HERMES, '<tool_call>{"arguments": {"city": "Paris"}, "name": "weather"}</tool_call>', "", [PARIS]),
    "hermes, arguments as text": (
        HERMES,
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>',
        "",
        [PARIS],
    ),
    "hermes, markup in a string": (
        HERMES,
        '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call> \\" }{"}}</tool_call>',
        "",
        [("weather", {"city": '</tool_call> " }{'})],
    ),
    "hermes, no closing tag": (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}', "", [PARIS]),
    "xml": (
        XML,
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        "",
        [("weather", {"city": "Paris", "days": 3})],
    ),
    "xml, several lines and quotes": (
        XML,
        '<tool_call>\n<function=weather>\n<parameter=city>\na "b"\n\n<c>\n</parameter>\n</function>\n</tool_call>',
        "",
        [("weather", {"city": 'a "b"\n\n<c>'})],
    ),
    "xml, objects": (
        XML,
        '<function=weather><parameter=where>{"a": [1, 2]}</parameter><parameter=days>many</parameter></function>',
        "",
        [("weather", {"where": {"a": [1, 2]}, "days": "many"})],
    ),
    "xml, no parameters, two": (
        XML,
        "Now:\n<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "Now:",
        [NOW, NOW],
    ),
    "llama": (LLAMA, '{"name": "weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    "llama, typed": (LLAMA, '{"type": "function", "name": "weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    "llama, tag": (LLAMA, '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}<|eom_id|>', "", [PARIS]),
    "llama, two": (
        LLAMA,
        '{"name": "weather", "parameters": {"city": "Paris"}}; {"name": "now", "parameters": {}}',
        "",
        [PARIS, NOW],
    ),
    "mistral": (MISTRAL, '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]', "", [PARIS]),
    "mistral, two": (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "now", "arguments": {}}]',
        "",
        [PARIS, NOW],
    ),
    "mistral, named": (MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now[CALL_ID]abc[ARGS]{}', "", [PARIS, NOW]),
    "gemma 3, python": (GEMMA_3, '```tool_code\nprint(default_api.weather(city="Paris"))\n```', "", [PARIS]),
    "gemma 3, list": (GEMMA_3, '[weather("Paris"), now()]', "", [PARIS, NOW]),
    "gemma 3, fenced JSON": (GEMMA_3, 'So:\n```json\n{"name": "weather", "parameters": {"city": "Paris"}}\n```', "So:", [PARIS]),
    "harmony": (
        HARMONY,
        '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        "",
        [PARIS],
    ),
    "harmony, a preamble, two": (
        HARMONY,
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.now<|message|>{}<|call|>"
        '<|start|>assistant to=functions.weather<|channel|>commentary <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        "I look.",
        [NOW, PARIS],
    ),
    "olmo 3": (OLMO_3, 'Let me see.\n<function_calls>\nweather(city="Paris")\n</function_calls>', "Let me see.", [PARIS]),
    "olmo 3, two": (OLMO_3, "<function_calls>weather('Paris')\nnow()</function_calls>", "", [PARIS, NOW]),
    "olmo 3, JSON's words, not closed": (
        OLMO_3,
        "<function_calls>\nweather(city=null, units=[true, 'a'], where={'b': false})",
        "",
        [("weather", {"city": None, "units": [True, "a"], "where": {"b": False}})],
    ),
    "function gemma": (
        FUNCTION_GEMMA,
        "<start_function_call>call:weather{city:<escape>Paris<escape>}<end_function_call>",
        "",
        [PARIS],
    ),
    "gemma 4": (
        GEMMA_4,
        '<|tool_call>call:weather{city:<|"|>Pa"ris<|"|>,days:-3,units:[<|"|>a<|"|>,true,null],where:{x:{y:1.5}}}<tool_call|>',
        "",
        [("weather", {"city": 'Pa"ris', "days": -3, "units": ["a", True, None], "where": {"x": {"y": 1.5}}})],
    ),
    "gemma 4, two": (GEMMA_4, "<|tool_call>call:now{}<tool_call|><|tool_call>call:now{}<tool_call|>", "", [NOW, NOW]),
    "no markup in the template": (NONE, '{"name": "weather", "arguments": {"city": "Paris"}}', "", [PARIS]),
    "no markup, fenced": (NONE, '```json\n{"name": "weather", "arguments": {"city": "Paris"}}\n```', "", [PARIS]),
    "no markup, hermes": (NONE, 'I will.\n<tool_call>{"name": "now", "arguments": {}}</tool_call>', "I will.", [NOW]),
}


@pytest.mark.parametrize("case", CASES)
def test_calls_are_read_in_pieces_of_any_size(case):
    template, answer, text, calls = CASES[case]
    for size in (1, 2, 3, 7, len(answer)):
        _, said, found, _ = read(reader_for(template, "", TOOLS), answer, size)
        assert said == text
        assert [(name, json.loads(arguments)) for name, arguments in found] == calls


TEXTS = {
    "plain": (HERMES, "The answer is 4 < 5."),
    "ends like a marker": (HERMES, "a <tool"),
    "ends with white space": (HERMES, "a \n"),
    "broken JSON": (HERMES, '<tool_call>{"nam: 1}</tool_call> so'),
    "no name": (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
    "name is a number": (HERMES, '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    "cut before the name": (HERMES, '<tool_call>\n{"name": "wea'),
    "marker alone": (HERMES, "<tool_call>"),
    "xml without function": (XML, "<tool_call>\nhello"),
    "xml cut": (XML, "<tool_call>\n<function=wea"),
    "other JSON": (LLAMA, '{"name": "Alice", "age": 3}'),
    "a JSON answer": (NONE, '{"answer": [1, 2, 3]}'),
    "code": (NONE, "```json\n[1]\n```\nand\n```\nx = {}\n```"),
    "mistral": (MISTRAL, "[TOOL_CALLS] hello, world"),
    "gemma 3 code": (GEMMA_3, "```tool_code\nimport os\nos.system('true')\n```"),
    "gemma 3 list": (GEMMA_3, "[1, 2]"),
    "harmony without headers": (HARMONY, '{"a": 1} <|x|>'),
    "olmo 3, no tool": (OLMO_3, "<function_calls>\nimport os\n</function_calls> so"),
    "olmo 3, cut": (OLMO_3, "<function_calls>\nweather(city='Pa"),
    "gemma 4": (GEMMA_4, "<|tool_call>weather in Paris<tool_call|>"),
    "empty": (HERMES, ""),
    "white space first": (NONE, "\n  so"),
    "white space alone": (NONE, " \n"),
    "white space before other JSON": (LLAMA, '\n {"name": "Alice"}'),
}


@pytest.mark.parametrize("case", TEXTS)
def test_what_is_no_call_stays_text(case):
    template, answer = TEXTS[case]
    for size in (1, 4, len(answer) or 1):
        assert read(reader_for(template, "", TOOLS), answer, size)[1:3] == (answer, [])


@pytest.mark.parametrize("case", ["hermes", "xml, several lines and quotes", "llama", "mistral, named", "function gemma"])
def test_arguments_come_while_they_are_written(case):
    template, answer, _, _ = CASES[case]
    events = read(reader_for(template, "", TOOLS), answer, 1)[3]
    assert sum(isinstance(event, CallArguments) for event in events) > 5
    reader = reader_for(template, "", TOOLS)
    early = reader.push(answer[: answer.index("Paris") + 3] if "Paris" in answer else answer[: answer.index("a ") + 5])
    assert any(isinstance(event, CallArguments) for event in early)


@pytest.mark.parametrize("case", ["hermes", "xml", "llama", "mistral", "function gemma"])
def test_a_cut_call_is_a_call_with_the_arguments_so_far(case):
    template, answer, _, calls = CASES[case]
    cut = answer[: answer.index("aris")]
    for size in (1, len(cut)):
        _, said, found, _ = read(reader_for(template, "", TOOLS), cut, size)
        assert said == "" and [name for name, _ in found] == [calls[0][0]]
        assert found[0][1].startswith('{"city"') or found[0][1].startswith('{ "city"')


def test_without_tools_markup_is_text():
    answer = CASES["hermes"][1]
    assert read(reader_for(HERMES, "", None), answer, 3)[1:3] == (answer, [])


def test_a_forced_tool_reads_everything_as_arguments():
    _, said, calls, _ = read(reader_for(HERMES, "", TOOLS, forced="weather"), '{"city": "Paris"}', 2)
    assert (said, calls) == ("", [("weather", '{"city": "Paris"}')])


THINK = "{{ '<think>' }} </think>"


@pytest.mark.parametrize(
    ("prompt", "answer", "thought", "said"),
    [
        ("<|im_start|>assistant\n", "<think>\nhm <b>\n</think>\n\nYes.", "hm <b>", "Yes."),
        ("<|im_start|>assistant\n<think>\n", "hm\n</think>\n\nYes.", "hm", "Yes."),
        ("<think>\n\n</think>\n\n", "Yes </think>", "", "Yes </think>"),
        ("", "Yes. <think> no", "", "Yes. <think> no"),
        ("", "  indented", "", "  indented"),
        ("", "<thi", "", "<thi"),
        ("<think>", "cut in the mid", "cut in the mid", ""),
        ("<think>", "</think>Yes", "", "Yes"),
        ("", "", "", ""),
    ],
)
def test_thinking_is_told_from_the_answer(prompt, answer, thought, said):
    for size in (1, 2, 5, len(answer) or 1):
        assert read(reader_for(THINK, prompt, None), answer, size)[:2] == (thought, said)


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize(
    ("answer", "thought", "said"),
    [
        ("<|channel|>analysis<|message|>hm <b><|end|><|start|>assistant<|channel|>final<|message|>Yes.", "hm <b>", "Yes."),
        ("<|channel|>analysis<|message|>hm<|end|>\n<|start|>assistant<|channel|>final<|message|>Yes<|return|>", "hm", "Yes"),
        ("<|channel|>final<|message|>A < B <|", "", "A < B <|"),
        ("<|channel|>analysis<|message|>cut in the", "cut in the", ""),
        ("<|channel|>analysis", "", ""),
        ("<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b", "a", "b"),
        ("Plain.", "", "Plain."),
        ("", "", ""),
    ],
)
def test_channels_of_thinking_and_answer(answer, thought, said, tools):
    for size in (1, 2, 5, len(answer) or 1):
        assert read(reader_for(HARMONY, "<|start|>assistant", tools), answer, size)[:3] == (thought, said, [])
    reader = reader_for(HARMONY, "<|start|>assistant", tools)
    reader.push(answer)
    assert reader.is_thinking == answer.startswith("<|channel|>analysis<|message|>cut")


def test_thinking_goes_before_calls():
    answer = '<think>Shall I <tool_call>?</think>\n<tool_call>{"name": "now"}</tool_call>'
    assert read(reader_for(THINK + HERMES, "", TOOLS), answer, 3)[:3] == ("Shall I <tool_call>?", "", [("now", "{}")])


def test_thinking_streams():
    splitter = ReasoningSplitter(ThinkingTags("<think>", "</think>"), is_open=True)
    assert [splitter.push(piece) for piece in ("a", "b ", "c <", "/think", ">", "d")] == [
        ("a", ""),
        ("b", ""),
        (" c", ""),
        ("", ""),
        ("", ""),
        ("", "d"),
    ]
