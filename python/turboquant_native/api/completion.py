"""Completions as llama-cpp-python and OpenAI shape them."""

import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.generation import Chunk, Generation, Limits, TokenLogprob, prompt_logprobs, run
from ..engine.prefix_cache import Tokens, check_tokens
from ..engine.sampling import LogitsProcessor, SamplingOptions, StoppingCriteriaList, TokenChooser, check_logit_bias

if TYPE_CHECKING:
    from ..engine.grammar import LlamaGrammar
    from .llama import Llama

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompletionRequest:
    """Everything that determines one completion. `logprobs`: None, or how many alternatives to report."""

    prompt: str | Sequence[int]
    max_tokens: int | None = 16
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: str | Sequence[str] | None = None
    logprobs: int | None = None
    echo: bool = False
    seed: int | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    logits_processor: Sequence[LogitsProcessor] | LogitsProcessor | None = None
    grammar: "LlamaGrammar | None" = None
    logit_bias: dict[Any, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.prompt, bytes) or not isinstance(self.prompt, (str, Sequence, np.ndarray)):
            raise TypeError(f"prompt must be a text or a sequence of tokens, got {self.prompt!r}")
        for name in ("max_tokens", "logprobs", "seed"):
            if (value := getattr(self, name)) is not None and not isinstance(value, Integral):
                raise TypeError(f"{name} must be an integer or None, got {value!r}")
        if self.stop is not None and not isinstance(self.stop, Iterable):
            raise TypeError(f"stop must be a text or several, got {self.stop!r}")
        if self.grammar is not None and not hasattr(self.grammar, "processor"):
            raise TypeError(f"grammar must be a LlamaGrammar (LlamaGrammar.from_string reads GBNF), got {self.grammar!r}")


def request(prompt: str | Sequence[int], **options: Any) -> CompletionRequest:
    """A request from `create_completion`'s keyword arguments; TypeError for a name it does not have."""
    names = {entry.name for entry in fields(SamplingOptions)}
    sampling = SamplingOptions(**{name: options.pop(name) for name in list(options) if name in names})
    unknown = options.keys() - {entry.name for entry in fields(CompletionRequest)}
    if unknown:
        raise TypeError(f"unexpected argument {min(unknown)!r}")
    return CompletionRequest(prompt, sampling=sampling, **options)


@dataclass
class Finished:
    """A completion that has ended. `logprobs` covers the echoed prompt too, whose text stands first in `text`."""

    text: str
    logprobs: list[TokenLogprob]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Completion:
    """One request under way on one engine. Arguments are checked here, before the first token.

    Raises ValueError for arguments out of range and for a prompt that does not fit the context.
    """

    def __init__(self, llm: "Llama", request: CompletionRequest) -> None:
        self._llm, self._request = llm, request
        self.prompt = prompt_tokens(llm, request.prompt)
        if request.logprobs is not None and not 0 <= request.logprobs <= llm.n_vocab():
            raise ValueError(f"logprobs must be in [0, {llm.n_vocab()}], got {request.logprobs}")
        self.generation = make_generation(llm, self.prompt, request, llm.n_ctx())

    def chunks(self) -> Iterator[Chunk]:
        """The echoed prompt, when asked for, then what each step adds."""
        llm, request = self._llm, self._request
        llm._recall(self.prompt)
        if request.echo:
            yield self._echo()
        yield from run(self.generation, llm._cache, llm._lock, llm._own_cache, llm.draft_model)
        llm._remember(self.generation)

    def _echo(self) -> Chunk:
        llm, request = self._llm, self._request
        text = request.prompt if isinstance(request.prompt, str) else llm.vocabulary.decode(self.prompt).decode("utf-8", "replace")
        if request.logprobs is None:
            return Chunk(text, [int(token) for token in self.prompt])
        logprobs = prompt_logprobs(llm._cache, llm._lock, self.prompt, request.logprobs)
        return Chunk(text, [int(token) for token in self.prompt], logprobs)

    def finish(self) -> Finished:
        """Runs to the end, other threads waiting."""
        with self._llm._lock:
            chunks = list(self.chunks())
        return finished(self._llm, self.generation, chunks)


def finished(llm: "Llama", generation: Generation, chunks: Sequence[Chunk]) -> Finished:
    """What an ended generation's chunks come to; tokens that lie wholly in a removed stop string have no log-probability to report."""
    text = "".join(chunk.text for chunk in chunks)
    logprobs, shown = [], 0
    for entry in (entry for chunk in chunks for entry in chunk.logprobs):
        if shown < len(text) or not generation.stopped_by:
            logprobs.append(entry)
        shown += _visible_length(llm, entry.token)
    return Finished(text, logprobs, generation.finish_reason or "stop", generation.n_prompt, generation.n_generated)


def prompt_tokens(llm: "Llama", prompt: str | Sequence[int]) -> Tokens:
    """Tokens of a prompt; an empty text becomes the BOS token."""
    ids = llm.vocabulary.encode(prompt, add_bos=True, special=True) if isinstance(prompt, str) else prompt
    if len(ids) == 0:
        ids = [llm.token_bos()]
        if ids[0] < 0:
            raise ValueError("the prompt is empty and the model has no BOS token to begin with")
    return check_tokens(ids, llm.n_vocab())


def allowed_tokens(n_prompt: int, max_tokens: int | None, n_ctx: int) -> int:
    """How many tokens may be generated; ValueError when the prompt alone fills the context."""
    if max_tokens == 0 and n_prompt <= n_ctx:
        return 0
    if n_prompt >= n_ctx:
        raise ValueError(f"the prompt has {n_prompt} tokens, which does not fit the context of {n_ctx} (n_ctx) with a token to generate")
    room = n_ctx - n_prompt
    if max_tokens is None or max_tokens < 0:
        return room
    if max_tokens > room:
        logger.warning("max_tokens=%d does not fit: the context of %d leaves %d after the prompt", max_tokens, n_ctx, room)
    return min(max_tokens, room)


def make_generation(llm: "Llama", prompt: Tokens, request: CompletionRequest, n_ctx: int) -> Generation:
    """The state of one completion with its own sampler."""
    processors = request.logits_processor or []
    processors = [processors] if callable(processors) and not isinstance(processors, list) else list(processors)
    if request.grammar is not None:
        processors.append(request.grammar.processor(llm.vocabulary, len(prompt)))
    stop = [request.stop] if isinstance(request.stop, str) else list(request.stop or ())
    chooser = TokenChooser(llm.new_sampler(request.sampling, request.seed), check_logit_bias(request.logit_bias, llm.n_vocab()), processors)
    max_tokens = allowed_tokens(len(prompt), request.max_tokens, n_ctx)
    criteria = StoppingCriteriaList(request.stopping_criteria or ())
    return Generation(llm.vocabulary, prompt, chooser, Limits(max_tokens, stop, criteria), request.logprobs)


def usage(result: Finished) -> dict[str, int]:
    """OpenAI's token counts."""
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "total_tokens": result.prompt_tokens + result.completion_tokens,
    }


def legacy_logprobs(llm: "Llama", entries: Sequence[TokenLogprob], first_offset: int = 0) -> dict[str, list[Any]]:
    """The completion endpoint's form: parallel lists; offsets count characters of the text."""
    names = [token_name(llm, entry.token) for entry in entries]
    visible = [_visible_length(llm, entry.token) for entry in entries]
    offsets = first_offset + np.cumsum([0, *visible], dtype=int)[: len(entries)]
    return {
        "tokens": names,
        "text_offset": [int(offset) for offset in offsets],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [_alternatives(llm, entry) for entry in entries],
    }


def _visible_length(llm: "Llama", token: int) -> int:
    return 0 if llm.vocabulary.is_control(token) else len(token_name(llm, token))


def _alternatives(llm: "Llama", entry: TokenLogprob) -> dict[str, float] | None:
    if entry.logprob is None:
        return None
    best = {token_name(llm, token): logprob for token, logprob in entry.top}
    return {**best, token_name(llm, entry.token): entry.logprob}


def token_name(llm: "Llama", token: int) -> str:
    """A token's text; bytes that are no UTF-8 show as U+FFFD."""
    return llm.vocabulary.piece(token).decode("utf-8", "replace")


def _envelope(llm: "Llama", model: str | None) -> dict[str, Any]:
    return {"id": f"cmpl-{uuid.uuid4()}", "object": "text_completion", "created": int(time.time()), "model": model or llm.model_path}


def _choice(text: str, logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}


def complete(llm: "Llama", request: CompletionRequest, model: str | None = None) -> dict[str, Any]:
    """A whole completion as a dict."""
    return completion_dict(llm, Completion(llm, request).finish(), request.logprobs is not None, model)


def completion_dict(llm: "Llama", result: Finished, with_logprobs: bool, model: str | None = None) -> dict[str, Any]:
    """A finished completion in OpenAI's form."""
    logprobs = legacy_logprobs(llm, result.logprobs) if with_logprobs else None
    return {**_envelope(llm, model), "choices": [_choice(result.text, logprobs, result.finish_reason)], "usage": usage(result)}


def stream(llm: "Llama", request: CompletionRequest, model: str | None = None) -> Iterator[dict[str, Any]]:
    """A completion as an iterator of dicts; the last one carries the finish reason."""
    completion = Completion(llm, request)
    return _stream(llm, completion, _envelope(llm, model), request.logprobs is not None)


def _stream(llm: "Llama", completion: Completion, envelope: dict[str, Any], with_logprobs: bool) -> Iterator[dict[str, Any]]:
    offset, waiting = 0, []
    for chunk in completion.chunks():
        waiting += chunk.logprobs
        if chunk.text:
            logprobs = legacy_logprobs(llm, waiting, offset) if with_logprobs else None
            yield {**envelope, "choices": [_choice(chunk.text, logprobs, None)]}
            offset, waiting = offset + len(chunk.text), []
    yield {**envelope, "choices": [_choice("", None, completion.generation.finish_reason)]}
