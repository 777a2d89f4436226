"""The web page's files as a server hands them out: only what the folder holds, with headers that keep the page to itself."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).with_name("page")

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".md": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}

# Scripts, styles, pictures and requests of this origin alone; no inline script or style; HTML from text only through DOMPurify's policy.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)


@dataclass(frozen=True)
class PageFile:
    """One file of the page: its bytes, `Content-Type`, `ETag` (quoted) and every header that goes with it, those two included."""

    body: bytes
    content_type: str
    etag: str
    headers: dict[str, str]


def load(path: str) -> PageFile | None:
    """The file at `path`, relative to the page's address ("" and "/" are index.html); None where the page has no such file.

    A path is looked up among the names the folder holds and never joined to it, so none can leave it. Files have fixed names: a
    browser asks again each time (`no-cache`) and a server may answer 304 when its `If-None-Match` equals `etag`.
    """
    return _files().get(path.removeprefix("/") or "index.html")


@lru_cache(maxsize=1)
def _files() -> dict[str, PageFile]:
    paths = (path for path in FOLDER.rglob("*") if path.suffix in TYPES and path.is_file())
    return {path.relative_to(FOLDER).as_posix(): _read(path) for path in paths}


def _read(path: Path) -> PageFile:
    body = path.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {
        "Content-Type": TYPES[path.suffix],
        "ETag": etag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return PageFile(body, TYPES[path.suffix], etag, headers)
