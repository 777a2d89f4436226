"""What a server is told at its start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Models, limits and manners of a server.

    Attributes:
        models: model files, or folders whose *.gguf files can be loaded by name. The first file is loaded at the start.
        aliases: further names of the first model; "*" answers to every name.
        n_ctx: positions of one conversation; 0: the model's; None: 4096, or the model's where that is less.
        n_slots: conversations evaluated at the same time.
        llama: more arguments of `Llama`, such as n_threads or n_gpu_layers.
        max_loaded: models in memory at a time; the one idle for longest gives way. idle_seconds: an idle model is unloaded; None: never.
        api_keys: one of them must come with each request; empty: none is asked for.
        cors_origins: web pages of these origins may call; empty: none.
        max_body: bytes of a request. max_queue: requests that wait for a slot. max_tokens: of one answer, whatever is asked for.
        max_seconds: of one answer, waiting included; None: no limit.
        keep_alive: seconds between the comment lines while nothing else is to be sent.
        sampling: what a request that says nothing gets.
        log_json: one JSON object a line. log_prompts: messages and answers appear in the log.
        grace: seconds that running answers have when the server ends.
    """

    models: Sequence[str | Path] = ()
    aliases: Sequence[str] = ()
    n_ctx: int | None = None
    n_slots: int = 4
    llama: Mapping[str, Any] = field(default_factory=dict)
    max_loaded: int = 1
    idle_seconds: float | None = None
    api_keys: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    max_body: int = 32 << 20
    max_queue: int = 128
    max_tokens: int | None = None
    max_seconds: float | None = None
    keep_alive: float = 5.0
    sampling: Mapping[str, float] = field(default_factory=lambda: {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05})
    log_json: bool = False
    log_prompts: bool = False
    grace: float = 10.0

    def __post_init__(self) -> None:
        if self.n_ctx is not None and self.n_ctx < 0:
            raise ValueError(f"n_ctx must be at least 0, got {self.n_ctx}")
        for name, least in {"n_slots": 1, "max_loaded": 1, "max_body": 1, "max_queue": 0, "grace": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.keep_alive <= 0:
            raise ValueError(f"keep_alive must be positive, got {self.keep_alive}")
        if any(not key for key in self.api_keys):
            raise ValueError("an API key must not be empty")
