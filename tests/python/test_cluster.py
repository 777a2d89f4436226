"""Several replicas behind one address: which of them a request goes to, and the whole on a cluster of two nodes (needs `ray`)."""

import asyncio
import json
import os
import signal
import socket

import httpx
import pytest

from server_tools import chunks, until
from turboquant_native.commands import cli
from turboquant_native.server import Settings, command
from turboquant_native.server.cluster.calls import Call, Head, answer
from turboquant_native.server.cluster.prefixes import Seen, prefix_of


def chat(text: str, **more) -> bytes:
    return json.dumps({"messages": [{"role": "system", "content": text}, {"role": "user", "content": "Hello"}], **more}).encode()


def test_a_prefix_is_what_two_requests_share():
    base = prefix_of(chat("a" * 1000))
    other = prefix_of(chat("a" * 700 + "b" * 300, temperature=0.5))
    assert len(base) > 3 and base[:2] == other[:2] and base[3:] != other[3:]
    assert prefix_of(chat("b" * 1000))[0] != base[0] and prefix_of(chat("short")) == ()
    for body in (b"", b"{", b"[1]", b"\xff", b'"a"'):
        assert prefix_of(body) == ()


def test_the_replica_that_saw_most_is_taken():
    seen, prefix = Seen(), prefix_of(chat("a" * 3000))
    assert seen.best(prefix, ["one", "two"]) is None
    seen.note(prefix, "one")
    assert seen.best(prefix, ["one", "two"]) == "one" and seen.best(prefix, ["two"]) is None
    longer = (*prefix, *prefix_of(chat("c" * 1000)))
    assert seen.best(longer, ["one", "two"]) == "one"
    assert seen.best((prefix[0], *prefix_of(chat("d" * 3000))), ["one"]) is None  # less than half of it
    assert seen.best((), ["one"]) is None


def test_who_gives_an_answer_up_is_seen_to_leave():
    ended = []

    async def app(scope, receive, send):
        assert (await receive())["body"] == b"body" and scope["path"] == "/p"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        try:
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            ended.append((await receive())["type"])
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def go():
        pieces = answer(app, Call("POST", "/p", b"", [], b"body"))
        found = [await anext(pieces), await anext(pieces)]
        await pieces.aclose()
        await asyncio.sleep(0.01)
        return found

    assert asyncio.run(go()) == [Head(200, [(b"a", b"b")]), b"first"]
    assert ended in (["http.disconnect"], ["cancelled"])


@pytest.mark.parametrize("replicas", ["0", "a", "2:1", "-1", ":2", "1:x"])
def test_replicas_are_checked(replicas):
    assert (command.replicas_of("2"), command.replicas_of("1:4")) == ((2, 2), (1, 4))
    with pytest.raises(ValueError, match="--replicas"):
        command.replicas_of(replicas)


def test_options_of_ray_need_ray(capsys, chat_model):
    assert cli.main(["serve", str(chat_model), "--replicas", "2"]) == 1
    assert "are for --ray" in capsys.readouterr().err


# --- with Ray ----------------------------------------------------------------------------------------------------------------------------


def test_front_and_replica_in_one_process(chat_model, monkeypatch):
    """Ray's way to try an application without a cluster."""
    serve = pytest.importorskip("ray.serve")
    from starlette.requests import Request

    from turboquant_native.server.cluster import application

    class Through(application.Front):
        async def through(self, body):
            async def receive():
                return {"type": "http.request", "body": body, "more_body": False}

            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": headers}
            response = await self(Request({**scope, "scheme": "http", "server": ("test", 80)}, receive))
            if not hasattr(response, "body_iterator"):
                return response.status_code, response.body.decode()
            return response.status_code, b"".join([piece async for piece in response.body_iterator]).decode()

    monkeypatch.setattr(application, "Front", Through)
    settings = Settings(models=[chat_model], aliases=["*"], n_ctx=512, n_slots=2, llama={"n_threads": 1}, max_body=4096)
    handle = serve.run(application.application(settings, application.Scale(1, 2)), name="local", _local_testing_mode=True)
    for body, status, word in [
        (chat("a", max_tokens=4, stream=True), 200, "[DONE]"),
        (chat("a", max_tokens=4), 200, "completion_tokens"),
        (b"{}", 400, "invalid_value"),
        (b"x" * 5000, 413, "request_too_large"),
    ]:
        found, text = handle.through.remote(body).result()
        assert found == status and word in text


@pytest.fixture(scope="module")
def cluster(chat_model):
    """The address of an application with two replicas on two nodes. A body with "slow" has its stream stand still after its third piece."""
    ray = pytest.importorskip("ray")
    from ray import serve
    from ray.cluster_utils import Cluster

    from turboquant_native.server.cluster.application import Replica, Scale, application

    class Slow(Replica):
        async def call(self, call):
            count, node = 0, ray.get_runtime_context().get_node_id()
            async for piece in super().call(call):
                if isinstance(piece, Head):
                    piece = Head(piece.status, [*piece.headers, (b"x-pid", str(os.getpid()).encode()), (b"x-node", node.encode())])
                yield piece
                count += 1
                if count == 3 and b'"slow"' in call.body:
                    await asyncio.sleep(3600)

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        settings = Settings(models=[chat_model], aliases=["*"], n_ctx=512, n_slots=2, llama={"n_threads": 1})
        serve.run(application(settings, Scale(2, 2), Slow), name="test", route_prefix="/")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
        nodes.shutdown()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ask(client: httpx.Client, text: str, **more) -> httpx.Response:
    response = client.post("/v1/chat/completions", content=chat(text, max_tokens=8, temperature=0, **more))
    assert response.status_code == 200, response.text
    return response


def test_two_nodes_and_a_killed_replica(cluster):
    with httpx.Client(base_url=cluster, timeout=60, headers={"Content-Type": "application/json"}) as client:
        assert client.get("/health").status_code == 200
        assert client.post("/v1/chat/completions", json={"messages": []}).json()["error"]["code"] == "invalid_value"
        known: dict[str, str] = {}  # process of a replica: the text that it saw last
        for number in range(40):  # the less busy of two idle replicas is either
            text = f"{number} " * 100
            first, again = ask(client, text), ask(client, text)
            assert again.headers["x-pid"] == first.headers["x-pid"], "the replica that has the text answers again"
            assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
            assert again.json()["choices"][0]["message"] == first.json()["choices"][0]["message"]
            known[first.headers["x-pid"]] = text
            if len(known) == 2:
                break
        assert len(known) == 2 and len({ask(client, text).headers["x-node"] for text in known.values()}) == 2, "both nodes answer"
        assert len(chunks(ask(client, text, stream=True).text)) > 1
        kill_one_of_two(client, known)


def kill_one_of_two(client: httpx.Client, known: dict[str, str]) -> None:
    """The stream of a replica that dies ends with an error; the other replica answers on, and soon there are two again."""
    victim, other = known
    body = chat(known[victim], max_tokens=8, stream=True, user="slow")
    with client.stream("POST", "/v1/chat/completions", content=body) as stream:
        assert stream.headers["x-pid"] == victim
        lines = stream.iter_lines()
        next(lines)
        os.kill(int(victim), signal.SIGKILL)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "unavailable"
    assert ask(client, known[other]).headers["x-pid"] == other
    pids = {other}

    def replaced() -> bool:
        response = client.post("/v1/chat/completions", content=chat(os.urandom(150).hex(), max_tokens=1))
        pids.add(response.headers.get("x-pid", other))
        return len(pids - {victim}) == 2

    assert until(replaced, 60)
