"""The HTTP server's routes: shapes of OpenAI and Anthropic, errors, limits, models."""

import base64
import json
import logging

import numpy as np
import pytest
from starlette.testclient import TestClient

from server_tools import CALL, CHATML, COLOURS, TOOLS, ask, chunks, events, post, saying, spoken, until
from turboquant_native.server import Settings, create_app

# --- OpenAI ------------------------------------------------------------------------------------------------------------------------------


def test_chat_is_the_models_own_answer(client, llama):
    answer = post(client, "/v1/chat/completions", ask(max_tokens=8, unknown_field={"a": 1}, model="tiny"))
    expected = llama.create_chat_completion([{"role": "user", "content": "The quick brown fox"}], max_tokens=8, temperature=0)
    choice = answer["choices"][0]
    assert choice["message"]["content"] == expected["choices"][0]["message"]["content"] and choice["message"]["role"] == "assistant"
    assert (choice["finish_reason"], answer["object"], answer["model"]) == ("length", "chat.completion", "tiny")
    assert answer["usage"]["completion_tokens"] == 8
    again = post(client, "/v1/chat/completions", ask(max_completion_tokens=8))
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= answer["usage"]["prompt_tokens"] - 1
    assert again["timings"]["cached_n"] == again["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_chat_streams_the_same_answer(client):
    whole = post(client, "/v1/chat/completions", ask(max_tokens=8))
    text = post(client, "/v1/chat/completions", ask(max_tokens=8, stream=True))
    pieces = chunks(text)
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == whole["choices"][0]["message"]["content"]
    assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert pieces[-1]["timings"]["predicted_n"] == 8 and "usage" not in pieces[-1]
    assert {piece["id"] for piece in pieces} == {pieces[0]["id"]}


def test_usage_comes_last_when_asked_for(client):
    pieces = chunks(post(client, "/v1/chat/completions", ask(max_tokens=3, stream=True, stream_options={"include_usage": True})))
    assert pieces[-1]["choices"] == [] and pieces[-1]["usage"]["completion_tokens"] == 3 and pieces[-1]["timings"]["predicted_n"] == 3
    assert all(piece["usage"] is None for piece in pieces[:-1])


def test_progress_only_when_asked_for(client):
    prompt = "12345 " * 30
    quiet = chunks(post(client, "/v1/chat/completions", ask(prompt, max_tokens=1, stream=True)))
    assert not any("prompt_progress" in piece for piece in quiet)
    pieces = chunks(post(client, "/v1/chat/completions", ask("x" + prompt, max_tokens=1, stream=True, return_progress=True)))
    progress = [piece["prompt_progress"] for piece in pieces if "prompt_progress" in piece]
    assert all(0 < step["processed"] <= step["total"] for step in progress)
    assert progress[-1]["processed"] == progress[-1]["total"], "the last one says that the prompt is done"


def test_content_parts_developer_and_logprobs(client):
    parts = [{"type": "text", "text": "The quick "}, {"type": "text", "text": "brown fox"}]
    messages = [{"role": "developer", "content": "Be brief"}, {"role": "user", "content": parts}]
    body = {"messages": messages, "max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    answer = post(client, "/v1/chat/completions", body)
    system = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "The quick brown fox"}]
    assert answer["choices"][0]["message"] == post(client, "/v1/chat/completions", {**body, "messages": system})["choices"][0]["message"]
    entries = answer["choices"][0]["logprobs"]["content"]
    assert len(entries) == 4 and all(len(entry["top_logprobs"]) == 3 and entry["logprob"] < 0 for entry in entries)
    streamed = chunks(post(client, "/v1/chat/completions", {**body, "stream": True}))
    pieces = [entry for piece in streamed for entry in (piece["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert pieces == entries


def test_completions_of_several_prompts(client, llama):
    tokens = llama.tokenize(b"The quick")
    answer = post(client, "/v1/completions", {"prompt": [tokens, tokens[:2]], "max_tokens": 4, "temperature": 0})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["choices"][0]["text"] == llama("The quick", max_tokens=4, temperature=0)["choices"][0]["text"]
    streamed = chunks(post(client, "/v1/completions", {"prompt": [tokens, tokens[:2]], "max_tokens": 4, "temperature": 0, "stream": True}))
    for index in (0, 1):
        text = "".join(piece["choices"][0]["text"] for piece in streamed if piece["choices"][0]["index"] == index)
        assert text == answer["choices"][index]["text"]


def test_completions_score_a_prompt(client, llama):
    body = {"prompt": "The quick brown", "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
    choice = post(client, "/v1/completions", body)["choices"][0]
    expected = llama("The quick brown", max_tokens=0, echo=True, logprobs=1)["choices"][0]
    assert choice["text"] == "The quick brown" and choice["logprobs"]["tokens"] == expected["logprobs"]["tokens"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert np.allclose(choice["logprobs"]["token_logprobs"][1:], expected["logprobs"]["token_logprobs"][1:])


def test_embeddings_in_both_encodings(client, llama):
    plain = post(client, "/v1/embeddings", {"input": ["The quick", "fox"]})["data"]
    packed = post(client, "/v1/embeddings", {"input": ["The quick", "fox"], "encoding_format": "base64"})["data"]
    for one, other in zip(plain, packed, strict=True):
        assert np.array_equal(np.float32(one["embedding"]), np.frombuffer(base64.b64decode(other["embedding"]), "<f4"))
        assert np.isclose(np.linalg.norm(one["embedding"]), 1, atol=1e-5) and len(one["embedding"]) == llama.n_embd()
    tokens = llama.vocabulary.encode("The quick", add_bos=True)
    assert np.allclose(post(client, "/v1/embeddings", {"input": tokens})["data"][0]["embedding"], plain[0]["embedding"])


def test_rerank_by_an_embedding_model(client, llama, monkeypatch):
    documents = ["The quick brown fox", {"text": "12345 67890"}, "The quick brown dog"]
    body = {"query": "The quick brown fox", "documents": documents, "return_documents": True}
    assert "no pooling" in post(client, "/v1/rerank", body, 400)["error"]["message"]
    monkeypatch.setitem(llama.session.metadata, "turboquant.embedding_normalize", True)
    vectors = np.array([entry["embedding"] for entry in llama.create_embedding(["The quick brown fox", "12345 67890"])["data"]])
    for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
        results = post(client, path, body)["results"]
        scores = [entry["relevance_score"] for entry in results]
        assert results[0]["index"] == 0 and scores == sorted(scores, reverse=True) and abs(scores[0] - 1) < 1e-5
        other = next(entry for entry in results if entry["index"] == 1)
        assert other["document"] == {"text": "12345 67890"} and abs(other["relevance_score"] - vectors[0] @ vectors[1]) < 1e-5
    (best,) = post(client, "/v1/rerank", {**body, "top_n": 1, "return_documents": False})["results"]
    assert set(best) == {"index", "relevance_score"}
    post(client, "/v1/rerank", {**body, "documents": [""]}, 400)
    post(client, "/v1/rerank", {**body, "documents": ["fox " * 600]}, 400)


def test_models_and_state(client):
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny"] and client.get("/v1/models/tiny").json()["object"] == "model"
    assert client.get("/health").json() == {"status": "ok"}
    props = client.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert (props["cache"], props["why_cache"]) == ("f16", None)
    slots = client.get("/slots").json()
    assert len(slots) == 4 and not any(slot["is_processing"] for slot in slots)
    tokens = post(client, "/tokenize", {"content": "The quick"})["tokens"]
    assert post(client, "/detokenize", {"tokens": tokens})["content"] == "The quick"
    metrics = client.get("/metrics").text
    assert 'tqn_generated_tokens_total{model="tiny"}' in metrics and 'tqn_slots{model="tiny"} 4.0' in metrics
    assert "tqn_cache_budget_bytes" not in metrics


def test_docs_need_no_other_server(client):
    page = client.get("/docs")
    assert "/v1/messages" in page.text and "http" not in page.text.replace("http-equiv", "") and "<script" not in page.text
    assert client.get("/openapi.json").json()["paths"]["/v1/chat/completions"]


def test_the_page(client, llama):
    page = client.get("/")
    assert (
        page.status_code == 200
        and page.headers["content-type"].startswith("text/html")
        and "default-src 'self'" in page.headers["content-security-policy"]
    )
    assert client.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    assert client.get("/theme.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/page_files.py").status_code == 404 and client.get("/%2e%2e/app.py").status_code == 404
    with TestClient(create_app(llama, Settings(api_keys=["key"], n_slots=4))) as locked:
        assert locked.get("/").status_code == 200 and locked.get("/none").status_code == 401


# --- Anthropic ---------------------------------------------------------------------------------------------------------------------------

MESSAGES = {"model": "tiny", "max_tokens": 6, "temperature": 0, "messages": [{"role": "user", "content": "The quick brown fox"}]}


def test_messages(client):
    answer = post(client, "/v1/messages", MESSAGES)
    chat = post(client, "/v1/chat/completions", ask(max_tokens=6))
    assert answer["content"] == [{"type": "text", "text": chat["choices"][0]["message"]["content"], "citations": None}]
    assert (answer["type"], answer["role"], answer["stop_reason"]) == ("message", "assistant", "max_tokens")
    counted = post(client, "/v1/messages/count_tokens", {name: MESSAGES[name] for name in ("model", "messages")})
    usage = answer["usage"]
    assert counted["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"] == chat["usage"]["prompt_tokens"]


def test_messages_stream_in_anthropics_order(client, llama, monkeypatch):
    with saying(monkeypatch, spoken(llama, "So. " + CALL)):
        tools = [
            {"name": "weather", "input_schema": TOOLS[0]["function"]["parameters"]},
            {"type": "web_search_20250305", "name": "web_search"},
        ]
        text = post(client, "/v1/messages", {**MESSAGES, "max_tokens": 200, "stream": True, "tools": tools})
    found = events(text)
    assert all(name == data["type"] for name, data in found)
    names = [name for name, _ in found if name not in ("ping", "content_block_delta")]
    block = ["content_block_start", "content_block_stop"]
    assert names == ["message_start", *block, *block, "message_delta", "message_stop"]
    starts = [data["content_block"] for name, data in found if name == "content_block_start"]
    assert [start["type"] for start in starts] == ["text", "tool_use"] and starts[1]["input"] == {}
    deltas = [data["delta"] for name, data in found if name == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == "So."
    assert json.loads("".join(delta.get("partial_json", "") for delta in deltas)) == {"city": "Paris"}
    assert found[-2][1]["delta"]["stop_reason"] == "tool_use" and found[-2][1]["usage"]["output_tokens"] > 0


def test_thinking_blocks(thinking_client, thinker, monkeypatch):
    with saying(monkeypatch, spoken(thinker, "Hm.</think>Yes.")):
        answer = post(thinking_client, "/v1/messages", {**MESSAGES, "max_tokens": 100})
        found = events(post(thinking_client, "/v1/messages", {**MESSAGES, "max_tokens": 100, "stream": True}))
    assert [block["type"] for block in answer["content"]] == ["thinking", "text"] and answer["stop_reason"] == "end_turn"
    kinds = [data["delta"]["type"] for name, data in found if name == "content_block_delta"]
    assert kinds.index("thinking_delta") < kinds.index("signature_delta") < kinds.index("text_delta")


def test_a_conversation_with_tools_goes_back(client):
    history = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Paris"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "Sunny"}]}]},
    ]
    post(client, "/v1/messages", {**MESSAGES, "messages": history})


def test_stop_sequences(client, llama, monkeypatch):
    with saying(monkeypatch, spoken(llama, "The quick brown fox")):
        answer = post(client, "/v1/messages", {**MESSAGES, "max_tokens": 50, "stop_sequences": [" brown"]})
    assert (answer["stop_reason"], answer["stop_sequence"], answer["content"][0]["text"]) == ("stop_sequence", " brown", "The quick")


def test_a_changing_first_line_keeps_the_prefix(client):
    def read(nonce):
        header = f"x-anthropic-billing-header: cc_version=2.1.37; cc_entrypoint=cli; cch={nonce};"
        system = [{"type": "text", "text": header}, {"type": "text", "text": "You are a careful assistant. " * 4}]
        return post(client, "/v1/messages", {**MESSAGES, "system": system})["usage"]

    first, second = read("fa690"), read("0b1c2")
    assert second["cache_read_input_tokens"] >= first["input_tokens"] + first["cache_read_input_tokens"] - 1


# --- responses ---------------------------------------------------------------------------------------------------------------------------


def test_responses(client):
    answer = post(client, "/v1/responses", {"model": "tiny", "input": "The quick brown fox", "temperature": 0, "max_output_tokens": 6})
    chat = post(client, "/v1/chat/completions", ask(max_tokens=6))
    (item,) = answer["output"]
    assert item["content"][0]["text"] == chat["choices"][0]["message"]["content"] and item["status"] == "incomplete"
    assert answer["status"] == "incomplete" and answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["usage"]["output_tokens"] == 6


def test_responses_stream_and_skip_foreign_tools(client, llama, monkeypatch):
    function = {"type": "function", **TOOLS[0]["function"], "strict": True}
    tools = [{"type": "web_search"}, {"type": "local_shell"}, {"type": "custom", "name": "apply_patch"}, function]
    with saying(monkeypatch, spoken(llama, "So. " + CALL)):
        body = {"model": "tiny", "input": [{"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}], "tools": tools}
        found = events(post(client, "/v1/responses", {**body, "stream": True}))
    names = [name for name, _ in found]
    assert names[:2] == ["response.created", "response.in_progress"] and names[-1] == "response.completed"
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    output = found[-1][1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call"] and output[0]["content"][0]["text"] == "So."
    assert output[1]["arguments"] == '{"city": "Paris"}' and names.count("response.function_call_arguments.delta") > 3
    assert names.index("response.output_text.done") < names.index("response.output_item.done")


def test_responses_take_a_conversation_back(client):
    items = [
        {"type": "message", "role": "developer", "content": "Be brief"},
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call_output", "call_id": "a", "output": "Sunny"},
        {"type": "web_search_call", "id": "w"},
    ]
    answer = post(client, "/v1/responses", {"model": "tiny", "input": items, "max_output_tokens": 4, "temperature": 0})
    assert answer["usage"]["output_tokens"] == 4


# --- errors ------------------------------------------------------------------------------------------------------------------------------

LONG = "12345 " * 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", ask(LONG)),
        ("/v1/completions", {"prompt": LONG}),
        ("/v1/embeddings", {"input": LONG}),
        ("/v1/responses", {"model": "tiny", "input": LONG}),
    ],
)
def test_a_prompt_is_never_cut(client, path, body):
    error = post(client, path, body, status=400)["error"]
    assert error["code"] == "context_length_exceeded" and error["n_ctx"] == 512 and error["n_prompt_tokens"] > 1000
    assert "512" in error["message"] and str(error["n_prompt_tokens"]) in error["message"]


def test_anthropics_errors_have_its_shape(client):
    too_long = {**MESSAGES, "messages": [{"role": "user", "content": LONG}]}
    for body, status, kind in (
        (too_long, 400, "invalid_request_error"),
        ({**MESSAGES, "model": "none"}, 404, "not_found_error"),
        ({"model": "tiny", "messages": []}, 400, "invalid_request_error"),
        ({"model": "tiny", "messages": MESSAGES["messages"]}, 400, "invalid_request_error"),
    ):
        answer = post(client, "/v1/messages", body, status=status)
        assert answer["type"] == "error" and answer["error"]["type"] == kind and answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/chat/completions", ask(temperature=-1), "temperature"),
        ("/v1/chat/completions", ask(top_p=2), "top_p"),
        ("/v1/chat/completions", ask(n=2), "n"),
        ("/v1/chat/completions", ask(max_tokens="many"), "max_tokens"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 3}, "dimensions"),
        ("/v1/responses", {"input": "a"}, "model"),
    ],
)
def test_wrong_fields_are_named(client, path, body, param):
    assert post(client, path, body, status=400)["error"]["param"].split(".")[0] == param


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/v1/chat/completions", ask(top_logprobs=2), "logprobs: true"),
        ("/v1/chat/completions", ask(functions=[{"name": "f"}]), "functions"),
        ("/v1/chat/completions", ask(guided_json={"type": "object"}), "guided_json"),
        ("/v1/chat/completions", ask(mirostat=2), "mirostat"),
        ("/v1/chat/completions", ask(modalities=["text", "audio"]), "modalities"),
        ("/v1/completions", {"prompt": "a", "min_tokens": 5}, "min_tokens"),
        ("/v1/completions", {"prompt": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ("/v1/responses", {"model": "m", "input": "a", "top_logprobs": 2}, "log-probabilities"),
        ("/v1/responses", {"model": "m", "input": "a", "conversation": "c"}, "conversation"),
        ("/v1/responses", {"model": "m", "input": "a", "tool_choice": {"type": "web_search"}}, "web_search"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "mcp_servers": [{}]}, "mcp_servers"),
    ],
)
def test_what_is_not_followed_is_refused(client, path, body, word):
    assert word in post(client, path, body, status=400)["error"]["message"]


def test_what_asks_for_nothing_is_let_through(client):
    post(client, "/v1/chat/completions", ask(max_tokens=1, mirostat=0, functions=None, modalities=["text"], min_tokens=0, store=True))


def test_only_allowed_tools_are_called(client):
    tools = [{"type": "function", "name": name, "parameters": COLOURS} for name in ("paint", "wash")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "wash"}]}
    body = {"model": "tiny", "input": "a", "tools": tools, "tool_choice": choice, "temperature": 0, "max_output_tokens": 100}
    assert [item["name"] for item in post(client, "/v1/responses", body)["output"]] == ["wash"]
    choice["tools"] = [{"type": "function", "name": "none"}]
    post(client, "/v1/responses", body, status=400)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{broken"}}]}],
        [{"role": "assistant", "tool_calls": "weather"}],
        [{"role": "assistant", "tool_calls": [{}]}],
        [{"role": "assistant", "tool_calls": [None]}],
        [{"role": "assistant", "content": None}],
        [{"role": "tool", "content": "Sunny"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
        [{"role": "user", "content": [{}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": 5}],
        [{"content": "a"}],
        ["hello"],
    ],
)
def test_malformed_messages_are_the_clients_fault(client, messages):
    response = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2})
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["message"]


def test_unknown_models_and_routes(client):
    for response in (client.post("/v1/chat/completions", json=ask(model="none")), client.get("/v1/models/none"), client.get("/v1/none")):
        assert response.status_code == 404 and response.json()["error"]["type"] == "invalid_request_error"
    assert client.get("/v1/chat/completions").status_code == 405 and client.post("/v1/none", json={}).status_code == 404
    assert client.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}).status_code == 400


def test_an_error_of_ours_tells_nothing(client, monkeypatch, caplog):
    def broken(*args):
        raise KeyError("secret path")

    from turboquant_native.server import requests

    monkeypatch.setattr(requests, "chat", broken)
    with caplog.at_level(logging.ERROR, logger="turboquant_native.server"):
        logging.getLogger("turboquant_native").propagate = True
        error = post(client, "/v1/chat/completions", ask(), status=500)["error"]
    assert error["code"] == "internal_error" and "secret" not in error["message"]


# --- access and limits -------------------------------------------------------------------------------------------------------------------


def test_keys(llama):
    with TestClient(create_app(llama, Settings(api_keys=["first", "second"], n_slots=4))) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "first"}, {"X-Api-Key": "firs"}):
            response = client.get("/v1/models", headers=headers)
            assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
        for headers in ({"Authorization": "Bearer first"}, {"authorization": "bearer second"}, {"X-Api-Key": "second"}):
            assert client.get("/v1/models", headers=headers).status_code == 200
        assert client.post("/v1/messages", json=MESSAGES).json()["error"]["type"] == "authentication_error"
        assert client.get("/metrics").status_code == 401


def test_other_origins_are_refused_unless_named(llama, client):
    origin = {"Origin": "https://evil.example"}
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=origin).headers
    preflight = {**origin, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/v1/chat/completions", headers=preflight).headers
    with TestClient(create_app(llama, Settings(cors_origins=["https://good.example"], n_slots=4))) as named:
        good = named.get("/v1/models", headers={"Origin": "https://good.example"}).headers
        assert good["access-control-allow-origin"] == "https://good.example" and "access-control-allow-credentials" not in good
        assert "access-control-allow-origin" not in named.get("/v1/models", headers=origin).headers


def test_a_page_of_another_origin_cannot_post_without_asking(client):
    response = client.post("/v1/chat/completions", content=json.dumps(ask()), headers={"content-type": "text/plain"})
    assert response.status_code == 400


def test_bodies_have_a_limit(llama):
    with TestClient(create_app(llama, Settings(max_body=2000, n_slots=4))) as client:
        assert post(client, "/v1/chat/completions", ask("a" * 2000), status=413)["error"]["code"] == "request_too_large"
        pieces = (b"a" * 100 for _ in range(50))
        response = client.post("/v1/chat/completions", content=pieces, headers={"content-type": "application/json"})
        assert response.status_code == 413
        assert post(client, "/v1/messages", {**MESSAGES, "system": "a" * 2000}, status=413)["error"]["type"] == "request_too_large"
        post(client, "/v1/chat/completions", ask(max_tokens=1))


def test_answers_have_a_limit(llama, monkeypatch):
    with TestClient(create_app(llama, Settings(max_tokens=3, n_slots=4))) as client:
        for body in (ask(), ask(max_tokens=50), ask(max_tokens=-1)):
            assert post(client, "/v1/chat/completions", body)["usage"]["completion_tokens"] == 3
        assert post(client, "/v1/chat/completions", ask(max_tokens=2))["usage"]["completion_tokens"] == 2


def test_time_has_a_limit(llama, monkeypatch):
    with (
        TestClient(create_app(llama, Settings(max_seconds=0.3, n_slots=4))) as client,
        saying(monkeypatch, spoken(llama, "a" * 400, pause=0.02)),
    ):
        assert post(client, "/v1/chat/completions", ask(), status=504)["error"]["code"] == "timeout"
        last = chunks(post(client, "/v1/chat/completions", ask(stream=True)))[-1]
        assert last["error"]["code"] == "timeout"
    assert until(lambda: llama.engine.scheduler.active == 0)


def test_logs_say_nothing_of_what_was_said(client, llama, caplog):
    logging.getLogger("turboquant_native").propagate = True
    with caplog.at_level(logging.INFO, logger="turboquant_native"):
        post(client, "/v1/chat/completions", ask("a secret word", max_tokens=2))
    (record,) = [record for record in caplog.records if record.getMessage() == "request"]
    assert record.fields["path"] == "/v1/chat/completions" and record.fields["status"] == 200
    assert not any("secret" in str(vars(record)) for record in caplog.records)


# --- several models ----------------------------------------------------------------------------------------------------------------------


def test_a_folder_of_models(chat_model, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.gguf").symlink_to(chat_model)
    llama = {"n_threads": 1, "chat_format": CHATML, "type_k": "auto"}
    settings = Settings(models=[tmp_path], aliases=["gpt"], n_slots=1, idle_seconds=0.2, llama=llama)
    with TestClient(create_app(settings)) as client:
        assert until(lambda: client.get("/health").status_code == 200)
        props = client.get("/props").json()
        assert props["n_ctx"] == 1024, "no more than the model's"
        assert (props["cache"], props["why_cache"]) == ("f16", "quantized caches were not measured with such models")
        states = lambda: {model["id"]: model["meta"]["state"] for model in client.get("/v1/models").json()["data"]}  # noqa: E731
        assert post(client, "/v1/chat/completions", ask("a", model="gpt", max_tokens=1))["model"] == "one"
        assert post(client, "/v1/chat/completions", ask("a", model="two", max_tokens=1))["model"] == "two"
        assert states() != {"one": "loaded", "two": "loaded"}, "one model at a time"
        assert post(client, "/models/load", {"model": "one"})["meta"]["state"] == "loaded"
        assert post(client, "/models/unload", {"model": "one"})["meta"]["state"] == "unloaded"
        post(client, "/v1/chat/completions", ask("a", model="two", max_tokens=1))
        assert until(lambda: set(states().values()) == {"unloaded"}), "idle models are unloaded"


def test_loading_and_failing_show_in_health(chat_model, tmp_path):
    import threading

    gate = threading.Event()
    settings = Settings(models=[chat_model], n_ctx=64, llama={"n_threads": 1})
    app = create_app(settings)
    models = app.state.service.models
    plain = models._open_model
    models._open_model = lambda path: (gate.wait(20), plain(path))[1]
    with TestClient(app) as client:
        response = client.get("/health")
        assert response.status_code == 503 and response.headers["retry-after"]
        assert post(client, "/v1/chat/completions", ask("a", max_tokens=1), status=503)["error"]["type"] == "server_error"
        gate.set()
        assert until(lambda: client.get("/health").status_code == 200)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with TestClient(create_app(Settings(models=[tmp_path / "broken.gguf"]))) as client:
        assert until(lambda: client.get("/v1/models").json()["data"][0]["meta"]["state"] == "failed")
        assert client.get("/health").status_code == 503
        assert post(client, "/v1/chat/completions", ask("a"), status=500)["error"]["code"] == "model_not_loaded"


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match="n_slots must be at least 1"):
        Settings(n_slots=0)
    with pytest.raises(ValueError, match="has no"):
        create_app(Settings(models=[tmp_path]))
    with pytest.raises(FileNotFoundError):
        create_app(Settings(models=[tmp_path / "none.gguf"]))
