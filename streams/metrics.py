"""Metrics: what a worker has done and does now, at /metrics, in Prometheus' text format 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/

Invariants:

1. Nothing is counted for each event. What the log and the runs count already is read at a scrape.
2. The values of a label are bounded: no client can add one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import Context
from itertools import accumulate
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streams import __version__
from streams.errors import NOT_A_PAGE, StreamError
from streams.histogram import BOUNDS, Histogram
from streams.log import EventLog, RunInfo, Status
from streams.observer import Observer, Production, Sending

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MAX_ENDPOINTS = 100
"""So many names of `response()`, which an app may make up, are labels; the runs of further ones
count as OTHER."""

OTHER = "other"

Labels = Mapping[str, str]


class Metrics(Observer):
    """Counts. `sources` are the names in the route table, by which runs and events are labelled."""

    def __init__(self, sources: Iterable[str]) -> None:
        self._sources = set(sources)
        self._most_sources = len(self._sources) + MAX_ENDPOINTS
        self._started: Counter[str] = Counter()
        self._continued: Counter[str] = Counter()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._running: Counter[str] = Counter()
        self._first_event: dict[str, Histogram] = {}
        self._streams: set[Sending] = set()
        self._all_streams = 0
        self._sent = 0
        self._resumed = 0
        self._refused: Counter[tuple[str, str]] = Counter()
        self._published: Counter[str] = Counter()

    def _source(self, name: str) -> str:
        if name not in self._sources:
            if len(self._sources) >= self._most_sources:
                return OTHER
            self._sources.add(name)
        return name

    def run_starts(self, run: Production, context: Context, parent: Any) -> None:
        source = self._source(run.info.source)
        self._started[source] += 1
        self._running[source] += 1

    def run_continues(self, run: Production, context: Context) -> None:
        source = self._source(run.info.source)
        self._continued[source] += 1
        self._running[source] += 1

    def first_event(self, run: Production, seconds: float) -> None:
        self._first_event.setdefault(self._source(run.info.source), Histogram()).observe(seconds)

    def run_ended(self, run: Production, status: Status) -> None:
        self._running[self._source(run.info.source)] -= 1
        self.ended_elsewhere(run.info, status)

    def ended_elsewhere(self, info: RunInfo, status: Status) -> None:
        outcome = "handed_over" if status == "running" else status
        self._ended[self._source(info.source), outcome] += 1

    def opened(self, stream: Sending) -> None:
        self._streams.add(stream)
        self._all_streams += 1

    def closed(self, stream: Sending) -> None:
        self._streams.discard(stream)
        self._sent += stream.sent

    def resumed(self) -> None:
        self._resumed += 1

    def refused(self, error: StreamError) -> None:
        self._refused[str(error.status), _reason(error)] += 1

    def published(self, topic: str) -> None:
        self._published[topic] += 1

    def lines(self, log: EventLog, state: Mapping[str, Any]) -> Iterator[str]:
        """All metrics; `state` is what /health says."""
        about = {"worker": log.worker, "version": __version__}
        yield from _family("worker_info", "gauge", "This worker: the process.", [(about, 1)])
        yield from _family(
            "runs_started_total", "counter", "Runs started.", _by("source", self._started)
        )
        yield from _family(
            "runs_taken_over_total",
            "counter",
            "Runs of other workers that this one continues.",
            _by("source", self._continued),
        )
        yield from _family(
            "runs_ended_total",
            "counter",
            "Runs ended. handed_over: another worker took it over or stopped it, and counts that.",
            [
                ({"source": source, "outcome": outcome}, count)
                for (source, outcome), count in self._ended.items()
            ],
        )
        yield from _family(
            "runs_running", "gauge", "Runs that are produced now.", _by("source", self._running)
        )
        yield from _family(
            "runs_held", "gauge", "Runs in memory, finished ones included.", _one(len(log))
        )
        yield from _family(
            "runs_evicted_total",
            "counter",
            "Runs evicted before they expired, to make room at max_runs or max_bytes.",
            _one(log.evictions),
        )
        yield from _histograms(
            "first_event_seconds",
            "From the start of a run to the first event of its source.",
            "source",
            self._first_event,
        )
        yield from _family(
            "events_total", "counter", "Events appended, start and end included.", _one(log.events)
        )
        yield from _family(
            "events_published_total",
            "counter",
            "Events published to a topic.",
            _by("source", self._published),
        )
        yield from _family(
            "held_bytes", "gauge", "Memory held by events and arguments.", _one(log.bytes)
        )
        yield from _family(
            "readers", "gauge", "Responses that stream a run now.", _one(len(self._streams))
        )
        yield from _family(
            "readers_opened_total",
            "counter",
            "Responses that began to stream a run.",
            _one(self._all_streams),
        )
        yield from _family(
            "readers_resumed_total",
            "counter",
            "Responses that resumed after the last event of a client.",
            _one(self._resumed),
        )
        yield from _family(
            "gaps_total", "counter", "Gaps announced to readers.", _one(state["gaps"])
        )
        sent = self._sent + sum(stream.sent for stream in self._streams)
        yield from _family(
            "sent_bytes_total", "counter", "Bytes of streams, without heartbeats.", _one(sent)
        )
        yield from _family(
            "refused_total",
            "counter",
            "Requests refused: the status, and the class in streams.errors.",
            [
                ({"status": status, "reason": reason}, count)
                for (status, reason), count in self._refused.items()
            ],
        )
        yield from _family(
            "threads", "gauge", "Threads of plain generators and guards.", _one(state["threads"])
        )
        yield from _histograms(
            "store_seconds",
            "How long the store of the log took for an operation.",
            "operation",
            log.latencies,
        )


def _reason(error: StreamError) -> str:
    """The name of the error's class, or of the nearest one that streams.errors has."""
    here = StreamError.__module__
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == here)


def routes(streams: Any) -> list[Route]:
    """The route of the metrics of a Streams."""
    (metrics,) = (o for o in streams.runs.observers if isinstance(o, Metrics))
    headers = {"Cache-Control": "no-store", **NOT_A_PAGE, "Content-Type": CONTENT_TYPE}

    async def scraped(request: Request) -> Response:
        lines = metrics.lines(streams.log, streams.runs.health())
        return Response("".join(lines), headers=headers)

    return [Route("/metrics", streams.endpoint(scraped), methods=["GET"])]


Sample = tuple[Labels, float]


def _one(value: float) -> list[Sample]:
    return [({}, value)]


def _by(label: str, counts: Mapping[str, int]) -> list[Sample]:
    return [({label: value}, count) for value, count in counts.items()]


def _family(name: str, kind: str, about: str, samples: Sequence[Sample]) -> Iterator[str]:
    yield _head(name, kind, about)
    for labels, value in samples:
        yield _sample(name, labels, value)


def _histograms(
    name: str, about: str, label: str, histograms: Mapping[str, Histogram]
) -> Iterator[str]:
    yield _head(name, "histogram", about)
    bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    for value, histogram in histograms.items():
        labels = {label: value}
        counts = list(accumulate(histogram.counts))
        for bound, count in zip(bounds, counts, strict=True):
            yield _sample(f"{name}_bucket", {**labels, "le": bound}, count)
        yield _sample(f"{name}_sum", labels, histogram.sum)
        yield _sample(f"{name}_count", labels, counts[-1])


def _head(name: str, kind: str, about: str) -> str:
    return f"# HELP streams_{name} {about}\n# TYPE streams_{name} {kind}\n"


def _sample(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"streams_{name}{{{pairs}}} {value}\n" if pairs else f"streams_{name} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
