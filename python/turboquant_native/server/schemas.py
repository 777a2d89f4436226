"""Bodies of requests in OpenAI's form. Fields that nobody here knows are ignored, as clients expect."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Token = Annotated[int, Field(ge=0)]


class Body(BaseModel):
    """What all bodies share."""

    model_config = ConfigDict(extra="allow")


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
