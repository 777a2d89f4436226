"""The web page at /."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from . import errors
from .page_files import load


def is_page(path: str) -> bool:
    """Whether a path is a file of the page; those are open without a key, which the page itself asks for."""
    return load(path) is not None


async def page_or_error(request: Request, error: Exception) -> Response:
    """For paths that are no route: a file of the page, or the error."""
    file = load(request.url.path) if request.method in ("GET", "HEAD") else None
    if not isinstance(error, HTTPException) or error.status_code != 404 or file is None:
        return await errors.handle(request, error)
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=file.headers)
    return Response(file.body, headers=file.headers)
