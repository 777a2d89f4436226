"""The web page in a real browser, against a scripted server: what a reader does with it."""

import json
import re
from pathlib import Path
from typing import Any

from page_driver import AGAIN_AFTER_TIMEOUTS, Page, ask, close_dialog, expect, send, settings
from page_server import BROKEN, PageServer, answer, finish, progress, words

pytestmark = AGAIN_AFTER_TIMEOUTS

SLOW = [part for word in words("one two three four five six seven eight") for part in (word, 0.15)]


# ---- a chat


def test_send_shows_the_answer_and_its_figures(page: Page, site: PageServer):
    site.script = [[progress(8, 21), site.go, *answer("Hello **there**.")]]
    send(page, "Say hello")
    expect(page.locator(".prompt-progress")).to_have_attribute("value", "8")
    expect(page.locator(".figures.live")).to_contain_text("8 of 21 tokens")
    site.go.set()
    reply = page.locator(".message.assistant")
    expect(reply.locator("strong")).to_have_text("there")
    expect(reply.locator(".actions .figures")).to_have_text(re.compile(r"12 tokens · 23\.4 tok/s · \d+\.\d s"))
    expect(page.locator(".context")).to_contain_text("33 / 4,096")
    [request] = site.requests
    assert request["messages"] == [{"role": "user", "content": "Say hello"}]
    assert request["stream"] is True and request["stream_options"] == {"include_usage": True}
    assert not {"temperature", "top_p", "max_tokens", "seed", "tools", "model", "chat_template_kwargs"} & set(request), (
        "unset is the server's default"
    )


def test_stop_closes_the_stream_and_keeps_the_text(page: Page, site: PageServer):
    site.script = [SLOW * 20, answer("Again.")]
    send(page, "Count")
    expect(page.locator(".message.assistant")).to_contain_text("two three")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".message.assistant")).to_have_attribute("data-status", "stopped")
    expect(page.locator(".message.assistant .markdown")).to_contain_text("one two three")
    assert site.closed.wait(5), "the server was not told"
    ask(page, "Go on")
    assert [m["role"] for m in site.requests[1]["messages"]] == ["user", "assistant", "user"]


def test_regenerate_keeps_both_answers(page: Page, site: PageServer):
    site.script = [answer("First."), answer("Second.")]
    ask(page, "Say something").get_by_role("button", name="Answer again").click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("Second.")
    assert site.requests[0]["messages"] == site.requests[1]["messages"]
    expect(page.locator(".versions")).to_contain_text("2/2")
    page.get_by_role("button", name="Version before").click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("First.")


def test_edit_of_a_question_starts_a_branch(page: Page, site: PageServer):
    site.script = [answer("Paris."), answer("Rome."), answer("Unused.")]
    ask(page, "Capital of France?")
    question = page.locator(".message.user")
    question.hover()
    question.get_by_role("button", name="Edit").click()
    page.locator(".editor textarea").fill("Capital of Italy?")
    page.locator(".editor").get_by_role("button", name="Send").click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("Rome.")
    assert site.requests[1]["messages"] == [{"role": "user", "content": "Capital of Italy?"}]
    page.get_by_role("button", name="Version before").click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("Paris.")
    expect(page.locator(".bubble")).to_have_text("Capital of France?")


def test_reload_keeps_chats(page: Page, site: PageServer):
    site.script = [answer("Kept."), SLOW * 20]
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


SLOW_READS = """() => {
  const get = IDBObjectStore.prototype.get;
  IDBObjectStore.prototype.get = function (key) {
    const request = get.call(this, key);
    document.body.dataset.begun = 1 + Number(document.body.dataset.begun ?? 0);
    const ended = () => (document.body.dataset.reads = 1 + Number(document.body.dataset.reads ?? 0));
    const later = (then) => () => setTimeout(() => { then(); ended(); }, 400);
    return { set onsuccess(then) { request.onsuccess = later(then); }, set onerror(then) {}, get result() { return request.result; } };
  };
}"""


def test_a_chat_that_loads_slowly_replaces_nothing(page: Page):
    ask(page, "A question")
    page.get_by_role("button", name="New chat").first.click()
    page.evaluate(SLOW_READS)
    page.locator(".chat-link").click()
    page.get_by_role("button", name="New chat").first.click()
    expect(page.locator("body")).to_have_attribute("data-reads", "2")  # a chat's head and body
    expect(page.locator(".welcome")).to_be_visible()


def test_the_shown_chat_is_not_loaded_again(page: Page):
    """A double click to rename opens it, too: what was stored before the new name must not come back later."""
    ask(page, "A question")
    page.evaluate(SLOW_READS)
    page.locator(".chat-link").dblclick()
    page.locator(".rename").fill("A name")
    page.locator(".rename").press("Enter")
    expect(page.locator(".chat-link")).to_have_text("A name")
    assert page.locator("body").get_attribute("data-begun") is None


SLOW_WRITES = """() => {
  globalThis.writes = 0;
  const { set } = Object.getOwnPropertyDescriptor(IDBTransaction.prototype, "oncomplete");
  Object.defineProperty(IDBTransaction.prototype, "oncomplete", {
    set(then) { set.call(this, () => setTimeout(() => { globalThis.writes += 1; then(); }, 300)); },
  });
  new MutationObserver(() => {
    if (document.querySelector("[data-status=done]")) globalThis.writesWhenDone ??= globalThis.writes;
  }).observe(document.querySelector("main"), { subtree: true, childList: true, attributes: true });
}"""


def test_an_answer_is_done_when_it_is_stored(page: Page):
    page.evaluate(SLOW_WRITES)
    ask(page, "A question")
    assert page.evaluate("globalThis.writesWhenDone") == 2  # the question, then the whole


# ---- settings


def test_parameters_are_sent_only_when_set(page: Page, site: PageServer):
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
    [request] = site.requests
    assert request["temperature"] == 0.25 and request["chat_template_kwargs"] == {"enable_thinking": False}
    assert not {"seed", "top_k", "top_p"} & set(request)
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}


def test_model_is_chosen_and_described(page: Page, site: PageServer):
    site.models = [*site.models, {"id": "other", "object": "model", "meta": {"n_params": 7_000_000_000}}]
    page.reload()
    page.get_by_label("Model", exact=True).select_option("other")
    page.get_by_role("button", name="About this model").click()
    expect(page.locator("dialog")).to_contain_text("7,000,000,000")
    expect(page.locator("dialog")).to_contain_text("turboquant-native 0.1.0")
    close_dialog(page)
    ask(page, "Hi")
    assert site.requests[0]["model"] == "other"


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


def test_key_is_asked_for_and_used(page: Page, site: PageServer):
    site.key = "secret-1"
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


def test_errors_are_explained(page: Page, site: PageServer):
    for error, shown, remedy in FAILURES.values():
        page.keyboard.press("Control+Shift+KeyO")
        site.error = error
        send(page, "Hi")
        failure = page.get_by_role("alert")
        expect(failure).to_contain_text(shown)
        expect(failure).to_contain_text(error[2]["message"])
        expect(failure.get_by_role("button")).to_have_text(remedy)
    site.error = None
    failure.get_by_role("button", name="Try again").click()
    expect(page.locator(".message.assistant .markdown")).to_have_text("Hello there.")
    expect(page.locator(".versions")).to_have_count(0)


def test_question_after_a_failed_one_keeps_the_turns_alternating(page: Page, site: PageServer):
    site.error = FAILURES["503"][0]
    send(page, "First")
    expect(page.get_by_role("alert")).to_be_visible()
    site.error = None
    ask(page, "Second")
    assert site.requests[0]["messages"] == [{"role": "user", "content": "First\n\nSecond"}]


BREAKS = {
    "without [DONE]": [BROKEN],
    "error event": [{"error": {"message": "out of memory", "code": 500}}],
    "not JSON": [b"data: {oops\n\n"],
}


def test_broken_streams_keep_the_text_and_say_so(page: Page, site: PageServer):
    for name, script in BREAKS.items():
        page.keyboard.press("Control+Shift+KeyO")
        site.script = [[*words(name), *script]]
        send(page, "Hi")
        expect(page.get_by_role("alert")).to_be_visible()
        expect(page.locator(".message.assistant .markdown")).to_have_text(name)


def test_limit_of_tokens_is_said(page: Page, site: PageServer):
    site.script = [[*words("Cut"), finish("length")]]
    expect(ask(page, "Hi").locator(".remark")).to_contain_text("limit of tokens")


# ---- files, export, keys


def test_text_files_are_counted_and_sent(page: Page, site: PageServer):
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
    assert site.requests[0]["messages"][0]["content"] == "a.py\n`````\nx = 1 # ```` fence\n`````\n\nExplain"
    expect(page.locator(".bubble .file summary")).to_contain_text("a.py")


def test_export_and_import(page: Page, site: PageServer, tmp_path: Path):
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


def test_keyboard(page: Page, site: PageServer):
    site.script = [SLOW * 20, answer("Edited.")]
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
