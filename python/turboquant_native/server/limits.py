"""What stands before every route: keys and the size of bodies."""

import hmac
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import errors

_OPEN_PATHS = {"/health", "/docs", "/openapi.json"}  # besides the page, which asks for the key itself


class KeyCheck:
    """Asks for one of the keys on every route but the open ones.

    Keys come as `Authorization: Bearer KEY` or `X-Api-Key: KEY`. Comparing takes the same time whatever was sent.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], is_page: Callable[[str], bool]) -> None:
        self._app, self._keys, self._is_page = app, [key.encode() for key in keys], is_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or self._open(scope) or self._allowed(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = errors.ApiError(401, "the API key is missing or wrong", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await errors.response(scope["path"], error)(scope, receive, send)

    def _open(self, scope: Scope) -> bool:
        path = scope["path"]
        return scope["method"] == "OPTIONS" or path in _OPEN_PATHS or (scope["method"] == "GET" and self._is_page(path))

    def _allowed(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
        matches = [hmac.compare_digest(sent.encode(), key) for sent in given for key in self._keys]
        return any(matches)


class BodyLimit:
    """Refuses bodies beyond a number of bytes: by their declared length at once, otherwise when the limit is passed."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limit:
            await errors.response(scope["path"], errors.too_large(self._limit))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(413, errors.too_large(self._limit).message)
            return message

        await self._app(scope, counted, send)
