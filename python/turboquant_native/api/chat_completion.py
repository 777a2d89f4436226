"""Chat completions as llama-cpp-python and OpenAI shape them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..engine.grammar import LlamaGrammar
from ..engine.sampling import StoppingCriteriaList
from .answer import AnswerReader, reader_for, shown_tokens
from .call_grammar import WithinArguments, WithinCalls
from .channel_call import CallInChannel
from .chat_answer import ChatAnswer
from .chat_prompt import Message, prompt_of
from .completion import Completion, CompletionRequest
from .session import Session
from .thinking_grammar import after_thinking
from .tool_calls import family_of
from .tool_calls.watching import EndsWhen, TextOfTokens
from .tool_choice import demanded, grammar_of_calls

Grammar = TypeVar("Grammar", LlamaGrammar, WithinCalls, WithinArguments, CallInChannel)
CallGrammar = WithinCalls | WithinArguments


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
        return strictly(LlamaGrammar.from_json_schema(described.get("schema") or {"type": "object"}), bool(described.get("strict")))
    raise ValueError(f"response_format has the unknown type {kind!r}; known: text, json_object, json_schema")


def grammar_of_strict_tools(tools: Sequence[dict[str, Any]] | None, template: str, shown: frozenset[int]) -> CallGrammar | None:
    """What binds the calls that the model chooses to make, where a tool is strict; ValueError where the family's calls cannot be bound."""
    strict = [tool["function"]["name"] for tool in tools or () if isinstance(tool, dict) and (tool.get("function") or {}).get("strict")]
    if not strict:
        return None
    family, functions = family_of(template), demanded(tools, "required")
    if family.json_marker is not None:
        return strictly(WithinCalls(functions, family.json_marker), True)
    if not family.binds_arguments:
        raise ValueError(
            f"the tool {strict[0]!r} is strict, which cannot be kept in this model's own way to write calls: "
            "demand it (tool_choice by name, or 'required'), or leave strict out"
        )
    return strictly(WithinArguments(functions, family, shown), True)


def strictly(grammar: Grammar, strict: bool) -> Grammar:
    """The grammar; ValueError where the schema was to be kept to the letter and part of it cannot be."""
    if strict and grammar.relaxed:
        raise ValueError(f"the schema is strict, but cannot be followed in all: {'; '.join(grammar.relaxed)}")
    return grammar


def _ends_at_second_call(reader: AnswerReader, text: TextOfTokens, n_prompt: int) -> EndsWhen:
    def push(new: str) -> bool:
        reader.push(new)
        return reader.is_cut

    return EndsWhen(push, text, n_prompt)


class ChatCompletion:
    """One chat request: the completion below it, and the shapes above it.

    Args:
        request: sampling and limits; its prompt and grammar are set here.
        tools, tool_choice: the tools go to the template; a call that is demanded constrains the answer.
        response_format: constrains the answer, not the thinking before it.
        chat_template_kwargs: more variables of the template.
        parallel_tool_calls: False: the answer ends where a second call would begin.
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
        chat_template_kwargs: Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
    ) -> None:
        self._session, self._model = session, model or session.model_path
        tools = None if tool_choice == "none" else tools
        functions = demanded(tools, tool_choice)
        prompt = prompt_of(session, messages, tools, chat_template_kwargs)
        shown = shown_tokens(session.vocabulary, prompt.template, bool(tools))
        grammar: LlamaGrammar | CallGrammar | CallInChannel | None = request.grammar or grammar_for(response_format)
        channels = family_of(prompt.template).channels if functions else None
        if channels is not None:
            grammar = strictly(CallInChannel(functions, channels), any(function.get("strict") for function in functions))
        elif functions:
            grammar = strictly(grammar_of_calls(functions), any(function.get("strict") for function in functions))
        elif grammar is None:
            grammar = grammar_of_strict_tools(tools, prompt.template, shown)
        bare = bool(functions) and channels is None  # a demanded call without the family's markup
        forced = str(functions[0]["name"]) if bare and len(functions) == 1 else None
        one_call = parallel_tool_calls is False and bool(tools)

        def reader() -> AnswerReader:
            return reader_for(prompt.template, prompt.text, tools, forced, bare=bare and len(functions) > 1, one_call=one_call)

        self._reader = reader()
        self._with_logprobs = request.logprobs is not None
        if one_call and not functions:  # a demanded call is one already
            ends = _ends_at_second_call(reader(), TextOfTokens(session.vocabulary, shown), len(prompt.tokens))
            request = replace(request, stopping_criteria=StoppingCriteriaList([*(request.stopping_criteria or ()), ends]))
        bound: Any = grammar
        if not isinstance(grammar, CallInChannel):
            bound = after_thinking(grammar, prompt.template, prompt.text, demanded=bool(functions))
        self.completion = Completion(session, replace(request, prompt=prompt.tokens, grammar=bound, shown_tokens=shown))

    def answer(self) -> ChatAnswer:
        """What shapes the completion's chunks, wherever they come from; for one use."""
        return ChatAnswer(self.completion, self._reader, self._session.vocabulary, self._with_logprobs, self._model)

    def finish(self) -> dict[str, Any]:
        """The whole answer."""
        return self.answer().whole(list(self.completion.chunks()))

    def stream(self) -> Iterator[dict[str, Any]]:
        """The answer in pieces: the role, the text, the finish reason."""
        answer = self.answer()
        yield from answer.begin()
        for chunk in self.completion.chunks():
            yield from answer.push(chunk)
        yield from answer.end()
