"""An ASGI application called without a server: a request goes in as data, its answer comes out in pieces."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from .prefixes import Prefix

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Call:
    """A request. prefix: how it begins, for the router."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    prefix: Prefix = ()


@dataclass(frozen=True)
class Head:
    """How an answer begins."""

    status: int
    headers: Headers


async def answer(app: ASGIApp, call: Call) -> AsyncIterator[Head | bytes]:
    """The head, then the body as it comes. When the iteration is given up, the application sees its client leave."""
    sent: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=16)
    left, given = asyncio.Event(), False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": call.body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(_scope(call), receive, sent.put)
        finally:
            await sent.put(None)

    task = asyncio.create_task(run())
    try:
        while (message := await sent.get()) is not None:
            if message["type"] == "http.response.start":
                yield Head(message["status"], [(bytes(name), bytes(value)) for name, value in message["headers"]])
            elif message.get("body"):
                yield bytes(message["body"])
        await task
    finally:
        left.set()
        if not task.done():
            task.cancel()


def _scope(call: Call) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": call.path.encode(),
        "root_path": "",
        "query_string": call.query,
        "headers": call.headers,
        "client": None,
        "server": None,
    }
