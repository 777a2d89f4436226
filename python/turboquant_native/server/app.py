"""The HTTP application."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .. import __version__
from ..api.llama import Llama
from . import chat_routes, completion_routes, docs, errors, logs, model_routes, page_route, rerank_route, streaming
from .limits import BodyLimit, KeyCheck
from .models import Model, Models, find
from .service import Service
from .settings import Settings

_N_CTX = 4096  # of a conversation, where nobody says how long


def create_app(engine_or_settings: Llama | Settings, settings: Settings | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        engine_or_settings: an open `Llama`, which the application uses and does not close; or settings that name models, which the
            application opens and closes.
        settings: limits and manners, when a `Llama` is given.
    """
    if isinstance(engine_or_settings, Settings):
        service, owns = _service_of_files(engine_or_settings), True
    else:
        service, owns = _service_of_llama(engine_or_settings, settings or Settings()), False
    app = FastAPI(
        title="turboquant-native",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=functools.partial(_lifespan, service, owns),
        middleware=_middleware(service),
    )
    app.state.service = service
    for router in (chat_routes.router, completion_routes.router, model_routes.router, rerank_route.router, docs.router):
        app.include_router(router)
    app.add_exception_handler(errors.ApiError, errors.handle)
    app.add_exception_handler(RequestValidationError, errors.handle)
    app.add_exception_handler(HTTPException, page_route.page_or_error)
    app.add_exception_handler(ClientDisconnect, _nobody)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _middleware(service: Service) -> list[Middleware]:
    """From the outside in."""
    settings = service.settings
    chain = [Middleware(logs.AccessLog, metrics=service.metrics)]
    if settings.cors_origins:
        # Never with credentials: a page that another origin serves must not act with what the browser keeps for this one.
        chain.append(
            Middleware(CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"])
        )
    return [
        *chain,
        Middleware(KeyCheck, keys=settings.api_keys, is_page=page_route.is_page),
        Middleware(BodyLimit, limit=settings.max_body),
    ]


def _service_of_files(settings: Settings) -> Service:
    models = find(settings.models)
    if not models:
        raise ValueError("the settings name no model")
    return Service(settings, Models(models, settings, functools.partial(_open, settings)))


def _open(settings: Settings, path: str) -> Llama:
    from .. import _core

    n_ctx = settings.n_ctx
    if n_ctx is None:
        metadata = _core.GgufFile(path).metadata
        n_ctx = min(_N_CTX, int(metadata.get(f"{metadata.get('general.architecture')}.context_length", _N_CTX)))
    llama = Llama(path, n_ctx=n_ctx, n_slots=settings.n_slots, verbose=False, **settings.llama)
    _prepare(llama, settings)
    return llama


def _prepare(llama: Llama, settings: Settings) -> None:
    """All slots at once, so that missing memory shows now; the queue's limit."""
    llama.engine.scheduler.reserve(settings.n_slots)
    llama.engine.scheduler.queue_limit = settings.max_queue


def _service_of_llama(llama: Llama, settings: Settings) -> Service:
    name = Path(llama.model_path).stem

    def refuse(path: str) -> Llama:
        raise ValueError(f"{path}: the application was given an open model and opens none")

    _prepare(llama, settings)
    model = Model(name, llama.model_path, state="loaded", llama=llama, created=int(Path(llama.model_path).stat().st_mtime))
    return Service(settings, Models({name: model}, settings, refuse))


@contextlib.asynccontextmanager
async def _lifespan(service: Service, owns: bool, app: FastAPI) -> AsyncIterator[None]:
    """Loads the first model beside serving, so that /health can say so; at the end lets answers end, then closes."""
    models = service.models
    models.starting = models.default.llama is None
    loading = asyncio.create_task(_load_first(service))
    idle = asyncio.create_task(models.unload_idle())
    try:
        yield
    finally:
        await service.registry.drain(service.settings.grace)
        idle.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        if owns:
            await asyncio.to_thread(models.close)


async def _load_first(service: Service) -> None:
    models = service.models
    try:
        if models.starting:
            await models.load(models.default)
    except errors.ApiError:
        pass  # logged there; /health says it
    finally:
        models.starting = False


async def _nobody(request: Request, error: Exception) -> Response:
    """The client has left; nobody reads this."""
    return Response(status_code=499)


async def _unexpected(request: Request, error: Exception) -> Response:
    return errors.response(request.url.path, streaming.logged(error))
