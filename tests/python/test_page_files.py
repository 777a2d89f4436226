"""The web page's files: what is served, with which headers, and that the vendored libraries are those that their page lists."""

import hashlib
import re

from turboquant_native.server import page_files


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
