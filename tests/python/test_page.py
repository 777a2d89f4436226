"""The web page in a real browser, against a scripted server: what a reader does, and what hostile text must not do."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from page_server import BROKEN, PageServer, answer, delta, finish, progress, words
from turboquant_native.server import page_files

pytest.importorskip("playwright.sync_api", reason="needs playwright (tests/requirements.txt)")
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM} (Debian's package chromium)")

SLOW = [part for word in words("one two three four five six seven eight") for part in (word, 0.15)]
EXPECTED = re.compile(r"Failed to load resource|net::ERR_")  # what the browser says of answers that are errors


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[PageServer]:
    server = PageServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1100, "height": 760}, color_scheme="light", reduced_motion="reduce")
    context.set_default_timeout(10_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, server: PageServer) -> Iterator[Page]:
    """The page, open and connected. A script error or a breach of its content security policy fails the test."""
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: message.type == "error" and not EXPECTED.search(message.text) and faults.append(message.text))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.goto(server.url)
    expect(page.locator("header")).to_contain_text("tiny")
    yield page
    assert not faults


def send(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def ask(page: Page, text: str) -> Locator:
    """Sends `text` and waits for the whole answer."""
    send(page, text)
    expect(page.locator(".message").last).to_have_attribute("data-status", "done")
    return page.locator(".message.assistant").last


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth")


def settings(page: Page) -> Locator:
    page.keyboard.press("Control+,")
    return page.locator("dialog[open]")


def close_dialog(page: Page) -> None:
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


# ---- the files


def test_files_are_those_of_the_folder():
    index = page_files.load("")
    assert index is not None and index == page_files.load("/") == page_files.load("/index.html")
    assert index.content_type.startswith("text/html") and index.headers["Content-Type"] == index.content_type
    outside = [
        "../page_files.py",
        "/../page_files.py",
        "..",
        "//etc/passwd",
        "vendor",
        "app/../index.html",
        "%2e%2e/page_files.py",
        "app\\main.js",
    ]
    for path in outside:
        assert page_files.load(path) is None


def test_policy_allows_nothing_inline_and_nothing_foreign():
    index = page_files.load("")
    assert index is not None
    policy = index.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy and "http" not in policy and "data:" not in policy
    html = index.body.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=|https?:", html)


def test_every_import_and_link_is_served():
    """Static: a file that is missing from a wheel would otherwise show only in a browser."""
    links = re.findall(r'(?:src|href)="([^"]+)"', page_files.load("").body.decode())
    assert len(links) >= 6 and all(page_files.load(link) for link in links)
    modules = sorted((page_files.FOLDER / "app").glob("*.js"))
    assert len(modules) > 10
    for module in modules:
        for name in re.findall(r'^(?:import|export)\b[^;]*?"(\.[^"]+)";', module.read_text(), re.MULTILINE):
            target = (module.parent / name).resolve().relative_to(page_files.FOLDER)
            assert page_files.load(target.as_posix()), f"{module.name} imports {name}"


def test_vendored_files_are_those_that_their_page_lists():
    vendor = page_files.FOLDER / "vendor"
    listed = dict(re.findall(r"^([0-9a-f]{64})  (\S+)$", (vendor / "VENDORED.md").read_text(), re.MULTILINE))
    there = {hashlib.sha256(path.read_bytes()).hexdigest(): path.relative_to(vendor).as_posix() for path in vendor.rglob("*.js")}
    assert listed == there and len(there) > 15
    assert {path.parent.name for path in vendor.rglob("LICENSE*.txt")} == {"htm", "marked", "dompurify", "highlight"}


# ---- a chat


def test_send_shows_the_answer_and_its_figures(page: Page, server: PageServer):
    server.script = [[progress(8, 21), 0.4, *answer("Hello **there**.")]]
    send(page, "Say hello")
    expect(page.locator(".prompt-progress")).to_have_attribute("value", "8")
    expect(page.locator(".figures.live")).to_contain_text("8 of 21 tokens")
    reply = page.locator(".message.assistant")
    expect(reply.locator("strong")).to_have_text("there")
    expect(reply.locator(".actions .figures")).to_have_text(re.compile(r"12 tokens · 23\.4 tok/s · \d+\.\d s"))
    expect(page.locator(".context")).to_contain_text("33 / 4,096")
    [request] = server.requests
    assert request["messages"] == [{"role": "user", "content": "Say hello"}]
    assert request["stream"] is True and request["stream_options"] == {"include_usage": True}
    assert not {"temperature", "top_p", "max_tokens", "seed", "tools", "model", "chat_template_kwargs"} & set(request), (
        "unset is the server's default"
    )


def test_stop_closes_the_stream_and_keeps_the_text(page: Page, server: PageServer):
    server.script = [SLOW * 20, answer("Again.")]
    send(page, "Count")
    expect(page.locator(".message.assistant")).to_contain_text("two three")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".message.assistant")).to_have_attribute("data-status", "stopped")
    expect(page.locator(".message.assistant .markdown")).to_contain_text("one two three")
    assert server.closed.wait(5), "the server was not told"
    ask(page, "Go on")
    assert [m["role"] for m in server.requests[1]["messages"]] == ["user", "assistant", "user"]


def test_regenerate_keeps_both_answers(page: Page, server: PageServer):
    server.script = [answer("First."), answer("Second.")]
    ask(page, "Say something").get_by_role("button", name="Answer again").click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("Second.")
    assert server.requests[0]["messages"] == server.requests[1]["messages"]
    expect(page.locator(".variants")).to_contain_text("2/2")
    page.get_by_role("button", name="Version before").click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("First.")


def test_edit_of_a_question_starts_a_branch(page: Page, server: PageServer):
    server.script = [answer("Paris."), answer("Rome."), answer("Unused.")]
    ask(page, "Capital of France?")
    question = page.locator(".message.user")
    question.hover()
    question.get_by_role("button", name="Edit").click()
    page.locator(".editor textarea").fill("Capital of Italy?")
    page.locator(".editor").get_by_role("button", name="Send").click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("Rome.")
    assert server.requests[1]["messages"] == [{"role": "user", "content": "Capital of Italy?"}]
    page.get_by_role("button", name="Version before").click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("Paris.")
    expect(page.locator(".bubble")).to_have_text("Capital of France?")


def test_reload_keeps_chats(page: Page, server: PageServer):
    server.script = [answer("Kept."), SLOW * 20]
    ask(page, "First question")
    page.reload()
    expect(page.locator(".message.assistant .markdown")).to_have_text("Kept.")
    page.get_by_role("button", name="New chat").first.click()
    send(page, "Second question")
    expect(page.locator(".message.assistant")).to_contain_text("one two")
    page.reload()
    expect(page.locator(".bubble")).to_have_text("Second question")
    expect(page.locator(".message.assistant")).to_have_attribute("data-status", "stopped")
    expect(page.locator(".chat-link")).to_have_text(["Second question", "First question"])
    page.locator(".chat-link").nth(1).click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("Kept.")


def test_chats_are_renamed_deleted_and_brought_back(page: Page):
    ask(page, "A question")
    page.locator(".chat-link").dblclick()
    page.locator(".rename").fill("A name")
    page.locator(".rename").press("Enter")
    expect(page.locator(".chat-link")).to_have_text("A name")
    page.locator(".chat-list li").hover()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator(".chat-link")).to_have_count(0)
    expect(page.locator(".welcome")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".chat-link")).to_have_text("A name")
    expect(page.locator(".bubble")).to_have_text("A question")


# ---- text of the model

HOSTILE = """
<script>globalThis.broken = 1</script>
<img src=x onerror="globalThis.broken = 2">

Inline <b onclick="globalThis.broken = 3">bold</b> and <iframe src="javascript:parent.broken=4"></iframe>.

[one](javascript:globalThis.broken=5) [two](data:text/html,<script>parent.broken=6</script>) [three](https://example.org/"onmouseover="broken=7)
[four][ref] ![picture](https://example.org/p.png) ![bad](javascript:globalThis.broken=8) <javascript:globalThis.broken=9>

[ref]: JaVaScRiPt:globalThis.broken=10

```"><img src=x onerror=globalThis.broken=11>
</code></pre><img src=x onerror=globalThis.broken=12>
```

| <img src=x onerror=globalThis.broken=13> | b |
|---|---|
| <svg onload=globalThis.broken=14> | <style>*{display:none}</style> |

<form action="https://example.org"><input name=a><button>go</button></form>
"""


def test_hostile_markdown_stays_text(page: Page, server: PageServer, context: BrowserContext):
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    server.script = [answer(HOSTILE, reasoning=HOSTILE)]
    reply = ask(page, "<img src=x onerror=globalThis.broken=15> <b>bold</b>")
    page.locator(".reasoning summary").click()
    expect(reply.locator(".reasoning .markdown")).to_contain_text("<script>")
    assert page.evaluate("globalThis.broken") is None
    made = page.evaluate(
        "[...document.querySelectorAll('.messages *')].map((e) => [e.localName, e.getAttributeNames(), e.getAttribute('href')])"
    )
    names = {name for name, _, _ in made}
    assert not names & {"script", "img", "iframe", "style", "form", "object", "b"}, names
    assert not [a for _, attributes, _ in made for a in attributes if a.startswith("on") or a == "style"]
    links = [href for name, _, href in made if name == "a"]
    assert links and all(href.startswith("https://example.org/") for href in links), links
    expect(page.locator(".bubble")).to_have_text("<img src=x onerror=globalThis.broken=15> <b>bold</b>")
    expect(reply).to_contain_text('<b onclick="globalThis.broken = 3">bold</b>')
    assert all(url.startswith((server.url, f"blob:{server.url}")) for url in asked)


def test_code_is_coloured_and_copied(page: Page, server: PageServer, context: BrowserContext):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    server.script = [answer('Look:\n\n```python\ndef f(x):\n    return "<b>&amp;"\n```\n\n| n |\n|--:|\n| 1 |')]
    reply = ask(page, "Code")
    expect(reply.locator(".hljs-keyword").first).to_have_text("def")
    expect(reply.locator("td")).to_have_attribute("align", "right")
    reply.locator(".code-copy").click()
    expect(reply.locator(".code-copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").strip() == 'def f(x):\n    return "<b>&amp;"'


MARKDOWN = (
    "Title\n===\n\nText **bold\nnext** `code`\n\n- a\n\n- b\n  - c\n\n      deep\n\n1. one\n2. two\n\n\n"
    "> quote\ngoes on\n\npara\n***bold*** text\n\n```c\nint a;\n\nint b;\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n<div>\nraw\n</div>\n\nend\r\nlast"
)

GROW = """async ([text, step]) => {
  const { Blocks } = await import("./app/markdown.js");
  const growing = new Blocks();
  let parts;
  for (let n = step; n < text.length + step; n += step) parts = growing.update(text.slice(0, n), true);
  return [parts.join(""), new Blocks().update(text, false).join("")];
}"""


@pytest.mark.parametrize("step", [1, 7])
def test_markdown_that_grew_equals_markdown_at_once(page: Page, step: int):
    grown, whole = page.evaluate(GROW, [MARKDOWN, step])
    assert grown == whole and "<h1>Title</h1>" in whole and "<em><strong>bold</strong></em> text" in whole


def test_settled_blocks_are_left_alone_while_the_answer_grows(page: Page, server: PageServer):
    server.script = [
        [*words("First block.\n\nSecond block.\n\nThird block.\n\n"), 0.5, *words("Fourth block.\n\nFifth *block*."), finish()]
    ]
    send(page, "Blocks")
    expect(page.locator(".block")).to_have_count(3)
    page.evaluate("globalThis.first = document.querySelector('.block').firstChild")
    expect(page.locator(".message.assistant")).to_have_attribute("data-status", "done")
    expect(page.locator(".block")).to_have_count(5)
    assert page.evaluate("document.querySelector('.block').firstChild === globalThis.first")


def test_reasoning_is_open_while_it_grows_and_folds_away(page: Page, server: PageServer):
    server.script = [[*[delta(reasoning_content=w) for w in ("Let ", "me ", "*think*.")], 0.5, *answer("Forty-two.")]]
    send(page, "Why?")
    expect(page.locator(".reasoning .markdown em")).to_be_visible()
    expect(page.locator(".message.assistant")).to_have_attribute("data-status", "done")
    expect(page.locator(".reasoning .markdown")).to_be_hidden()
    page.locator(".reasoning summary").click()
    expect(page.locator(".reasoning .markdown")).to_be_visible()
    ask(page, "And?")
    assert "think" not in json.dumps(server.requests[1]["messages"]), "reasoning is not sent back"


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}


def test_tool_calls_are_readable_and_take_results(page: Page, server: PageServer):
    pieces = [{"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}}]
    pieces += [{"index": 0, "function": {"arguments": part}} for part in ('{"ci', 'ty": "<i>Os', 'lo"}')]
    server.script = [[*[delta(tool_calls=[piece]) for piece in pieces], finish("tool_calls")], answer("It snows.")]
    dialog = settings(page)
    dialog.locator("summary", has_text="Tools").click()
    dialog.locator("[name=tools]").fill(json.dumps([TOOL]))
    close_dialog(page)
    reply = ask(page, "Weather?")
    expect(reply.locator(".tool pre")).to_have_text('{\n  "city": "<i>Oslo"\n}')
    reply.locator(".tool-answers textarea").fill('{"snow": true}')
    reply.get_by_role("button", name="Send the result").click()
    expect(page.locator(".message.assistant").last).to_contain_text("It snows.")
    first, second = server.requests
    assert first["tools"] == [TOOL]
    assert second["messages"][1]["tool_calls"][0] == {
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "<i>Oslo"}'},
    }
    assert second["messages"][2] == {"role": "tool", "tool_call_id": "c1", "content": '{"snow": true}'}


def test_bytes_cut_anywhere_and_carriage_returns(page: Page, server: PageServer):
    event = f"data: {json.dumps(delta(content='Grüße 🙂'), ensure_ascii=False)}\r\n\r\n".encode()
    pieces: list[Any] = [part for i in range(len(event)) for part in (event[i : i + 1], 0.002)]
    server.script = [[*pieces, finish()]]
    expect(ask(page, "Hi").locator(".markdown")).to_have_text("Grüße 🙂")


# ---- settings


def test_parameters_are_sent_only_when_set(page: Page, server: PageServer):
    dialog = settings(page)
    expect(dialog.locator("[name=temperature]")).to_have_attribute("placeholder", "0.8")
    dialog.locator("[name=temperature]").fill("0.25")
    dialog.locator("[name=seed]").fill("7")
    dialog.locator("[name=top_k]").fill("1.5")
    dialog.locator("[name=system]").fill("Be brief.")
    dialog.locator("[name=thinking]").select_option("off")
    expect(dialog.locator(".wrong")).to_have_text("Top-k is a whole number")
    dialog.locator("[name=seed]").fill("")
    close_dialog(page)
    ask(page, "Hi")
    [request] = server.requests
    assert request["temperature"] == 0.25 and request["chat_template_kwargs"] == {"enable_thinking": False}
    assert not {"seed", "top_k", "top_p"} & set(request)
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}


def test_model_is_chosen_and_described(page: Page, server: PageServer):
    server.models = [*server.models, {"id": "other", "object": "model", "meta": {"n_params": 7_000_000_000}}]
    page.reload()
    page.get_by_label("Model", exact=True).select_option("other")
    page.get_by_role("button", name="About this model").click()
    expect(page.locator("dialog")).to_contain_text("7,000,000,000")
    expect(page.locator("dialog")).to_contain_text("turboquant-native 0.1.0")
    close_dialog(page)
    ask(page, "Hi")
    assert server.requests[0]["model"] == "other"


def test_theme_follows_the_system_until_chosen(page: Page):
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "light")
    page.emulate_media(color_scheme="dark")
    expect(root).to_have_attribute("data-theme", "dark")
    settings(page).get_by_text("Light", exact=True).click()
    expect(root).to_have_attribute("data-theme", "light")
    page.locator("dialog").get_by_text("Dark", exact=True).click()
    page.emulate_media(color_scheme="light")
    page.reload()
    expect(root).to_have_attribute("data-theme", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(28, 29, 30)"


def test_key_is_asked_for_and_used(page: Page, server: PageServer):
    server.key = "secret-1"
    page.reload()
    page.get_by_role("button", name="API key needed").click()
    field = page.locator("[name=key]")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("type", "password")
    field.fill("secret-1")
    field.press("Enter")
    close_dialog(page)
    expect(page.locator("header")).to_contain_text("tiny")
    page.reload()
    expect(ask(page, "Hi").locator(".markdown")).to_have_text("Hello there.")


# ---- what goes wrong

FAILURES = {
    "401": ((401, {}, {"message": "Incorrect API key provided.", "code": "invalid_api_key"}), "asks for an API key", "Enter the key"),
    "429": (
        (429, {"Retry-After": "7"}, {"message": "The queue is full.", "code": "rate_limit_exceeded"}),
        "Try again in 7.0 s",
        "Try again",
    ),
    "context": ((400, {}, {"message": "9000 of 4096 tokens", "code": "context_length_exceeded"}), "no longer fits", "Start a new chat"),
    "503": ((503, {}, {"message": "loading"}), "not ready", "Try again"),
    "500": ((500, {}, {"message": "<b>bug</b>"}), "<b>bug</b>", "Try again"),
}


def test_errors_are_explained(page: Page, server: PageServer):
    for error, shown, remedy in FAILURES.values():
        page.keyboard.press("Control+Shift+KeyO")
        server.error = error
        send(page, "Hi")
        failure = page.get_by_role("alert")
        expect(failure).to_contain_text(shown)
        expect(failure).to_contain_text(error[2]["message"])
        expect(failure.get_by_role("button")).to_have_text(remedy)
    server.error = None
    failure.get_by_role("button", name="Try again").click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("Hello there.")
    expect(page.locator(".variants")).to_have_count(0)


def test_question_after_a_failed_one_keeps_the_turns_alternating(page: Page, server: PageServer):
    server.error = FAILURES["503"][0]
    send(page, "First")
    expect(page.get_by_role("alert")).to_be_visible()
    server.error = None
    ask(page, "Second")
    assert server.requests[0]["messages"] == [{"role": "user", "content": "First\n\nSecond"}]


BREAKS = {
    "without [DONE]": [BROKEN],
    "error event": [{"error": {"message": "out of memory", "code": 500}}],
    "not JSON": [b"data: {oops\n\n"],
}


def test_broken_streams_keep_the_text_and_say_so(page: Page, server: PageServer):
    for name, script in BREAKS.items():
        page.keyboard.press("Control+Shift+KeyO")
        server.script = [[*words(name), *script]]
        send(page, "Hi")
        expect(page.get_by_role("alert")).to_be_visible()
        expect(page.locator(".message.assistant .markdown")).to_have_text(name)


def test_limit_of_tokens_is_said(page: Page, server: PageServer):
    server.script = [[*words("Cut"), finish("length")]]
    expect(ask(page, "Hi").locator(".remark")).to_contain_text("limit of tokens")


# ---- files, export, keys


def test_text_files_are_counted_and_sent(page: Page, server: PageServer):
    files = [
        {"name": "a.py", "mimeType": "text/plain", "buffer": b"x = 1 # ```` fence"},
        {"name": "b.bin", "mimeType": "", "buffer": b"\xff\0"},
    ]
    page.locator("input[type=file]").first.set_input_files(files)
    expect(page.locator(".chip")).to_have_text("a.py6 tokens")
    expect(page.locator(".notice")).to_contain_text("b.bin is not a text file")
    dropped = page.evaluate_handle("() => { const d = new DataTransfer(); d.items.add(new File(['one two three'], 'c.txt')); return d; }")
    page.dispatch_event("main", "drop", {"dataTransfer": dropped})
    expect(page.locator(".chip").last).to_have_text("c.txt3 tokens")
    page.get_by_role("button", name="Remove c.txt").click()
    ask(page, "Explain")
    assert server.requests[0]["messages"][0]["content"] == "a.py\n`````\nx = 1 # ```` fence\n`````\n\nExplain"
    expect(page.locator(".bubble .file summary")).to_contain_text("a.py")


def test_export_and_import(page: Page, server: PageServer, tmp_path: Path):
    ask(page, "Remember this")
    dialog = settings(page)
    with page.expect_download() as download:
        dialog.get_by_role("button", name="Export all").click()
    saved = tmp_path / "chats.json"
    download.value.save_as(saved)
    [chat] = json.loads(saved.read_text())["chats"]
    assert [m["content"] for m in chat["messages"]] == ["Remember this", "Hello there."]
    page.locator("input[name=import]").set_input_files(saved)
    expect(page.locator(".notice")).to_contain_text("here already")
    dialog.get_by_role("button", name="Delete all").click()
    dialog.get_by_role("button", name="Really delete all?").click()
    expect(page.locator(".chat-link")).to_have_count(0)
    page.locator("input[name=import]").set_input_files(saved)
    expect(page.locator(".notice")).to_contain_text("Imported 1 chat")
    close_dialog(page)
    page.locator(".chat-link").click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("Hello there.")


def export_of(*messages: dict[str, Any], version: int = 1) -> str:
    return json.dumps({"format": "turboquant-native-chats", "version": version, "chats": [{"id": "x", "messages": messages}]})


BAD_IMPORTS = {
    "not JSON": ("{", "not a JSON file"),
    "another file": ('{"chats": []}', "no exported chats"),
    "another version": (export_of(version=2), "version 2"),
    "a message without role": (export_of({"id": "m"}), "message 1"),
    "a circle": (export_of({"id": "m", "role": "user", "content": "", "parent": "m"}), "follows one that is not there"),
}


def test_bad_imports_change_nothing(page: Page):
    settings(page)
    for text, shown in BAD_IMPORTS.values():
        page.locator("input[name=import]").set_input_files({"name": "c.json", "mimeType": "application/json", "buffer": text.encode()})
        expect(page.locator(".notice")).to_contain_text(shown)
    expect(page.locator(".chat-link")).to_have_count(0)


def test_keyboard(page: Page, server: PageServer):
    server.script = [SLOW * 20, answer("Edited.")]
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator(".bubble")).to_have_text("one\ntwo")
    expect(page.locator(".message.assistant")).to_contain_text("one two")
    page.keyboard.press("Escape")
    expect(page.locator(".message.assistant")).to_have_attribute("data-status", "stopped")
    page.keyboard.press("ArrowUp")
    page.keyboard.type(" three")
    page.keyboard.press("Enter")
    expect(page.locator(".bubble")).to_have_text("one\ntwo three")
    expect(page.locator(".message.assistant .markdown")).to_have_text("Edited.")
    page.keyboard.press("Control+Shift+KeyO")
    expect(page.locator(".welcome")).to_be_visible()
    page.keyboard.press("Control+Shift+KeyS")
    expect(page.locator(".sidebar")).to_have_count(0)


# ---- sizes


def test_phone_width_never_scrolls_sideways(page: Page, server: PageServer):
    page.set_viewport_size({"width": 360, "height": 700})
    wide = f"{'long' * 60}\n\n```\n{'code ' * 80}\n```\n\n|{'column |' * 20}\n|{'---|' * 20}\n|{'cell |' * 20}\n\n`{'x' * 200}`"
    server.script = [answer(wide, reasoning=f"{'y' * 300}")]
    ask(page, "w" * 300)
    assert fits(page)
    assert page.locator(".code pre").evaluate("(e) => e.scrollWidth > e.clientWidth"), "wide code scrolls by itself"
    page.get_by_role("button", name="Show chats").click()
    expect(page.locator(".sidebar")).to_be_visible()
    assert fits(page)
    page.locator(".chat-link").click()
    expect(page.locator(".sidebar")).to_have_count(0)
    settings(page)
    assert fits(page)
    box = page.locator("dialog").bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 360


def chat_of(count: int) -> str:
    """An export of one chat of `count` messages, answers with code and lists among them."""
    text = "An answer with **bold** text.\n\n- one\n- two\n\n```python\nfor i in range(10):\n    print(i)\n```\n\nAnd a last paragraph."
    messages = [
        {
            "id": f"m{i}",
            "parent": f"m{i - 1}" if i else None,
            "role": "assistant" if i % 2 else "user",
            "content": text if i % 2 else f"Question {i}",
        }
        for i in range(count)
    ]
    chat = {"id": "long", "title": "Long", "created": 1, "updated": 2, "messages": messages, "leaf": f"m{count - 1}"}
    return json.dumps({"format": "turboquant-native-chats", "version": 1, "chats": [chat]})


def test_500_messages_stay_fluid(page: Page, server: PageServer):
    """A new answer changes nothing but its own message, and older ones appear without moving the view."""
    settings(page)
    page.locator("input[name=import]").set_input_files({"name": "c.json", "mimeType": "application/json", "buffer": chat_of(500).encode()})
    close_dialog(page)
    page.locator(".chat-link").click()
    expect(page.locator(".message").last).to_be_in_viewport()
    expect(page.locator(".message")).to_have_count(500)
    expect(page.locator(".message").last).to_be_in_viewport()
    server.script = [[*[part for word in words("A new answer of some words.") for part in (word, 0.05)], finish()]]
    send(page, "One more")
    expect(page.locator(".message")).to_have_count(502)
    page.evaluate("""() => {
      globalThis.touched = new Set();
      new MutationObserver((changes) => changes.forEach(({ target }) => {
        const element = target.nodeType === 1 ? target : target.parentElement;
        if (element?.closest(".message")) globalThis.touched.add(element.closest(".message"));
      })).observe(document.querySelector(".messages"), { subtree: true, childList: true, characterData: true });
    }""")
    expect(page.locator(".message.assistant").last).to_contain_text("A new answer of")
    assert page.evaluate("[...globalThis.touched].every((m) => m === document.querySelector('.message:last-child'))")
    assert page.evaluate("globalThis.touched.size") == 1
    expect(page.locator(".message").last).to_have_attribute("data-status", "done")
    expect(page.locator(".message.assistant").last).to_be_in_viewport()


def test_view_stays_where_the_reader_scrolled(page: Page, server: PageServer):
    server.script = [[*words("line\n\n" * 80), 0.3, *words("more\n\n" * 80), finish()]]
    send(page, "Long")
    expect(page.locator(".block")).to_have_count(80)
    page.mouse.move(600, 300)
    page.mouse.wheel(0, -400)
    expect(page.get_by_role("button", name="To the newest message")).to_be_visible()
    top = page.locator(".scroller").evaluate("(e) => e.scrollTop")
    expect(page.locator(".message.assistant")).to_have_attribute("data-status", "done")
    assert abs(page.locator(".scroller").evaluate("(e) => e.scrollTop") - top) < 2
    page.get_by_role("button", name="To the newest message").click()
    expect(page.locator(".block").last).to_be_in_viewport()
