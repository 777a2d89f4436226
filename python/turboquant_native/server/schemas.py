"""Bodies of requests in OpenAI's form. Fields that nobody here knows are ignored, as clients expect."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Token = Annotated[int, Field(ge=0)]


class Body(BaseModel):
    """What all bodies share."""

    model_config = ConfigDict(extra="allow")


# Fields of other servers and of OpenAI that would change the answer and are not followed here: field: (values that ask for nothing, what
# helps). Other unknown fields are ignored; these are refused, because their absence would go unnoticed.
_NOT_FOLLOWED: dict[str, tuple[tuple[Any, ...], str]] = {
    "functions": ((None, []), "use tools"),
    "function_call": ((None, "none"), "use tool_choice"),
    "modalities": ((None, [], ["text"]), "answers are text"),
    "audio": ((None,), "answers are text"),
    "web_search_options": ((None,), "there is no search here"),
    "guided_json": ((None,), "use response_format"),
    "guided_regex": ((None,), "use grammar"),
    "guided_choice": ((None,), "use grammar"),
    "guided_grammar": ((None,), "use grammar"),
    "structured_outputs": ((None, {}), "use response_format or grammar"),
    "mirostat": ((None, 0), "use temperature, top_p, min_p"),
    "dry_multiplier": ((None, 0), "use repeat_penalty"),
    "xtc_probability": ((None, 0), "use min_p"),
    "dynatemp_range": ((None, 0), "use temperature"),
    "lora": ((None, []), "adapters are not supported"),
    "ignore_eos": ((None, False), "use logit_bias against the end token"),
    "min_tokens": ((None, 0), "use logit_bias against the end token"),
    "stop_token_ids": ((None, []), "use stop, with the tokens' names"),
    "n_predict": ((None,), "use max_tokens"),
    "truncate_prompt_tokens": ((None,), "prompts are never cut"),
    "continue_final_message": ((None, False), "use /v1/completions"),
    "add_generation_prompt": ((None, True), "use /v1/completions"),
}


def refuse_not_followed(fields: Mapping[str, Any]) -> None:
    """ValueError for a field that asks for what is not done here."""
    for name, (neutral, help_) in _NOT_FOLLOWED.items():
        if fields.get(name) not in neutral:
            raise ValueError(f"{name} is not supported: {help_}")


class StreamOptions(Body):
    include_usage: bool = False


class Sampling(Body):
    """How tokens are drawn, and where an answer ends. None means the server's default."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=-1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=100)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    top_k: int | None = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    typical_p: Annotated[float | None, Field(ge=0, le=1)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    repeat_penalty: Annotated[float | None, Field(gt=0)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0)] = None  # vLLM's name
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    grammar: str | None = None  # GBNF, as llama-server takes it
    json_schema: dict[str, Any] | None = None
    return_progress: bool = False

    @field_validator("n")
    @classmethod
    def _one_answer(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError(f"must be 1, got {value}: send the request several times")
        return value

    @model_validator(mode="after")
    def _refuse_what_is_not_followed(self) -> "Sampling":
        refuse_not_followed(self.model_extra or {})
        return self


class Message(Body):
    """One message of a conversation; its content is checked where the prompt is made."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatBody(Sampling):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=-1)] = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None

    @model_validator(mode="after")
    def _no_alternatives_without_logprobs(self) -> "ChatBody":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class CompletionBody(Sampling):
    """POST /v1/completions"""

    prompt: str | list[Token] | list[str] | list[list[Token]] = ""
    logprobs: Annotated[int | None, Field(ge=0, le=100)] = None
    echo: bool | None = False
    suffix: str | None = None
    best_of: int | None = None

    @field_validator("best_of")
    @classmethod
    def _one_of(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError(f"must be 1, got {value}")
        return value

    @field_validator("suffix")
    @classmethod
    def _no_suffix(cls, value: str | None) -> str | None:
        if value:
            raise ValueError("is not supported")
        return value

    @field_validator("prompt")
    @classmethod
    def _some_prompt(cls, value: Any) -> Any:
        if isinstance(value, list) and not value:
            raise ValueError("must not be empty")
        return value


class EmbeddingBody(Body):
    """POST /v1/embeddings"""

    model: str | None = None
    input: str | list[str] | list[Token] | list[list[Token]]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int | None, Field(ge=1)] = None

    @field_validator("input")
    @classmethod
    def _some_input(cls, value: Any) -> Any:
        if len(value) == 0 or (isinstance(value, list) and any(isinstance(part, (str, list)) and not part for part in value)):
            raise ValueError("must not be empty")
        return value


class TextBody(Body):
    """POST /tokenize"""

    content: str
    add_special: bool = False
    parse_special: bool = True
    model: str | None = None


class TokensBody(Body):
    """POST /detokenize"""

    tokens: list[Token]
    model: str | None = None


class ModelName(Body):
    """POST /models/load, /models/unload"""

    model: str
