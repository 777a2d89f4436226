"""What the server's tests share: a server in a thread, models that say what a test wants, events of a stream."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import uvicorn

from turboquant_native import Llama
from turboquant_native.server import Settings, create_app, requests

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HERMES = CHATML + "{# <tool_call> #}"
THINKING = CHATML + "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


COLOURS = {"type": "object", "properties": {"c": {"enum": ["red", "blue"]}}, "required": ["c"]}


def ask(text: str = "The quick brown fox", **more: Any) -> dict[str, Any]:
    """A chat with one message, the most likely tokens."""
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def post(client: Any, path: str, body: Any, status: int = 200, **more: Any) -> Any:
    """The answer to a request that must end with `status`."""
    response = client.post(path, json=body, **more)
    assert response.status_code == status, response.text
    return response.json() if response.headers["content-type"].startswith("application/json") else response.text


class Script:
    """A logits processor that has a model say given tokens and then end. `pause` seconds pass before each."""

    def __init__(self, tokens: Sequence[int], end: int | None, pause: float = 0.0) -> None:
        self._tokens, self._end, self._pause = list(tokens), end, pause
        self._n_prompt: int | None = None

    def __call__(self, input_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        time.sleep(self._pause)
        if self._n_prompt is None:
            self._n_prompt = len(input_ids)
        place = len(input_ids) - self._n_prompt
        token = self._tokens[place] if place < len(self._tokens) else self._end
        if token is not None:
            logits[:] = -np.inf
            logits[token] = 0
        return logits


@contextlib.contextmanager
def saying(monkeypatch: Any, make: Callable[[], Script]) -> Iterator[None]:
    """Requests within the block are answered by scripts."""
    plain = requests._request

    def scripted(*args: Any, **values: Any) -> Any:
        return plain(*args, **values, logits_processor=[make()])

    with monkeypatch.context() as patch:
        patch.setattr(requests, "_request", scripted)
        yield


def spoken(llama: Llama, text: str, pause: float = 0.0, end: bool = True) -> Callable[[], Script]:
    """A script of a text; without `end` the model goes on by itself."""
    tokens = llama.vocabulary.encode(text)
    return lambda: Script(tokens, min(llama.vocabulary.end_tokens) if end else None, pause)


@contextlib.contextmanager
def serving(llama: Llama | Settings, settings: Settings | None = None) -> Iterator[str]:
    """The address of a server in a thread, with the application as `serving.app`."""
    app = create_app(llama, settings)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
            assert thread.is_alive(), "the server did not start"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def events(text: str) -> list[tuple[str | None, Any]]:
    """(event, data) of a stream; comments are left out; "[DONE]" stays text."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            data = fields["data"]
            found.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found


def chunks(text: str) -> list[dict[str, Any]]:
    """The chunks of an OpenAI stream, which must end as one should."""
    found = events(text)
    assert found[-1] == (None, "[DONE]")
    return [data for _, data in found[:-1]]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
