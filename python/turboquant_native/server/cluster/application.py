"""Replicas of the server, and the front that passes requests to them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .. import errors, sse
from ..app import create_app
from ..settings import Settings
from .calls import Call, Head, answer
from .prefixes import prefix_of
from .router import PrefixRouter


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, and what each takes.

    Attributes:
        least, most: replicas; Ray starts more while requests wait, and ends idle ones.
        cpus, gpus: of a machine, reserved for each replica.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"replicas must be at least 1, and no fewer at most than at least: got {self.least} to {self.most}")


class Replica:
    """One whole server, without a socket."""

    def __init__(self, settings: Settings) -> None:
        self._app = create_app(settings)
        self._lifespan: Any = None
        self._opening = asyncio.Lock()

    async def check_health(self) -> None:
        """Called by Ray; an error has the replica replaced."""
        if self._lifespan is not None and self._app.state.service.models.default.state == "failed":
            raise RuntimeError(self._app.state.service.models.default.problem)

    async def call(self, call: Call) -> AsyncIterator[Head | bytes]:
        """Answers one request, in pieces."""
        await self._open()
        async for piece in answer(self._app, call):
            yield piece

    async def _open(self) -> None:
        """The first request waits until the model is loaded."""
        async with self._opening:
            if self._lifespan is None:
                self._lifespan = self._app.router.lifespan_context(self._app)
                await self._lifespan.__aenter__()
        while self._app.state.service.models.starting:
            await asyncio.sleep(0.05)


class Front:
    """Passes requests on, and their answers back."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        self._replicas = replicas.options(stream=True, method_name="call")
        self._max_body = settings.max_body

    async def __call__(self, request: Request) -> Response:
        """A request that came over HTTP."""
        path = request.url.path
        try:
            body = await self._body(request)
        except errors.ApiError as error:
            return errors.response(path, error)
        call = Call(request.method, path, request.url.query.encode(), list(request.headers.raw), body, prefix_of(body))
        pieces = self._replicas.remote(call)
        try:
            head = await anext(aiter(pieces))
        except BackPressureError:
            return errors.response(path, errors.queue_full(2))
        except RayError:
            return errors.response(path, errors.unavailable("the replica that had this request has ended; send it again"))
        assert isinstance(head, Head)
        response = StreamingResponse(self._rest(pieces, path, head), head.status)
        response.raw_headers = head.headers
        return response

    async def _body(self, request: Request) -> bytes:
        found = bytearray()
        async for piece in request.stream():
            found += piece
            if len(found) > self._max_body:
                raise errors.too_large(self._max_body)
        return bytes(found)

    async def _rest(self, pieces: Any, path: str, head: Head) -> AsyncIterator[bytes]:
        """The answer's body. A stream whose replica dies ends with an error that clients can read; a client that leaves ends the work."""
        try:
            async for piece in pieces:
                yield piece
        except RayError:
            if not any(value.startswith(b"text/event-stream") for name, value in head.headers if name.lower() == b"content-type"):
                raise
            yield _lost(path)
        finally:
            pieces.cancel()


def _lost(path: str) -> bytes:
    error = errors.unavailable("the replica that wrote this answer has ended before it was complete")
    if errors.wants_anthropic(path):
        return sse.data(error.anthropic(), "error")
    if path.startswith("/v1/responses"):
        return sse.data({"type": "error", **error.openai()["error"], "code": error.code}, "error")
    return sse.data(error.openai()) + sse.DONE


def application(settings: Settings, scale: Scale, kind: type[Replica] = Replica) -> Any:
    """The Ray Serve application: `ray.serve.run` takes it. kind: what runs in each replica."""
    replica = serve.deployment(
        kind,
        name="replica",
        max_ongoing_requests=2 * settings.n_slots,  # so many in turn in the replica's own queue, the others wait at the front
        max_queued_requests=settings.max_queue,
        autoscaling_config=AutoscalingConfig(
            min_replicas=scale.least, max_replicas=scale.most, target_ongoing_requests=settings.n_slots, upscale_delay_s=5
        ),
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
        graceful_shutdown_timeout_s=settings.grace,
    )
    front = serve.deployment(Front, name="front", max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0})
    return front.bind(replica.bind(settings), settings)


def run(settings: Settings, scale: Scale, address: str | None, host: str, port: int) -> None:
    """Serves until the process is told to end. address: of a running cluster, "auto" for this machine's; None: one is started here."""
    import ray

    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(application(settings, scale), name="turboquant-native", route_prefix="/", blocking=True)
    finally:
        serve.shutdown()
        ray.shutdown()
