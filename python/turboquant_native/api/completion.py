"""Completions as llama-cpp-python and OpenAI shape them."""

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any

import numpy as np

from ..engine.generation import Chunk, Generation, Limits, TokenLogprob
from ..engine.grammar import LlamaGrammar
from ..engine.handle import Handle
from ..engine.sampling import LogitsProcessor, SamplingOptions, StoppingCriteriaList, TokenChooser, check_logit_bias
from ..engine.tokens import Tokens, check_tokens
from .logprobs import Offsets, legacy_logprobs
from .session import Session

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompletionRequest:
    """Everything that determines one completion.

    Attributes:
        logprobs: None, or how many alternatives to report.
        shown_tokens: control tokens whose names are part of the text.
    """

    prompt: str | Sequence[int]
    max_tokens: int | None = 16
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: str | Sequence[str] | None = None
    logprobs: int | None = None
    echo: bool = False
    seed: int | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    logits_processor: Sequence[LogitsProcessor] | LogitsProcessor | None = None
    grammar: LlamaGrammar | None = None
    logit_bias: dict[Any, float] | None = None
    shown_tokens: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if isinstance(self.prompt, bytes) or not isinstance(self.prompt, (str, Sequence, np.ndarray)):
            raise TypeError(f"prompt must be a text or a sequence of tokens, got {self.prompt!r}")
        for name in ("max_tokens", "logprobs", "seed"):
            if (value := getattr(self, name)) is not None and not isinstance(value, Integral):
                raise TypeError(f"{name} must be an integer or None, got {value!r}")
        if self.seed is not None and self.seed >= 1 << 64:
            raise ValueError(f"seed must be below 2**64, got {self.seed}")
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
    """A completion that has ended.

    Attributes:
        text: with the echoed prompt first, where it was asked for.
        logprobs: of the tokens whose text is part of `text`, those of the echoed prompt too. offsets: where each begins in it.
        cached_tokens: tokens of the prompt that were in the cache.
    """

    text: str
    logprobs: list[TokenLogprob]
    offsets: list[int]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class PromptTooLong(ValueError):
    """A prompt that the context cannot hold together with a token to generate."""

    def __init__(self, n_prompt: int, n_ctx: int) -> None:
        super().__init__(f"the prompt has {n_prompt} tokens, which does not fit the context of {n_ctx} (n_ctx) with a token to generate")
        self.n_prompt, self.n_ctx = n_prompt, n_ctx


class Completion:
    """One request under way. Arguments are checked here, before the first token.

    Raises ValueError for arguments out of range and for a prompt that does not fit the context.
    """

    def __init__(self, session: Session, request: CompletionRequest) -> None:
        self._session, self._request = session, request
        self.prompt = prompt_tokens(session, request.prompt)
        if request.logprobs is not None and not 0 <= request.logprobs <= session.n_vocab():
            raise ValueError(f"logprobs must be in [0, {session.n_vocab()}], got {request.logprobs}")
        self.generation = make_generation(session, self.prompt, request)
        self.handle: Handle | None = None

    @property
    def echoed(self) -> str:
        """The prompt's text where it is to be echoed."""
        request = self._request
        if not request.echo:
            return ""
        return (
            request.prompt if isinstance(request.prompt, str) else self._session.vocabulary.decode(self.prompt).decode("utf-8", "replace")
        )

    def submit(self, listener: Callable[[Handle], None] | None = None, may_grow: bool = True) -> Handle:
        """Hands the request to the engine; `chunks` and `finish` do it themselves."""
        scores_prompt = self._request.echo and self._request.logprobs is not None
        self.handle = self._session.submit(self.generation, scores_prompt, listener, may_grow)
        return self.handle

    def chunks(self) -> Iterator[Chunk]:
        """The echoed prompt, when asked for, then what each step adds."""
        handle = self.handle or self.submit()
        try:
            if self._request.echo:
                yield Chunk(self.echoed, [int(token) for token in self.prompt])
            yield from handle
        finally:
            handle.cancel()
            self._session.ended(handle)
        logger.info("%s", self.generation.timings)

    def finish(self) -> Finished:
        """Runs to the end."""
        handle = self.handle or self.submit()
        try:
            handle.wait()
        finally:
            self._session.ended(handle)
        logger.info("%s", self.generation.timings)
        return self.finished(handle.take())

    def finished(self, chunks: Sequence[Chunk]) -> Finished:
        """What the chunks of an ended request come to."""
        generation, handle = self.generation, self.handle
        text = self.echoed + "".join(chunk.text for chunk in chunks)
        placed = self.visible(self.place([entry for chunk in chunks for entry in chunk.logprobs]), len(text))
        return Finished(
            text,
            [entry for _, entry in placed],
            [offset for offset, _ in placed],
            generation.finish_reason or "stop",
            generation.n_prompt,
            generation.n_generated,
            handle.cached_tokens if handle is not None else 0,
        )

    def place(self, entries: Sequence[TokenLogprob], offsets: Offsets | None = None) -> list[tuple[int, TokenLogprob]]:
        """Each entry with the place of its token in the text; `offsets` goes on where it stands."""
        offsets = offsets or Offsets(self._session.vocabulary, self.echoed)
        return [(offsets.next(entry.token), entry) for entry in entries]

    def visible(self, placed: list[tuple[int, TokenLogprob]], length: int) -> list[tuple[int, TokenLogprob]]:
        """Without the tokens that lie wholly in a removed stop string."""
        return [(offset, entry) for offset, entry in placed if offset < length] if self.generation.stopped_by else placed


def prompt_tokens(session: Session, prompt: str | Sequence[int]) -> Tokens:
    """Tokens of a prompt; an empty text becomes the BOS token."""
    if isinstance(prompt, str):
        session.vocabulary.check_length(prompt, session.n_ctx())
    ids = session.vocabulary.encode(prompt, add_bos=True, special=True) if isinstance(prompt, str) else prompt
    if len(ids) == 0:
        ids = [session.token_bos()]
        if ids[0] < 0:
            raise ValueError("the prompt is empty and the model has no BOS token to begin with")
    return check_tokens(ids, session.n_vocab())


def allowed_tokens(n_prompt: int, max_tokens: int | None, n_ctx: int) -> int:
    """How many tokens may be generated; ValueError when the prompt alone fills the context."""
    if max_tokens == 0 and n_prompt <= n_ctx:
        return 0
    if n_prompt >= n_ctx:
        raise PromptTooLong(n_prompt, n_ctx)
    room = n_ctx - n_prompt
    if max_tokens is None or max_tokens < 0:
        return room
    if max_tokens > room:
        logger.warning("max_tokens=%d does not fit: the context of %d leaves %d after the prompt", max_tokens, n_ctx, room)
    return min(max_tokens, room)


def make_generation(session: Session, prompt: Tokens, request: CompletionRequest) -> Generation:
    """The state of one completion with its own sampler."""
    processors = request.logits_processor or []
    processors = [processors] if callable(processors) and not isinstance(processors, list) else list(processors)
    if request.grammar is not None:
        processors.append(request.grammar.processor(session.vocabulary, len(prompt)))
    stop = [request.stop] if isinstance(request.stop, str) else list(request.stop or ())
    if not all(isinstance(text, str) for text in stop):
        raise TypeError(f"stop must be a text or several, got {request.stop!r}")
    control = {text: token for text in stop if (token := session.vocabulary.control_token(text)) is not None}
    limits = Limits(
        allowed_tokens(len(prompt), request.max_tokens, session.n_ctx()),
        [text for text in stop if text not in control],
        frozenset(control.values()),
        request.shown_tokens,
        StoppingCriteriaList(request.stopping_criteria or ()),
    )
    chooser = TokenChooser(
        session.new_sampler(request.sampling, request.seed), check_logit_bias(request.logit_bias, session.n_vocab()), processors
    )
    return Generation(session.vocabulary, prompt, chooser, limits, request.logprobs)


def usage(result: Finished) -> dict[str, int]:
    """OpenAI's token counts."""
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "total_tokens": result.prompt_tokens + result.completion_tokens,
    }


def _envelope(session: Session, model: str | None) -> dict[str, Any]:
    return {"id": f"cmpl-{uuid.uuid4()}", "object": "text_completion", "created": int(time.time()), "model": model or session.model_path}


def _choice(text: str, logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}


def complete(session: Session, request: CompletionRequest, model: str | None = None) -> dict[str, Any]:
    """A whole completion as a dict."""
    return completion_dict(session, Completion(session, request).finish(), request, model)


def completion_dict(session: Session, result: Finished, request: CompletionRequest, model: str | None = None) -> dict[str, Any]:
    """A finished completion in OpenAI's form."""
    logprobs = None if request.logprobs is None else legacy_logprobs(session.vocabulary, result.logprobs, result.offsets)
    return {**_envelope(session, model), "choices": [_choice(result.text, logprobs, result.finish_reason)], "usage": usage(result)}


def stream(session: Session, request: CompletionRequest, model: str | None = None) -> Iterator[dict[str, Any]]:
    """A completion as an iterator of dicts; the last one carries the finish reason."""
    completion = Completion(session, request)
    return _stream(session, completion, _envelope(session, model), request.logprobs is not None)


def _stream(session: Session, completion: Completion, envelope: dict[str, Any], with_logprobs: bool) -> Iterator[dict[str, Any]]:
    offsets, length = Offsets(session.vocabulary, completion.echoed), 0
    waiting: list[tuple[int, TokenLogprob]] = []

    def logprobs() -> dict[str, Any] | None:
        if not with_logprobs:
            return None
        return legacy_logprobs(session.vocabulary, [entry for _, entry in waiting], [offset for offset, _ in waiting])

    for chunk in completion.chunks():
        length += len(chunk.text)
        waiting = completion.visible(waiting + completion.place(chunk.logprobs, offsets), length)
        if chunk.text:
            yield {**envelope, "choices": [_choice(chunk.text, logprobs(), None)]}
            waiting = []
    yield {**envelope, "choices": [_choice("", logprobs() if waiting else None, completion.generation.finish_reason)]}


def complete_batch(session: Session, requests: Sequence[CompletionRequest], n_slots: int) -> list[dict[str, Any]]:
    """Completions of all requests, in their order, `n_slots` of them running at a time; each is what it would be alone."""
    if n_slots < 1:
        raise ValueError(f"n_slots must be positive, got {n_slots}")
    completions = [Completion(session, request) for request in requests]
    if completions:
        session.engine.scheduler.reserve(min(n_slots, len(completions)))
    handles = [completion.submit(may_grow=False) for completion in completions]
    try:
        results = [completion.finish() for completion in completions]
    finally:
        for handle in handles:
            handle.cancel()
    return [completion_dict(session, result, request) for result, request in zip(results, requests, strict=True)]
