"""The models of a server: known by name, loaded when asked for, unloaded when idle."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..api.llama import Llama
from . import errors, logs
from .settings import Settings


@dataclass
class Model:
    """One model that the server knows."""

    name: str
    path: str
    state: str = "unloaded"  # loading, loaded, failed
    llama: Llama | None = None
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)
    created: int = 0
    problem: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def describe(self) -> dict[str, Any]:
        """As /v1/models lists it."""
        meta: dict[str, Any] = {"state": self.state}
        if self.llama is not None:
            meta |= {"n_ctx": self.llama.n_ctx(), "n_vocab": self.llama.n_vocab(), "n_embd": self.llama.n_embd()}
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "turboquant-native", "meta": meta}


class Lease:
    """A loaded model while a request uses it."""

    def __init__(self, model: Model, llama: Llama) -> None:
        self.model, self.llama, self._ended = model, llama, False

    @property
    def name(self) -> str:
        return self.model.name

    def end(self) -> None:
        """The request needs it no longer. May be called more than once."""
        if not self._ended:
            self._ended = True
            self.model.users -= 1
            self.model.used_at = time.monotonic()


def find(paths: Iterable[str | Path]) -> dict[str, Model]:
    """The models of files and folders by name, which is the file's without its suffix; ValueError where two have the same name."""
    models: dict[str, Model] = {}
    for path in map(Path, paths):
        files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: the folder has no *.gguf file")
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file")
            if file.stem in models:
                raise ValueError(f"{file}: there is already a model named {file.stem!r}: {models[file.stem].path}")
            models[file.stem] = Model(file.stem, str(file), created=int(file.stat().st_mtime))
    return models


class Models:
    """All models of a server.

    Args:
        models: by name; the first is the default.
        open_model: opens a file; it runs in a thread.
        aliases: further names of the first model; "*" answers to every name.
    """

    def __init__(self, models: dict[str, Model], settings: Settings, open_model: Callable[[str], Llama]) -> None:
        self._models, self._settings, self._open_model = models, settings, open_model
        self.starting = False  # the first model is being loaded for the first time

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    @property
    def default(self) -> Model:
        return next(iter(self._models.values()))

    @property
    def names(self) -> Sequence[str]:
        return list(self._models)

    def named(self, name: str | None) -> Model:
        """The model that a request names, the default for none; ApiError 404 for an unknown one."""
        if not name or name in self._settings.aliases:
            return self.default
        if name in self._models:
            return self._models[name]
        if "*" in self._settings.aliases:
            return self.default
        raise errors.model_not_found(name, self.names)

    async def lease(self, name: str | None) -> "Lease":
        """The named model, loaded, and kept so until the lease ends."""
        model = self.named(name)
        if self.starting and model is self.default:
            raise errors.unavailable("the model is being loaded")
        model.users += 1
        try:
            return Lease(model, await self.load(model))
        except BaseException:
            model.users -= 1
            raise

    async def load(self, model: Model) -> Llama:
        """Loads a model unless it is; requests for it wait here. Makes room first."""
        async with model.lock:
            if model.llama is not None:
                return model.llama
            await self._make_room()
            model.state = "loading"
            logs.event("loading", model=model.name)
            try:
                model.llama = await asyncio.to_thread(self._open_model, model.path)
            except Exception as error:
                model.state, model.problem = "failed", str(error)
                logs.event("loading failed", model=model.name, problem=model.problem)
                raise errors.ApiError(500, f"the model {model.name!r} cannot be loaded", code="model_not_loaded") from error
            model.state, model.problem, model.used_at = "loaded", "", time.monotonic()
            logs.event("loaded", model=model.name)
            return model.llama

    async def unload(self, model: Model) -> bool:
        """Frees a model's memory; False while it is in use."""
        if model.users or model.llama is None:
            return False
        llama, model.llama, model.state = model.llama, None, "unloaded"
        await asyncio.to_thread(llama.close)
        logs.event("unloaded", model=model.name)
        return True

    async def _make_room(self) -> None:
        loaded = [model for model in self._models.values() if model.llama is not None]
        for model in sorted(loaded, key=lambda model: model.used_at):
            if len(loaded) < self._settings.max_loaded:
                return
            if await self.unload(model):
                loaded.remove(model)
        if len(loaded) >= self._settings.max_loaded:
            raise errors.unavailable("other models are in use, and there is no room for one more", 5)

    async def unload_idle(self) -> None:
        """Unloads what nobody has used for the time that the settings name; runs until it is cancelled."""
        limit = self._settings.idle_seconds
        while limit is not None:
            await asyncio.sleep(min(limit, 5.0))
            for model in self._models.values():
                if model.llama is not None and not model.users and time.monotonic() - model.used_at > limit:
                    await self.unload(model)

    def close(self) -> None:
        """Closes all models."""
        for model in self._models.values():
            if model.llama is not None:
                model.llama.close()
                model.llama, model.state = None, "unloaded"
