"""From bodies to what the engine runs."""

from typing import Any

from ..api.chat_completion import ChatCompletion
from ..api.chat_prompt import prompt_of
from ..api.completion import Completion, CompletionRequest, PromptTooLong
from ..api.llama import Llama
from ..engine.grammar import LlamaGrammar
from ..engine.sampling import SamplingOptions
from . import errors
from .schemas import ChatBody, CompletionBody, Sampling
from .settings import Settings


def _limit(asked: int | None, settings: Settings) -> int | None:
    """Tokens that an answer may have; None: as many as the context has room for."""
    asked = None if asked == -1 else asked
    if settings.max_tokens is None:
        return asked
    return settings.max_tokens if asked is None else min(asked, settings.max_tokens)


def _sampling(body: Sampling, settings: Settings) -> SamplingOptions:
    given = {name: getattr(body, name, None) for name in vars(SamplingOptions())}
    if given["repeat_penalty"] is None:
        given["repeat_penalty"] = body.repetition_penalty
    known = {name: value for name, value in given.items() if value is not None}
    return SamplingOptions(**{**settings.sampling, **known})


def _grammar(body: Sampling) -> LlamaGrammar | None:
    if body.grammar and body.json_schema is not None:
        raise ValueError("give grammar or json_schema, not both")
    if body.grammar:
        return LlamaGrammar.from_string(body.grammar)
    return None if body.json_schema is None else LlamaGrammar.from_json_schema(body.json_schema)


def _request(body: Sampling, settings: Settings, max_tokens: int | None, **values: Any) -> CompletionRequest:
    return CompletionRequest(
        max_tokens=_limit(max_tokens, settings),
        sampling=_sampling(body, settings),
        stop=body.stop,
        seed=body.seed,
        grammar=_grammar(body),
        logit_bias=body.logit_bias,
        **values,
    )


def _messages(body: ChatBody) -> list[dict[str, Any]]:
    """What OpenAI calls a developer is the system to every template."""
    given = [message.model_dump(exclude_unset=True) for message in body.messages]
    return [{**message, "role": "system"} if message["role"] == "developer" else message for message in given]


def _template_values(body: ChatBody) -> dict[str, Any]:
    values = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        values.setdefault("reasoning_effort", body.reasoning_effort)
        values.setdefault("enable_thinking", body.reasoning_effort != "none")
    return values


def chat_prompt(llama: Llama, body: ChatBody) -> list[int]:
    """The tokens of a chat's prompt."""
    tools = None if body.tool_choice == "none" else body.tools
    return prompt_of(llama.session, _messages(body), tools, _template_values(body)).tokens


def chat(llama: Llama, body: ChatBody, settings: Settings, model: str) -> ChatCompletion:
    """A chat, ready to be submitted. Makes its prompt: not for the event loop's thread. ApiError or ValueError for what is wrong."""
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    request = _request(body, settings, asked, prompt="", logprobs=logprobs)
    if body.response_format is not None and request.grammar is not None:
        raise ValueError("give response_format, grammar or json_schema, one of them")
    values = _template_values(body)
    try:
        return ChatCompletion(
            llama.session,
            _messages(body),
            request,
            body.tools,
            body.tool_choice,
            body.response_format,
            model,
            values,
            body.parallel_tool_calls,
        )
    except PromptTooLong as error:
        raise errors.context_length_exceeded(error.n_prompt, error.n_ctx) from error


def completions(llama: Llama, body: CompletionBody, settings: Settings) -> list[tuple[CompletionRequest, Completion]]:
    """The completions of a request, one for each prompt."""
    prompt = body.prompt
    prompts: list[Any] = list(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    max_tokens = 16 if body.max_tokens is None else body.max_tokens  # OpenAI's default of this route
    made = []
    for text in prompts:
        request = _request(body, settings, max_tokens, prompt=text, logprobs=body.logprobs, echo=bool(body.echo))
        try:
            made.append((request, Completion(llama.session, request)))
        except PromptTooLong as error:
            raise errors.context_length_exceeded(error.n_prompt, error.n_ctx, "prompt") from error
    return made
