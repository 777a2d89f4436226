"""The web page in Debian's chromium: how tests open and use it. Importing this skips a module where playwright or chromium is missing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="needs playwright (tests/requirements.txt)")
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip(f"needs {CHROMIUM} (Debian's package chromium)", allow_module_level=True)

expect.set_options(timeout=30_000)  # a busy machine is slow, not wrong

# A browser that does not do a click or a reload within the time limit is tried once more; what it shows wrongly fails at once.
AGAIN_AFTER_TIMEOUTS = pytest.mark.flaky(reruns=1, only_rerun=["TimeoutError"])

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
EXPECTED = re.compile(r"Failed to load resource|net::ERR_")  # what the browser says of answers that are errors


@contextmanager
def launched() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def fresh_context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1100, "height": 760}, color_scheme="light", reduced_motion="reduce")
    context.set_default_timeout(30_000)
    yield context
    context.close()


@contextmanager
def opened(context: BrowserContext, url: str) -> Iterator[Page]:
    """The page at `url`, connected. A script error, a dialog or a breach of the content security policy is an AssertionError at the end."""
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: message.type == "error" and not EXPECTED.search(message.text) and faults.append(message.text))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.goto(url)
    expect(page.locator("header")).to_contain_text("tiny")
    yield page
    assert not faults


def send(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def ask(page: Page, text: str) -> Locator:
    """Sends `text` and waits for the whole answer; an earlier answer, done already, does not pass for it."""
    replies = page.locator(".message.assistant")
    before = replies.count()
    send(page, text)
    expect(replies).to_have_count(before + 1)
    expect(replies.last).to_have_attribute("data-status", "done")
    return replies.last


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth")


def settings(page: Page) -> Locator:
    page.keyboard.press("Control+,")
    return page.locator("dialog[open]")


def close_dialog(page: Page) -> None:
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
