"""A stand-in for `tqn serve` that the web page's tests speak to: the page's files and the four endpoints it uses, scripted."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from turboquant_native.server import page_files

Chunk = dict[str, Any]
Script = list[Chunk | float | bytes | threading.Event]  # a chunk, seconds to wait, bytes as they stand, or what to wait for
USAGE = {"prompt_tokens": 21, "completion_tokens": 12, "total_tokens": 33, "prompt_tokens_details": {"cached_tokens": 5}}
TIMINGS = {"prompt_per_second": 120.5, "predicted_per_second": 23.4, "prompt_n": 16, "predicted_n": 12, "cached_n": 5}


BROKEN = b": cut here\n\n"  # as the last of a script: the stream ends without [DONE]


def delta(**fields: Any) -> Chunk:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "tiny",
        "choices": [{"index": 0, "delta": fields, "finish_reason": None}],
    }


def finish(reason: str = "stop") -> Chunk:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def progress(processed: int, total: int) -> Chunk:
    return {"choices": [], "prompt_progress": {"processed": processed, "total": total}}


def words(text: str) -> list[Chunk]:
    """Text as a model streams it, a word a chunk."""
    return [delta(content=part) for part in re.findall(r"\s*\S+|\s+$", text)]


def answer(text: str, reasoning: str = "") -> Script:
    thought = [delta(reasoning_content=part) for part in re.findall(r"\s*\S+", reasoning)]
    return [progress(8, 21), *thought, *words(text), finish(), {"choices": [], "usage": USAGE, "timings": TIMINGS}]


class PageServer(ThreadingHTTPServer):
    """`script`: what the next answers stream (the last one repeats); `error`: the (status, headers, error object) they get instead.

    `requests` holds the bodies of chat requests; `closed` is set when a client left a stream.
    """

    daemon_threads = True
    request_queue_size = 64  # a browser opens several connections at once

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Script] = [answer("Hello there.")]
        self.error: tuple[int, dict[str, str], dict[str, str]] | None = None
        self.key = ""
        self.models = [{"id": "tiny", "object": "model", "owned_by": "turboquant-native", "meta": {"n_params": 135_000_000}}]
        self.requests: list[dict[str, Any]] = []
        self.closed = threading.Event()
        self.go = threading.Event()  # for scripts that wait until a test has looked
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def next_answer(self) -> Script:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # browsers drop connections as they please


class Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

    def allowed(self) -> bool:
        if not self.server.key or self.headers.get("Authorization") == f"Bearer {self.server.key}":
            return True
        self.send_json({"error": {"message": "Incorrect API key provided.", "code": "invalid_api_key"}}, 401)
        return False

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if file := page_files.load(path):
            self.send(200, file.body, file.headers)
        elif path == "/v1/models" and self.allowed():
            self.send_json({"object": "list", "data": self.server.models})
        elif path == "/props" and self.allowed():
            defaults = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05, "max_tokens": None}
            self.send_json(
                {"model": "tiny", "n_ctx": 4096, "default_generation_settings": defaults, "build_info": "turboquant-native 0.1.0"}
            )
        elif path not in ("/v1/models", "/props"):
            self.send_json({"error": {"message": f"no {path}"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        if self.path == "/tokenize":
            self.send_json({"tokens": list(range(len(body["content"].split())))})
        elif self.server.error:
            status, headers, error = self.server.error
            self.send_json({"error": error}, status, headers)
        else:
            self.server.requests.append(body)
            self.stream(self.server.next_answer())

    def stream(self, script: Script) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.wfile.write(b": keep-alive\n\n")
            for part in self.parts(script):
                self.wfile.write(part)
                self.wfile.flush()
        except OSError:
            self.server.closed.set()

    def parts(self, script: Script) -> Iterator[bytes]:
        for part in script:
            if isinstance(part, bytes):
                yield part
            elif isinstance(part, dict):
                yield f"data: {json.dumps(part)}\n\n".encode()
            elif isinstance(part, threading.Event):
                part.wait(60)
            else:
                time.sleep(part)
        if script[-1:] != [BROKEN]:
            yield b"data: [DONE]\n\n"
