"""The server under real clients: many at once, some that leave, some that wait; the `openai` and `anthropic` packages."""

import asyncio
import contextlib
import json
import random
import time

import httpx
import numpy as np
import pytest

from server_tools import CALL, CHATML, HERMES, TOOLS, Script, ask, chunks, events, saying, serving, spoken, until
from turboquant_native import Llama
from turboquant_native.server import Settings, create_app


@pytest.fixture(scope="module")
def llama(chat_model):
    # Float activations: rounded ones jump by a step where a sum's last bit, which depends on how prompts are cut, decides.
    with Llama(
        str(chat_model), n_ctx=1024, n_slots=4, n_batch=64, n_threads=1, chat_format=HERMES, precision="f32", verbose=False
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(llama):
    with serving(llama, Settings(n_slots=4, keep_alive=0.05)) as found:
        yield found


def idle(llama) -> bool:
    scheduler = llama.engine.scheduler
    return scheduler.active == 0 and scheduler.queued == 0


# --- many at once ------------------------------------------------------------------------------------------------------------------------


def conversation(number: int) -> list[list[dict[str, str]]]:
    """Two turns of a conversation with a mark of its own; all begin alike."""
    first = [
        {"role": "system", "content": "The quick brown fox jumps over the lazy dog."},
        {"role": "user", "content": f"mark {number * 7919}"},
    ]
    return [first, [*first, {"role": "assistant", "content": f"seen {number}"}, {"role": "user", "content": f"again {number * 104729}"}]]


def heard(choices: list[dict]) -> tuple[str, list[float]]:
    """Text and log-probabilities of an answer, whole or in pieces."""
    texts = [(choice.get("message") or choice.get("delta")).get("content") or "" for choice in choices]
    entries = [entry for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
    return "".join(texts), [entry["logprob"] for entry in entries]


def test_64_conversations_are_each_as_if_alone(address, llama):
    """A cache that gave one conversation another's past would change what follows, and how likely it was."""
    numbers = list(range(64))
    options = {"max_tokens": 8, "temperature": 0, "logprobs": True}

    async def talk(client, number):
        answers = []
        for turn, messages in enumerate(conversation(number)):
            body = {"messages": messages, "stream": (number + turn) % 2 == 0, **options}
            response = await client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            pieces = chunks(response.text) if body["stream"] else [response.json()]
            answers.append(heard([piece["choices"][0] for piece in pieces]))
        return answers

    async def everyone():
        shuffled = random.Random(1).sample(numbers, len(numbers))
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            return dict(zip(shuffled, await asyncio.gather(*(talk(client, number) for number in shuffled)), strict=True))

    together = asyncio.run(everyone())
    for number in numbers:
        for (text, logprobs), messages in zip(together[number], conversation(number), strict=True):
            alone = heard(llama.create_chat_completion(messages, **options)["choices"])
            assert text == alone[0] and np.allclose(logprobs, alone[1], atol=1e-4), number
    assert len({round(answers[0][1][0], 4) for answers in together.values()}) > 48, "the marks make a difference"
    assert idle(llama)


def test_a_shared_beginning_is_evaluated_once(address):
    system = {"role": "system", "content": "The quick brown fox jumps over the lazy dog. " * 5}
    with httpx.Client(base_url=address, timeout=60) as client:
        usages = [
            client.post("/v1/chat/completions", json={"messages": [system, {"role": "user", "content": text}], "max_tokens": 1}).json()[
                "usage"
            ]
            for text in ("one", "two", "three")
        ]
    assert all(usage["prompt_tokens_details"]["cached_tokens"] > 60 for usage in usages[1:])


def test_a_long_prompt_does_not_stop_the_others(llama, address, monkeypatch):
    """Tokens of a running answer come between the parts of a long prompt."""
    slow = spoken(llama, "a" * 900, pause=0.002)

    async def both():
        order: list[str] = []
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            started = asyncio.Event()

            async def talker():
                async with client.stream("POST", "/v1/chat/completions", json=ask("tell", stream=True)) as response:
                    async for line in response.aiter_lines():
                        if '"content":"a' in line:
                            order.append("token")
                            started.set()
                        if order.count("token") > 250:
                            return

            async def reader():
                await started.wait()
                body = ask("1 2 3 4 " * 110, max_tokens=1, stream=True, return_progress=True)
                async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    async for line in response.aiter_lines():
                        if "prompt_progress" in line:
                            order.append("progress")

            await asyncio.gather(talker(), reader())
        return order

    with saying(monkeypatch, slow):
        order = asyncio.run(both())
    first, last = order.index("progress"), len(order) - 1 - order[::-1].index("progress")
    assert "token" in order[first:last]
    assert until(lambda: idle(llama))


# --- clients that leave ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"])
def test_who_leaves_frees_the_slot(llama, address, monkeypatch, path, stream):
    body = {
        "/v1/chat/completions": ask(stream=stream),
        "/v1/completions": {"prompt": "The quick", "max_tokens": 500, "stream": stream},
        "/v1/messages": {**ask(stream=stream), "model": "tiny", "max_tokens": 500},
        "/v1/responses": {"model": "tiny", "input": "The quick", "stream": stream},
    }[path]
    before = llama.engine.scheduler.counters.generated_tokens
    with saying(monkeypatch, spoken(llama, "a" * 500, pause=0.01)):
        with contextlib.suppress(httpx.ReadTimeout), httpx.stream("POST", address + path, json=body, timeout=0.4) as response:
            next(response.iter_bytes())
            time.sleep(0.4)
        assert until(lambda: idle(llama))
    assert llama.engine.scheduler.counters.generated_tokens - before < 300, "the answer would have had 500"


def test_who_leaves_the_queue_is_never_answered(llama, monkeypatch):
    """Four slots are taken; a fifth client waits and leaves."""
    scheduler = llama.engine.scheduler
    with serving(llama, Settings(n_slots=4)) as address, saying(monkeypatch, spoken(llama, "a" * 400, pause=0.01)):

        async def go():
            async with httpx.AsyncClient(base_url=address, timeout=30) as client:
                holders = [asyncio.create_task(client.post("/v1/chat/completions", json=ask(f"hold {i}"))) for i in range(4)]
                while scheduler.active < 4:
                    await asyncio.sleep(0.01)
                waiting = asyncio.create_task(client.post("/v1/chat/completions", json=ask("waits")))
                while scheduler.queued < 1:
                    await asyncio.sleep(0.01)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                cancelled = until(lambda: all(handle.cancelled for handle in list(scheduler._queue)))
                for holder in holders:
                    holder.cancel()
                await asyncio.gather(*holders, return_exceptions=True)
                return cancelled

        assert asyncio.run(go())
        assert until(lambda: idle(llama))


def test_thirty_percent_leave_and_the_others_are_right(llama, address):
    async def one(client, number):
        body = ask(f"number {number}", max_tokens=30, stream=True)
        if number % 3 == 0:
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                async for _ in response.aiter_bytes():
                    return None
        response = await client.post("/v1/chat/completions", json=body)
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(response.text))

    async def everyone():
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            return await asyncio.gather(*(one(client, number) for number in range(30)))

    for number, answer in enumerate(asyncio.run(everyone())):
        if answer is not None:
            alone = llama.create_chat_completion([{"role": "user", "content": f"number {number}"}], max_tokens=30, temperature=0)
            assert answer == alone["choices"][0]["message"]["content"]
    assert until(lambda: idle(llama))


# --- waiting -----------------------------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses(llama, monkeypatch):
    with serving(llama, Settings(n_slots=4, max_queue=1)) as address, saying(monkeypatch, spoken(llama, "a" * 60, pause=0.01)):

        async def go():
            async with httpx.AsyncClient(base_url=address, timeout=30) as client:
                return await asyncio.gather(*(client.post("/v1/chat/completions", json=ask(f"q {i}")) for i in range(12)))

        responses = asyncio.run(go())
    refused = [response for response in responses if response.status_code == 429]
    assert refused and all(response.status_code in (200, 429) for response in responses)
    assert sum(response.status_code == 200 for response in responses) >= 4
    for response in refused:
        assert int(response.headers["retry-after"]) >= 1 and response.json()["error"]["code"] == "queue_full"


def test_silence_is_broken_by_comment_lines(llama, address, monkeypatch):
    """The first token takes long; the client hears something meanwhile, and none of it is an event."""
    with saying(monkeypatch, spoken(llama, "ab", pause=0.3)), httpx.Client(base_url=address, timeout=30) as client:
        text = client.post("/v1/chat/completions", json=ask(stream=True)).text
        quiet = client.post("/v1/messages", json={**ask(stream=True), "model": "tiny", "max_tokens": 4}).text
    before_text = text[: text.index('"content":"ab')] if '"content":"ab' in text else text[: text.index('"content":"a"')]
    assert before_text.count(": keep-alive\n\n") >= 2
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks(text)) == "ab"
    assert [name for name, _ in events(quiet)].count("ping") >= 3


def test_a_character_in_pieces_arrives_whole(llama, address, monkeypatch):
    rocket = "é🚀"
    tokens = [token for byte in rocket.encode() for token in range(3, llama.n_vocab()) if llama.vocabulary.piece(token) == bytes([byte])]
    assert len(tokens) == 6
    with saying(monkeypatch, lambda: Script(tokens, min(llama.vocabulary.end_tokens))), httpx.Client(base_url=address) as client:
        deltas = [
            c["choices"][0]["delta"].get("content", "") for c in chunks(client.post("/v1/chat/completions", json=ask(stream=True)).text)
        ]
    assert "".join(deltas) == rocket and "\ufffd" not in "".join(deltas)


def test_the_end_of_the_server_ends_streams_with_an_error(llama, monkeypatch):
    app = create_app(llama, Settings(n_slots=4, grace=0.2))
    with saying(monkeypatch, spoken(llama, "a" * 800, pause=0.01)):

        async def go():
            transport = httpx.ASGITransport(app)
            registry = app.state.service.registry
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
                stream = asyncio.create_task(client.post("/v1/chat/completions", json=ask(stream=True)))
                whole = asyncio.create_task(client.post("/v1/chat/completions", json=ask("b")))
                while len(registry) < 2:
                    await asyncio.sleep(0.01)
                draining = asyncio.create_task(registry.drain(0.2))
                await asyncio.sleep(0.05)
                refused = await client.post("/v1/chat/completions", json=ask("late"))
                health = await client.get("/health")
                await draining
                return await stream, await whole, refused, health

        stream, whole, refused, health = asyncio.run(go())
    assert chunks(stream.text)[-1]["error"]["type"] == "server_error"
    assert (whole.status_code, refused.status_code, health.status_code) == (503, 503, 503)
    assert until(lambda: idle(llama))


def test_nothing_stays_behind(llama, address):
    """No handle, no task, no lease is left when all is answered."""
    with httpx.Client(base_url=address, timeout=30) as client:
        for number in range(20):
            client.post("/v1/chat/completions", json=ask(f"n {number}", max_tokens=2, stream=number % 2 == 0))
        metrics = client.get("/metrics").text
    assert 'tqn_requests_running{model="tiny"} 0.0' in metrics and 'tqn_requests_queued{model="tiny"} 0.0' in metrics
    assert idle(llama)


# --- clients of others -------------------------------------------------------------------------------------------------------------------


def test_the_openai_package(llama, address, monkeypatch):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    messages = [{"role": "user", "content": "The quick brown fox"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2)
    assert answer.usage.completion_tokens == 4 and len(answer.choices[0].logprobs.content) == 4
    stream = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=4, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    pieces = list(stream)
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == answer.choices[0].message.content
    assert pieces[-1].usage.total_tokens == answer.usage.total_tokens
    assert len(client.embeddings.create(model="tiny", input="fox").data[0].embedding) == llama.n_embd()
    answer = client.completions.create(model="tiny", prompt="The quick", max_tokens=2, temperature=0)
    assert answer.usage.completion_tokens == 2
    with saying(monkeypatch, spoken(llama, CALL)):
        with client.chat.completions.stream(model="tiny", messages=messages, tools=TOOLS) as events_of_chat:
            final = events_of_chat.get_final_completion()
        function = {"type": "function", **TOOLS[0]["function"], "strict": False}
        with client.responses.stream(model="tiny", input="Weather?", tools=[function]) as events_of_response:
            response = events_of_response.get_final_response()
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"city": "Paris"}
    assert json.loads(response.output[0].arguments) == {"city": "Paris"} and response.status == "completed"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "12345 " * 500}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none", messages=messages)


def test_the_anthropic_package(llama, address, monkeypatch):
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=address, api_key="none", max_retries=0)
    messages, greedy = [{"role": "user", "content": "The quick brown fox"}], {"temperature": 0}
    answer = client.messages.create(model="tiny", max_tokens=4, messages=messages, extra_body=greedy)
    assert answer.usage.output_tokens == 4 and answer.content[0].type == "text"
    with client.messages.stream(model="tiny", max_tokens=4, messages=messages, extra_body=greedy) as stream:
        assert "".join(stream.text_stream) == answer.content[0].text
    counted = client.messages.count_tokens(model="tiny", messages=messages)
    assert counted.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    tools = [{"name": "weather", "input_schema": TOOLS[0]["function"]["parameters"]}]
    with (
        saying(monkeypatch, spoken(llama, CALL)),
        client.messages.stream(model="tiny", max_tokens=200, messages=messages, tools=tools) as stream,
    ):
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use" and final.content[0].input == {"city": "Paris"}
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="none", max_tokens=4, messages=messages)


# --- the process -------------------------------------------------------------------------------------------------------------------------


def test_the_command_serves_and_ends(chat_model):
    import os
    import signal
    import socket
    import subprocess
    import sys

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "turboquant_native.server",
        str(chat_model),
        "--port",
        str(port),
        "--ctx",
        "128",
        "--chat-format",
        CHATML,
    ]
    process = subprocess.Popen([*command, "--log-json"], stderr=subprocess.PIPE, env={**os.environ, "TQN_API_KEY": "secret"}, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"X-Api-Key": "secret"}, timeout=10) as client:

            def answers() -> bool:
                try:
                    return client.get("/health").status_code == 200
                except httpx.ConnectError:
                    return False

            assert until(answers, 60)
            assert client.post("/v1/chat/completions", json=ask("a", max_tokens=2)).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line.get("path") == "/v1/chat/completions" and line["status"] == 200 for line in lines)
    assert "Traceback" not in log
