"""What all routes share."""

from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from ..api.llama import Llama
from .metrics import Metrics
from .models import Lease, Models
from .running import Registry
from .settings import Settings


class Service:
    """Settings, models, figures, and the answers under way."""

    def __init__(self, settings: Settings, models: Models) -> None:
        self.settings, self.models = settings, models
        self.registry = Registry()
        self.metrics = Metrics(self.stats)

    def stats(self) -> dict[str, dict[str, Any]]:
        """Queue and slots of each loaded model."""
        return {model.name: scheduler_stats(model.llama) for model in self.models if model.llama is not None}

    async def lease(self, name: str | None) -> Lease:
        """The model that a request names, loaded until the lease ends; ApiError 404, and 503 while it is not to be had."""
        self.registry.check_open()
        return await self.models.lease(name)


def scheduler_stats(llama: Llama) -> dict[str, Any]:
    """{"queued", "slots": [{"id", "n_ctx", "tokens", "snapshots", "is_processing"}], "snapshot_bytes", "cache": see
    `Llama.cache_stats`, None without a budget, and the counters}."""
    scheduler = llama.engine.scheduler
    snapshots, n_ctx = scheduler.snapshots, llama.n_ctx()
    slots = [
        {"id": slot.index, "n_ctx": n_ctx, "tokens": slot.n_tokens, "snapshots": snapshots.count(slot), "is_processing": slot.busy}
        for slot in list(scheduler.slots)
    ]
    return {
        "queued": scheduler.queued,
        "slots": slots,
        "snapshot_bytes": snapshots.memory_bytes,
        "cache": scheduler.latest_cache_stats,
        **vars(scheduler.counters),
    }


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(service_of)]
