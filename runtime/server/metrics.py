"""Prometheus metrics: times as they happen, counts when they are asked for."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lineahead.runtime.engine.engine import Engine
from lineahead.runtime.engine.observer import Observer

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
KNOWN_PATHS = {"/", "/health", "/ready", "/metrics", "/openapi.json"}
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics(Observer):
    """All metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        """Start at zero."""
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS, **more: Any) -> Histogram:
            return Histogram(f"lineahead_{name}", text, buckets=buckets, registry=self.registry, **more)

        self._queue = histogram("queue_seconds", "Time in the queue")
        self._ttft = histogram("time_to_first_token_seconds", "From arrival to the first token")
        self._tpot = histogram("time_per_output_token_seconds", "Per token after the first", SHORT)
        self._total = histogram("request_seconds", "From arrival to the last token")
        self._step = histogram("step_seconds", "Decoding steps", SHORT)
        self._rows = histogram("step_rows", "Sequences of a decoding step", (1, 2, 4, 8, 16, 32, 64, 128))
        self._tokens = histogram(
            "step_tokens_per_row", "Tokens per step and sequence", (1, 1.5, 2, 3, 4, 6, 8, 12, 16)
        )
        self._responses = Counter(
            "lineahead_http_responses", "Answers", ("path", "status"), registry=self.registry
        )

    def queued(self, seconds: float) -> None:
        """As :meth:`Observer.queued`."""
        self._queue.observe(seconds)

    def first_token(self, seconds: float) -> None:
        """As :meth:`Observer.first_token`."""
        self._ttft.observe(seconds)

    def finished(self, finish: str, tokens: int, decode_s: float, total_s: float) -> None:
        """As :meth:`Observer.finished`."""
        self._total.observe(total_s)
        if tokens > 1:
            self._tpot.observe(decode_s / (tokens - 1))

    def stepped(self, rows: int, tokens: int, seconds: float) -> None:
        """As :meth:`Observer.stepped`."""
        self._step.observe(seconds)
        self._rows.observe(rows)
        self._tokens.observe(tokens / rows)

    def answered(self, path: str, status: int) -> None:
        """Count an answer; paths that do not exist share one name, so that nobody can invent them."""
        known = path in KNOWN_PATHS or path in ("/v1/completions", "/v1/chat/completions", "/v1/models")
        self._responses.labels(path if known else "other", str(status)).inc()

    def watch(self, engine: Engine) -> None:
        """Report the engine's counts too."""
        self.registry.register(_EngineCounts(engine))

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)


class _EngineCounts:
    """Reads the engine's statistics when metrics are collected."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        found = self._engine.statistics()
        gauges = {
            "slots": (found.slots, "Sequences that can be decoded together"),
            "slots_active": (found.active, "Sequences in the batch or being read"),
            "queue_waiting": (found.waiting, "Requests in the queue"),
            "queue_capacity": (found.queue, "Requests that may wait"),
            "ready": (float(self._engine.ready), "Whether requests are taken"),
            "draft_nodes": (found.draft_nodes, "Tokens proposed per sequence in the last step"),
            "prefix_cache_bytes": (found.prefix_cache.nbytes, "Size of cached states"),
            "prefix_cache_entries": (found.prefix_cache.entries, "Cached states"),
        }
        for name, (value, text) in gauges.items():
            yield GaugeMetricFamily(f"lineahead_{name}", text, value=value)
        counters = {
            "requests_submitted": (found.submitted, "Requests taken"),
            "requests_refused": (found.refused, "Requests refused"),
            "failed_steps": (found.failed_steps, "Calls of the model that raised"),
            "prompt_tokens": (found.prompt_tokens, "Prompt tokens read"),
            "cached_prompt_tokens": (found.cached_tokens, "Prompt tokens taken from the prefix cache"),
            "generated_tokens": (found.tokens, "Tokens generated"),
            "steps": (found.steps, "Decoding steps"),
            "verifications": (found.row_steps, "Sequences times steps"),
            "verified_tokens": (found.row_tokens, "Tokens that verifications yielded"),
            "prefix_cache_hits": (found.prefix_cache.hits, "Prompts that began with a cached state"),
            "prefix_cache_misses": (found.prefix_cache.misses, "Prompts that did not"),
            "prefix_cache_evictions": (found.prefix_cache.evicted, "States dropped for room"),
        }
        for name, (value, text) in counters.items():
            yield CounterMetricFamily(f"lineahead_{name}", text, value=value)
        ended = CounterMetricFamily(
            "lineahead_requests_finished", "Requests by how they ended", labels=["finish"]
        )
        for finish, count in found.finished.items():
            ended.add_metric([finish], count)
        yield ended
        for name, counts in (("offered", found.offered_at), ("accepted", found.accepted_at)):
            family = CounterMetricFamily(
                f"lineahead_drafts_{name}",
                f"Verifications where a draft token was {name}",
                labels=["position"],
            )
            for depth, count in enumerate(counts, 1):
                family.add_metric([str(depth)], count)
            yield family
