"""What the web page makes of a model's text, hostile text among it, and of small screens and long chats."""

import json
import re
from typing import Any

import pytest

from page_driver import AGAIN_AFTER_TIMEOUTS, BrowserContext, Page, ask, close_dialog, expect, fits, send, settings
from page_server import PageServer, answer, delta, finish, words

pytestmark = AGAIN_AFTER_TIMEOUTS

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


def test_hostile_markdown_stays_text(page: Page, site: PageServer, browser_context: BrowserContext):
    asked: list[str] = []
    browser_context.on("request", lambda request: asked.append(request.url))
    site.script = [answer(HOSTILE, reasoning=HOSTILE)]
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
    assert all(url.startswith((site.url, f"blob:{site.url}")) for url in asked)


def test_code_is_coloured_and_copied(page: Page, site: PageServer, browser_context: BrowserContext):
    browser_context.grant_permissions(["clipboard-read", "clipboard-write"])
    site.script = [answer('Look:\n\n```python\ndef f(x):\n    return "<b>&amp;"\n```\n\n| n |\n|--:|\n| 1 |')]
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


def test_settled_blocks_are_left_alone_while_the_answer_grows(page: Page, site: PageServer):
    start, end = words("First block.\n\nSecond block.\n\nThird block.\n\n"), words("Fourth block.\n\nFifth *block*.")
    site.script = [[*start, site.go, *end, finish()]]
    send(page, "Blocks")
    expect(page.locator(".block")).to_have_count(3)
    page.evaluate("globalThis.first = document.querySelector('.block').firstChild")
    site.go.set()
    expect(page.locator(".message.assistant")).to_have_attribute("data-status", "done")
    expect(page.locator(".block")).to_have_count(5)
    assert page.evaluate("document.querySelector('.block').firstChild === globalThis.first")


def test_reasoning_is_open_while_it_grows_and_folds_away(page: Page, site: PageServer):
    site.script = [[*[delta(reasoning_content=w) for w in ("Let ", "me ", "*think*.")], site.go, *answer("Forty-two.")]]
    send(page, "Why?")
    expect(page.locator(".reasoning .markdown em")).to_be_visible()
    site.go.set()
    expect(page.locator(".message.assistant")).to_have_attribute("data-status", "done")
    expect(page.locator(".reasoning .markdown")).to_be_hidden()
    page.locator(".reasoning summary").click()
    expect(page.locator(".reasoning .markdown")).to_be_visible()
    ask(page, "And?")
    assert "think" not in json.dumps(site.requests[1]["messages"]), "reasoning is not sent back"


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}


LONG_ARGUMENTS = f'{{"city": "{"x" * 80}", "id": 12345678901234567890}}'


def test_tool_calls_are_readable_and_take_results(page: Page, site: PageServer):
    pieces = [{"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}}]
    pieces += [{"index": 0, "function": {"arguments": part}} for part in ('{"ci', 'ty": "<i>Os', 'lo"}')]
    pieces += [{"index": 1, "id": "c2", "function": {"name": "weather", "arguments": LONG_ARGUMENTS}}]
    site.script = [[*[delta(tool_calls=[piece]) for piece in pieces], finish("tool_calls")], answer("It snows.")]
    dialog = settings(page)
    dialog.locator("summary", has_text="Tools").click()
    dialog.locator("[name=tools]").fill(json.dumps([TOOL]))
    close_dialog(page)
    reply = ask(page, "Weather?")
    expect(reply.locator(".tool pre").first).to_have_text('{"city": "<i>Oslo"}')
    expect(reply.locator(".tool pre").last).to_have_text(re.compile(r'^{\n  "city": "x{80}",\n  "id": 12345678901234567890\n}$'))
    for field, result in zip(reply.locator(".tool-answers textarea").all(), ('{"snow": true}', "none"), strict=True):
        field.fill(result)
    reply.get_by_role("button", name="Send the results").click()
    expect(page.locator(".message.assistant").last).to_contain_text("It snows.")
    first, second = site.requests
    assert first["tools"] == [TOOL]
    assert second["messages"][1]["tool_calls"][0] == {
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "<i>Oslo"}'},
    }
    assert second["messages"][2] == {"role": "tool", "tool_call_id": "c1", "content": '{"snow": true}'}


def test_bytes_cut_anywhere_and_carriage_returns(page: Page, site: PageServer):
    event = f"data: {json.dumps(delta(content='Grüße 🙂'), ensure_ascii=False)}\r\n\r\n".encode()
    pieces: list[Any] = [part for i in range(len(event)) for part in (event[i : i + 1], 0.002)]
    site.script = [[*pieces, finish()]]
    expect(ask(page, "Hi").locator(".markdown")).to_have_text("Grüße 🙂")


# ---- sizes


def test_phone_width_never_scrolls_sideways(page: Page, site: PageServer):
    page.set_viewport_size({"width": 360, "height": 700})
    wide = f"{'long' * 60}\n\n```\n{'code ' * 80}\n```\n\n|{'column |' * 20}\n|{'---|' * 20}\n|{'cell |' * 20}\n\n`{'x' * 200}`"
    site.script = [answer(wide, reasoning=f"{'y' * 300}")]
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


def test_500_messages_stay_fluid(page: Page, site: PageServer):
    """A new answer changes nothing but its own message, and older ones appear without moving the view."""
    settings(page)
    page.locator("input[name=import]").set_input_files({"name": "c.json", "mimeType": "application/json", "buffer": chat_of(500).encode()})
    close_dialog(page)
    page.locator(".chat-link").click()
    expect(page.locator(".message").last).to_be_in_viewport()
    expect(page.locator(".message")).to_have_count(500)
    expect(page.locator(".message").last).to_be_in_viewport()
    growing = [part for word in words("A new answer of some words.") for part in (word, 0.05)]
    site.script = [[site.go, *growing, finish()]]
    send(page, "One more")
    expect(page.locator(".message")).to_have_count(502)
    page.evaluate("""() => {
      globalThis.touched = new Set();
      new MutationObserver((changes) => changes.forEach(({ target }) => {
        const element = target.nodeType === 1 ? target : target.parentElement;
        if (element?.closest(".message")) globalThis.touched.add(element.closest(".message"));
      })).observe(document.querySelector(".messages"), { subtree: true, childList: true, characterData: true });
    }""")
    site.go.set()
    expect(page.locator(".message").last).to_have_attribute("data-status", "done")
    expect(page.locator(".message").last).to_contain_text("A new answer of some words.")
    expect(page.locator(".message").last).to_be_in_viewport()
    assert page.evaluate("[...globalThis.touched].map((m) => m === document.querySelector('.message:last-child'))") == [True]


def test_view_stays_where_the_reader_scrolled(page: Page, site: PageServer):
    site.script = [[*words("line\n\n" * 80), site.go, *words("more\n\n" * 80), finish()]]
    send(page, "Long")
    expect(page.locator(".block")).to_have_count(80)
    page.mouse.move(600, 300)
    page.mouse.wheel(0, -400)
    expect(page.get_by_role("button", name="To the newest message")).to_be_visible()
    top = page.locator(".scroller").evaluate("(e) => e.scrollTop")
    site.go.set()
    expect(page.locator(".message.assistant")).to_have_attribute("data-status", "done")
    assert abs(page.locator(".scroller").evaluate("(e) => e.scrollTop") - top) < 2
    page.get_by_role("button", name="To the newest message").click()
    expect(page.locator(".block").last).to_be_in_viewport()
