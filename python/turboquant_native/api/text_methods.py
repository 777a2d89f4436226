"""The half of `Llama` that works with text: completions, chats, batches, embeddings."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..engine.grammar import LlamaGrammar
from ..engine.sampling import LogitsProcessor, SamplingOptions, StoppingCriteriaList, refuse_unsupported
from . import completion, embedding
from .chat_completion import ChatCompletion
from .session import Session


class TextMethods:
    """Methods of `Llama` that take and give text."""

    pooling_type: int
    chat_handler: Callable[..., Any] | None
    _session: Session

    # --- completions ---------------------------------------------------------------------------------------------------------------------

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        model: str | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: dict[Any, float] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Continues a text.

        Args:
            prompt: text (control tokens' names count as those tokens) or token ids.
            suffix: not supported; must be empty.
            max_tokens: exactly how many tokens at most; None or negative: until the context is full.
            temperature, top_k, top_p, min_p, typical_p: the draw; temperature 0 takes the most likely token.
            repeat_penalty, frequency_penalty, presence_penalty: against tokens among the last 64.
            logprobs: report log-probabilities with so many alternatives a token.
            echo: the prompt stands before the text.
            stop: ends the text at the first of these strings, which is not part of it.
            stream: return an iterator of pieces.
            seed: of this call; None: the model's.
            model: name to report.
            stopping_criteria, logits_processor: lists of callables, see `turboquant_native.sampling`.
            grammar: a `LlamaGrammar`. logit_bias: {token: added to its logit}; works together with processors.

        Returns:
            {"id", "object": "text_completion", "created", "model", "choices": [{"text", "index", "logprobs", "finish_reason"}], "usage"};
            with stream an iterator of such dicts without usage, whose last one has the finish reason ("stop" or "length").

        Raises ValueError for a prompt that does not fit n_ctx and for arguments out of range, RuntimeError once the model is closed.
        """
        refuse_unsupported(suffix=suffix, **kwargs)
        request = completion.CompletionRequest(
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=self._sampling(temperature, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty),
            stop=stop,
            logprobs=logprobs,
            echo=echo,
            seed=seed,
            stopping_criteria=stopping_criteria,
            logits_processor=logits_processor,
            grammar=grammar,
            logit_bias=logit_bias,
        )
        return (completion.stream if stream else completion.complete)(self._session, request, model)

    __call__ = create_completion

    def _sampling(self, *values: float) -> SamplingOptions:
        return SamplingOptions(*values, penalty_last_n=self._session.penalty_last_n)  # type: ignore[arg-type, misc]

    def create_chat_completion(
        self,
        messages: Sequence[dict[str, Any]],
        functions: Any = None,
        function_call: Any = None,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: Any = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: dict[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        model: str | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: dict[Any, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Answers a conversation through the model's chat template.

        Args:
            messages: [{"role": "system" | "user" | "assistant" | "tool", "content": text or text parts}, ...].
            functions, function_call: OpenAI's old names, not supported: use tools.
            tools: given to the template; the file's template "tool_use" is used where it has one.
            tool_choice: "none"; "auto": what the answer marks as a call in the way of the model's family becomes `tool_calls`;
                {"type": "function", "function": {"name": ...}} constrains the answer to that tool's arguments; "required" the
                same for any one of the tools.
            response_format: {"type": "text" | "json_object" | "json_schema", ...}; constrains the answer, not the thinking before it.
            logprobs, top_logprobs: report log-probabilities, with so many alternatives a token.
            chat_template_kwargs: more variables of the template, such as {"enable_thinking": False}.
            parallel_tool_calls: False: at most one call; the answer ends where a second one would begin.
            The rest is `create_completion`'s.

        Returns:
            {"id", "object": "chat.completion", "created", "model", "usage",
            "choices": [{"index", "message", "logprobs", "finish_reason"}]}, where the message has "content", "tool_calls" where tools were
            called, and "reasoning_content" where the model thought first;
            with stream an iterator of "chat.completion.chunk" dicts with "delta".

        Raises TemplateError (a ValueError) when there is no usable template, and what `create_completion` raises.
        """
        if functions is not None or function_call is not None:
            raise ValueError("functions and function_call are not supported; use tools and tool_choice")
        if self.chat_handler is not None:
            given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "functions", "function_call")}
            if parallel_tool_calls is None:
                del given["parallel_tool_calls"]  # younger than most handlers
            answer: dict[str, Any] | Iterator[dict[str, Any]] = self.chat_handler(llama=self, **given, **kwargs)
            return answer
        refuse_unsupported(**kwargs)
        request = completion.CompletionRequest(
            prompt="",
            max_tokens=max_tokens,
            sampling=self._sampling(temperature, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty),
            stop=stop,
            logprobs=(top_logprobs or 0) if logprobs else None,
            seed=seed,
            logits_processor=logits_processor,
            grammar=grammar,
            logit_bias=logit_bias,
        )
        chat = ChatCompletion(
            self._session, messages, request, tools, tool_choice, response_format, model, chat_template_kwargs, parallel_tool_calls
        )
        return chat.stream() if stream else chat.finish()

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """`create_chat_completion` as objects of the `openai` package (ChatCompletion, or an iterator of ChatCompletionChunk)."""
        try:
            from openai.types.chat import ChatCompletion as Answer
            from openai.types.chat import ChatCompletionChunk as Piece
        except ImportError as error:
            raise ImportError("create_chat_completion_openai_v1 needs the openai package: pip install openai") from error
        answer = self.create_chat_completion(*args, **kwargs)
        if isinstance(answer, dict):
            return Answer.model_validate(answer)
        return (Piece.model_validate(chunk) for chunk in answer)

    def generate_batch(self, prompts: Sequence[str | Sequence[int]], *, n_slots: int = 8, **options: Any) -> list[dict[str, Any]]:
        """Continues many prompts at once, `n_slots` of them running at any time.

        Args:
            prompts: texts or token ids. n_slots: sequences in one forward pass; each needs its own cache memory.
            **options: max_tokens, temperature, top_k, ... as for `create_completion`, without stream and echo.

        Returns completions in the order of the prompts; with temperature 0 each is what it would be alone.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts must be a list of prompts, got the text {prompts!r}")
        options.setdefault("penalty_last_n", self._session.penalty_last_n)
        return completion.complete_batch(self._session, [completion.request(prompt, **options) for prompt in prompts], n_slots)

    # --- embeddings ----------------------------------------------------------------------------------------------------------------------

    def create_embedding(self, input: str | Sequence[str], model: str | None = None, truncate: bool = True) -> dict[str, Any]:
        """Normalized embeddings: {"object": "list", "data": [{"object": "embedding", "embedding", "index"}], "model", "usage"}.

        truncate: cut texts that are longer than n_ctx, with a warning; otherwise ValueError.
        """
        return embedding.create(self._session, input, self.pooling_type, model, truncate)

    def embed(self, input: str | Sequence[str], normalize: bool = False, truncate: bool = True, return_count: bool = False) -> Any:
        """Embeddings as lists of n_embd floats, one a text (one a token with pooling NONE).

        truncate: as for `create_embedding`. return_count: return (embeddings, number of tokens).
        """
        tokens = embedding.tokens_of(self._session, embedding.texts_of(input), truncate)
        vectors = [embedding.embed(self._session, ids, self.pooling_type, normalize).tolist() for ids in tokens]
        result = vectors[0] if isinstance(input, str) else vectors
        return (result, sum(map(len, tokens))) if return_count else result
