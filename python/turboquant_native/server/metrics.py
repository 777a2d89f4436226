"""Figures for Prometheus at /metrics."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class _Schedulers(Collector):
    """What the schedulers of loaded models say when they are asked."""

    def __init__(self, stats: Callable[[], dict[str, dict[str, Any]]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        gauges = {
            "queued": GaugeMetricFamily("tqn_requests_queued", "Requests that wait for a slot", labels=["model"]),
            "running": GaugeMetricFamily("tqn_requests_running", "Requests that have a slot", labels=["model"]),
            "slots": GaugeMetricFamily("tqn_slots", "Slots", labels=["model"]),
            "cached": GaugeMetricFamily("tqn_cache_tokens", "Tokens that the slots hold", labels=["model"]),
            "snapshots": GaugeMetricFamily("tqn_snapshot_bytes", "Kept copies of recurrent states", labels=["model"]),
        }
        for model, stats in self._stats().items():
            slots = stats["slots"]
            values = {
                "queued": stats["queued"],
                "running": sum(slot["is_processing"] for slot in slots),
                "slots": len(slots),
                "cached": sum(slot["tokens"] for slot in slots),
                "snapshots": stats["snapshot_bytes"],
            }
            for name, value in values.items():
                gauges[name].add_metric([model], value)
        yield from gauges.values()
        yield from _budgets({model: stats["cache"] for model, stats in self._stats().items() if stats["cache"] is not None})


def _budgets(found: dict[str, dict[str, Any]]) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
    """Of models whose caches have a budget."""
    if not found:
        return
    held = GaugeMetricFamily("tqn_cache_bytes", "Bytes of slots, snapshots and kept prefixes", labels=["model"])
    most = GaugeMetricFamily("tqn_cache_budget_bytes", "What these may be", labels=["model"])
    prefixes = GaugeMetricFamily("tqn_kept_prefixes", "Prefixes kept beside the slots", labels=["model", "cache"])
    tokens = GaugeMetricFamily("tqn_kept_tokens", "Their tokens", labels=["model", "cache"])
    dropped = CounterMetricFamily("tqn_dropped_snapshots", "Snapshots of recurrent layers that gave way", labels=["model"])
    requantized = CounterMetricFamily("tqn_requantized_prefixes", "Steps of kept prefixes to fewer bits", labels=["model"])
    evicted = CounterMetricFamily("tqn_evicted_prefixes", "Kept prefixes that were forgotten", labels=["model"])
    taken_up = CounterMetricFamily("tqn_taken_up_tokens", "Tokens of kept prefixes that went on", labels=["model", "cache"])
    for model, cache in found.items():
        held.add_metric([model], cache["bytes"])
        most.add_metric([model], cache["budget"])
        dropped.add_metric([model], cache["dropped_snapshots"])
        requantized.add_metric([model], cache["requantized"])
        evicted.add_metric([model], cache["evicted"])
        for level, kept in cache["kept"].items():
            prefixes.add_metric([model, level], kept["prefixes"])
            tokens.add_metric([model, level], kept["tokens"])
            taken_up.add_metric([model, level], cache["taken_up_tokens"].get(level, 0))
    yield from (held, most, prefixes, tokens, dropped, requantized, evicted, taken_up)


class Metrics:
    """Counters of one server."""

    def __init__(self, stats: Callable[[], dict[str, dict[str, Any]]]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("tqn_requests", "Requests by route and status", ["route", "status"], registry=self.registry)
        self.prompt_tokens = Counter("tqn_prompt_tokens", "Tokens of prompts", ["model"], registry=self.registry)
        self.cached_tokens = Counter("tqn_cached_tokens", "Of these, tokens found in a cache", ["model"], registry=self.registry)
        self.generated_tokens = Counter("tqn_generated_tokens", "Tokens of answers", ["model"], registry=self.registry)
        self.cancelled = Counter("tqn_cancelled", "Answers given up because the client left", ["model"], registry=self.registry)
        self.first_token = Histogram(
            "tqn_time_to_first_token_seconds", "From the request to the first token", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.between_tokens = Histogram(
            "tqn_time_per_token_seconds", "Mean time between an answer's tokens", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.duration = Histogram(
            "tqn_answer_seconds", "From the request to the end of the answer", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.registry.register(_Schedulers(stats))
        self._mean_seconds = 1.0

    def text(self) -> bytes:
        """All figures in Prometheus' form."""
        return generate_latest(self.registry)

    def retry_after(self) -> int:
        """Whole seconds after which a slot is likely free: as long as answers took lately."""
        return max(1, min(60, round(self._mean_seconds)))

    def answered(self, model: str, watch: "Stopwatch", prompt: int, cached: int, generated: int, cancelled: bool) -> None:
        """Counts an answer that has ended."""
        seconds = time.monotonic() - watch.start
        self.prompt_tokens.labels(model).inc(prompt)
        self.cached_tokens.labels(model).inc(cached)
        self.generated_tokens.labels(model).inc(generated)
        self.duration.labels(model).observe(seconds)
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        if cancelled:
            self.cancelled.labels(model).inc()
        if watch.first is not None:
            self.first_token.labels(model).observe(watch.first - watch.start)
            if generated > 1:
                self.between_tokens.labels(model).observe((time.monotonic() - watch.first) / (generated - 1))


class Stopwatch:
    """When a request came, and when its first token did."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.first: float | None = None

    def token(self) -> None:
        if self.first is None:
            self.first = time.monotonic()
