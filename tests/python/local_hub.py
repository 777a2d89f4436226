"""As much of the Hugging Face hub as a download needs, on this machine: one repository, tiny/model."""

import contextlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class _Handler(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as a snapshot needs: the list of files and the files."""

    folder: Path
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:4] == ["api", "models", "tiny", "model"]:
            siblings = [{"rfilename": path.name} for path in sorted(self.folder.iterdir())]
            tree = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in sorted(self.folder.iterdir())]
            content = json.dumps(tree if "tree" in parts else {"id": "tiny/model", "sha": self.commit, "siblings": siblings}).encode()
            return self._send(200, content, body)
        file = self.folder / parts[-1]
        if parts[:3] == ["tiny", "model", "resolve"] and file.is_file():
            return self._send(200, file.read_bytes(), body)
        self._send(404, b'{"error": "Repository not found"}', body)

    def _send(self, status: int, content: bytes, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{len(content)}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serves the files of a folder; gives the endpoint."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def environment(endpoint: str, home: Path) -> dict[str, str]:
    """For a process of its own: huggingface_hub reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    return os.environ | settings
