"""The web page at /, where it is part of the installation."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from . import errors


def _loader() -> Callable[[str], Any]:
    """path -> the page's file, None where there is none; an installation may lack the page."""
    name = f"{__package__}.page_files"
    if importlib.util.find_spec(name) is None:
        return lambda path: None
    load: Callable[[str], Any] = importlib.import_module(name).load
    return load


load = _loader()


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
