"""The web page at /, where it is part of the installation."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
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
router = APIRouter()


def is_page(path: str) -> bool:
    """Whether a path is a file of the page; those are open without a key, which the page itself asks for."""
    return load(path) is not None


@router.get("/{path:path}", include_in_schema=False)
async def page(path: str, request: Request) -> Response:
    """A file of the page."""
    file = load(path)
    if file is None:
        raise errors.ApiError(404, f"there is nothing at /{path}", code="not_found")
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=file.headers)
    return Response(file.body, headers=file.headers)
