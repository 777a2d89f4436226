"""Takes the pictures of the web page that docs show: `python tests/page_screenshots.py docs/images` (needs playwright and chromium)."""

import argparse
import json
import sys
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parent / "python"))
from page_server import PageServer, Script, delta, finish, words

MODEL = "Qwen3-4B-tqn3"
QUESTION = "Write a Python function that merges two sorted lists. How fast is it?"
THOUGHT = "Two pointers, one per list. The rest of the longer list goes to the end."
ANSWER = """Walk both lists once and always take the smaller head:

```python
def merge(a: list[int], b: list[int]) -> list[int]:
    merged, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] <= b[j]:  # <= keeps the order of equal items
            merged.append(a[i])
            i += 1
        else:
            merged.append(b[j])
            j += 1
    return merged + a[i:] + b[j:]
```

It looks at every item once, so it takes **O(n + m)** time and as much memory for the result.

- For lists that do not fit in memory, `heapq.merge` gives the items one by one.
- `sorted(a + b)` is about as fast in practice: Timsort finds the two runs.
"""
TOOL_QUESTION = "Is it warmer in Oslo or in Bergen today?"
TOOL_ANSWER = """Bergen is the warmer of the two today.

| city | temperature | wind |
|---|--:|--:|
| Oslo | -4 °C | 3 m/s |
| Bergen | 5 °C | 9 m/s |

Bergen lies at the open sea, which holds its winters near zero.
"""
CALL = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"cities": ["Oslo", "Bergen"], "units": "metric"}'}}
OLD = ["Summary of the meeting notes", "Regex for ISO dates", "What is a trellis code?", "Names for a sailing boat"]


def old_chats() -> str:
    """Exported chats that fill the sidebar."""
    now = int(time.time() * 1000)
    chats = []
    for i, title in enumerate(OLD):
        when = now - (i + 1) * 86_400_000
        messages = [{"id": "m", "parent": None, "role": "user", "content": title}]
        chats.append({"id": f"old{i}", "title": title, "created": when, "updated": when, "messages": messages, "leaf": "m"})
    return json.dumps({"format": "turboquant-native-chats", "version": 1, "chats": chats})


def open_page(browser: Browser, server: PageServer, width: int, height: int, scheme: str) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce")
    page.goto(server.url)
    expect(page.locator("header")).to_contain_text(MODEL)
    page.keyboard.press("Control+,")
    page.locator("input[name=import]").set_input_files({"name": "c.json", "mimeType": "application/json", "buffer": old_chats().encode()})
    page.wait_for_timeout(300)
    page.keyboard.press("Escape")
    page.wait_for_timeout(4200)  # until the notice is gone
    return page


def stream(text: str, thought: str = "", prompt: int = 31) -> Script:
    """An answer at about 40 tokens a second; figures that fit it."""
    chunks = [*(delta(reasoning_content=f"{word} ") for word in thought.split()), *words(text)]
    usage = {"prompt_tokens": prompt, "completion_tokens": len(chunks)}
    return [*(part for chunk in chunks for part in (chunk, 0.024)), finish(), {"choices": [], "usage": usage}]


def ask(page: Page, text: str, wait: bool = True) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    if wait:
        expect(page.locator(".message").last).to_have_attribute("data-status", "done", timeout=30_000)


def shoot(page: Page, path: Path) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(400)
    page.screenshot(path=path)
    page.close()


def chat(browser: Browser, server: PageServer, target: Path, size: tuple[int, int], scheme: str) -> None:
    server.script = [stream(ANSWER, THOUGHT)]
    page = open_page(browser, server, *size, scheme)
    ask(page, QUESTION)
    shoot(page, target)


def tools(browser: Browser, server: PageServer, target: Path) -> None:
    growing: Script = [part for word in words("It is not only the wind: the mountains behind the city") for part in (word, 0.04)]
    server.script = [[delta(tool_calls=[CALL]), finish("tool_calls")], stream(TOOL_ANSWER, prompt=288), [*growing, 5.0]]
    page = open_page(browser, server, 1180, 800, "dark")
    ask(page, TOOL_QUESTION)
    page.locator(".tool-answers textarea").fill('[{"city": "Oslo", "celsius": -4, "wind": 3}, {"city": "Bergen", "celsius": 5, "wind": 9}]')
    page.get_by_role("button", name="Send the result").click()
    expect(page.locator(".message.assistant").last).to_have_attribute("data-status", "done", timeout=30_000)
    ask(page, "And why does it rain there so much?", wait=False)
    expect(page.locator(".message").last).to_contain_text("behind the city")
    shoot(page, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    server = PageServer()
    server.models[0]["id"] = MODEL
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox", "--disable-gpu"])
        chat(browser, server, arguments.folder / "page-light.png", (1180, 800), "light")
        tools(browser, server, arguments.folder / "page-dark.png")
        chat(browser, server, arguments.folder / "page-phone.png", (390, 780), "light")
        browser.close()


if __name__ == "__main__":
    main()
