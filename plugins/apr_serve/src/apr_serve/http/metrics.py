"""Metrics for Prometheus: the engines' counts at the time of a scrape, and latencies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from apr_serve.chat.service import ChatService
    from apr_serve.engine.interface import EngineStats

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
NEXT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
GAUGES = {
    "slots": ("apr_slots", "Sequences that can run at once."),
    "running": ("apr_running", "Sequences that generate."),
    "prefilling": ("apr_prefilling", "Sequences whose prompt is being read."),
    "queued": ("apr_queue_length", "Requests that wait for a slot."),
    "memory_bytes": ("apr_state_bytes", "Memory of running sequences."),
    "reserved_bytes": ("apr_reserved_bytes", "What running sequences may grow to."),
    "memory_limit": ("apr_memory_limit_bytes", "Memory for sequences and cache together."),
    "cache_bytes": ("apr_cache_bytes", "Memory of kept prefixes."),
    "cache_entries": ("apr_cache_entries", "Kept prefixes."),
}
COUNTERS = {
    "prompt_tokens": ("apr_prompt_tokens", "Prompt tokens taken, cached ones among them."),
    "cached_tokens": ("apr_cached_tokens", "Prompt tokens that were not computed again."),
    "generated_tokens": ("apr_generated_tokens", "Tokens generated."),
    "finished": ("apr_answers_finished", "Answers that ended by themselves."),
    "cancelled": ("apr_answers_cancelled", "Answers whose client went away."),
    "failed": ("apr_answers_failed", "Answers that ended by an error."),
    "steps": ("apr_steps", "Steps of the engine."),
}

Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)


class Metrics:
    """All metrics of one server, in their own registry."""

    def __init__(self, services: Mapping[str, ChatService]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(services))
        self._first = Histogram(
            "apr_time_to_first_token_seconds",
            "From request to first token.",
            ["model"],
            buckets=FIRST,
            registry=self.registry,
        )
        self._next = Histogram(
            "apr_inter_token_latency_seconds",
            "Between steps that brought tokens.",
            ["model"],
            buckets=NEXT,
            registry=self.registry,
        )
        self._requests = Counter(
            "apr_requests", "Requests answered.", ["path", "status"], registry=self.registry
        )
        self._firsts = {name: self._first.labels(name) for name in services}
        self._nexts = {name: self._next.labels(name) for name in services}

    def first_token(self, model: str, seconds: float) -> None:
        """Record the seconds to a request's first token."""
        self._firsts[model].observe(seconds)

    def next_token(self, model: str, seconds: float) -> None:
        """Record the seconds to a later token."""
        self._nexts[model].observe(seconds)

    def answered(self, path: str, status: int) -> None:
        """Count a finished request; `path` is the route's, not the client's."""
        self._requests.labels(path, str(status)).inc()


class EngineCollector(Collector):
    """Reads every engine's stats at each scrape."""

    def __init__(self, services: Mapping[str, ChatService]) -> None:
        self._services = services

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Yield all gauges and counters, labelled by model."""
        stats = {name: service.engine.stats() for name, service in self._services.items()}
        for attribute, (name, help_) in GAUGES.items():
            yield _filled(GaugeMetricFamily(name, help_, labels=["model"]), stats, attribute)
        for attribute, (name, help_) in COUNTERS.items():
            yield _filled(CounterMetricFamily(name, help_, labels=["model"]), stats, attribute)


def _filled(family: Family, stats: Mapping[str, EngineStats], attribute: str) -> Family:
    for model, engine in stats.items():
        family.add_metric([model], getattr(engine, attribute))
    return family
