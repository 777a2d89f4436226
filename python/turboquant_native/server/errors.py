"""Errors as clients of OpenAI and Anthropic expect them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..api.call_grammar import UnboundCall

# Anthropic's name for a status; OpenAI's stands with each error.
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class OpenAIError(BaseModel):
    """The shape of errors, for the description of the routes."""

    error: dict[str, Any]


_MEANINGS = {
    400: "a field is wrong, or the prompt does not fit the context",
    401: "the API key is missing or wrong",
    404: "no such model",
    409: "the model is in use",
    413: "the body is too large",
    429: "all slots are taken and the queue is full; Retry-After says when to come back",
    500: "a fault of the server",
    503: "the model is being loaded, or the server is ending",
    504: "the answer took too long",
}
# For FastAPI's description of the routes; 422 stands there by default and is never sent.
DESCRIBED: dict[int | str, dict[str, Any]] = {status: {"description": text, "model": OpenAIError} for status, text in _MEANINGS.items()}


class ApiError(Exception):
    """An error with a status; the route that was called decides its shape.

    Args:
        code: OpenAI's code, such as "model_not_found". param: the field of the request that is wrong.
        extra: more fields of OpenAI's error object, such as the numbers behind the message.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers, self.extra = dict(headers or {}), dict(extra or {})

    @property
    def kind(self) -> str:
        """OpenAI's type."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def openai(self) -> dict[str, Any]:
        """The body in OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code, **self.extra}}

    def anthropic(self) -> dict[str, Any]:
        """The body in Anthropic's shape."""
        return {"type": "error", "error": {"type": _ANTHROPIC_TYPES.get(self.status, "api_error"), "message": self.message}}


def model_not_found(name: str, known: Sequence[str]) -> ApiError:
    return ApiError(404, f"the model {name!r} does not exist; there are: {', '.join(known)}", code="model_not_found", param="model")


def context_length_exceeded(n_prompt: int, n_ctx: int, param: str = "messages") -> ApiError:
    message = f"the prompt has {n_prompt} tokens, and the model's context is {n_ctx} tokens, which must also hold the answer"
    return ApiError(400, message, code="context_length_exceeded", param=param, extra={"n_prompt_tokens": n_prompt, "n_ctx": n_ctx})


def queue_full(seconds: int) -> ApiError:
    return ApiError(
        429, f"all slots are taken and the queue is full; try again in {seconds} s", "queue_full", headers={"Retry-After": str(seconds)}
    )


def unavailable(message: str, seconds: int = 2) -> ApiError:
    return ApiError(503, message, code="unavailable", headers={"Retry-After": str(seconds)})


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"the request's body is larger than {limit} bytes", code="request_too_large")


def timed_out(seconds: float) -> ApiError:
    return ApiError(504, f"the answer took longer than {seconds:g} s", code="timeout")


@contextmanager
def faults_of_requests() -> Iterator[None]:
    """Within the block a request is read: what is wrong there is the client's, and told in full."""
    try:
        yield
    except ValidationError as error:
        raise of_validation(error) from error
    except (ValueError, TypeError, ImportError) as error:
        raise ApiError(400, str(error), code="invalid_value") from error


def of_exception(error: BaseException) -> ApiError:
    """What a client is told of an exception: nothing of its inner life, unless it was meant for clients."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, UnboundCall):
        return ApiError(500, str(error), code="strict_tool_call_failed")
    return ApiError(500, "the server failed to answer; its log says why", code="internal_error")


def of_validation(error: RequestValidationError | ValidationError) -> ApiError:
    """The first thing that is wrong with a body, by the name of the field."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{where}: {message}" if where else message, code="invalid_value", param=where or None)


def wants_anthropic(path: str) -> bool:
    return path.startswith("/v1/messages")


def response(path: str, error: ApiError) -> Response:
    """The error as the route's clients expect it."""
    body = error.anthropic() if wants_anthropic(path) else error.openai()
    return JSONResponse(body, error.status, error.headers)


async def handle(request: Request, error: Exception) -> Response:
    """Exception handler for all routes."""
    known = of_validation(error) if isinstance(error, RequestValidationError) else of_exception(error)
    return response(request.url.path, known)
