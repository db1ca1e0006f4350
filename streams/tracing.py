"""Tracing: one OpenTelemetry span for each run, if `opentelemetry-api` is installed.

Invariants:

1. There is no span for an event. Without an SDK, the API's spans are empty, and cost little.
2. The source runs in the context of the span, so that spans of its own are children.
3. A run continues the trace of the request that starts it (W3C Trace Context). Nothing else of
   the request's headers is in its context.

https://www.w3.org/TR/trace-context/
"""

from contextlib import suppress
from contextvars import Context

from opentelemetry import trace
from opentelemetry.context import attach
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from streams import __version__
from streams.errors import as_stream_error, for_clients, for_log, leaves
from streams.log import Status as Outcome
from streams.observer import Observer, Production

_W3C = TraceContextTextMapPropagator()
_HEADERS = (b"traceparent", b"tracestate")


class Tracing(Observer):
    """Begins a span when this worker begins to produce a run, and ends it when it ceases to.

    `provider` is OpenTelemetry's global one by default, even if that is set later.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = trace.get_tracer("streams", __version__, provider)
        self._spans: dict[Production, Span] = {}

    def parent(self, scope: Scope) -> SpanContext | None:
        """The current span, which is of an instrumented server, or else what the headers say."""
        found = trace.get_current_span().get_span_context()
        if found.is_valid:
            return found
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            if name in _HEADERS:
                headers.setdefault(name.decode(), []).append(value.decode("latin-1"))
        if not headers:
            return None
        found = trace.get_current_span(_W3C.extract(headers)).get_span_context()
        return found if found.is_valid else None

    @property
    def _records(self) -> bool:
        """Whether there is an SDK. FastAPI brings the API, which most of its users do not use."""
        provider = self._provider or trace.get_tracer_provider()
        return not isinstance(provider, trace.ProxyTracerProvider)

    def run_starts(self, run: Production, context: Context, parent: SpanContext | None) -> None:
        if self._records:
            context.run(self._start, run, parent, {})
        elif parent is not None:  # The source may pass it on.
            context.run(_make_current, trace.NonRecordingSpan(parent))

    def run_continues(self, run: Production, context: Context) -> None:
        if self._records:
            context.run(self._start, run, None, {"streams.run.taken_over": True})

    def _start(
        self, run: Production, parent: SpanContext | None, attributes: dict[str, str | bool]
    ) -> None:
        """Starts the span of a run in the current context, and makes it the current span."""
        info = run.info
        span = self._tracer.start_span(
            f"run {info.source}",
            None if parent is None else trace.set_span_in_context(trace.NonRecordingSpan(parent)),
            SpanKind.INTERNAL,
            {
                "streams.run.id": info.run,
                "streams.source": info.source,
                "streams.run.shared": info.shared,
                **attributes,
            },
        )
        self._spans[run] = span
        _make_current(span)

    def run_fails(self, run: Production, error: BaseException) -> None:
        span = self._spans.get(run, trace.INVALID_SPAN)
        shown = for_clients(error)
        kind = type(shown if shown is not None and len(leaves(error)) == 1 else error)
        span.set_attribute("error.type", f"{kind.__module__}.{kind.__qualname__}")
        if as_stream_error(error).status >= 500:  # Else the source refuses on purpose.
            with suppress(Exception):  # An error of the app may have a `__str__` that fails.
                span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, for_log(error) or kind.__name__))

    def run_ended(self, run: Production, status: Outcome) -> None:
        if (span := self._spans.pop(run, None)) is not None:
            outcome = "handed_over" if status == "running" else status
            span.set_attribute("streams.run.outcome", outcome)
            span.end()


def _make_current(span: Span) -> None:
    attach(trace.set_span_in_context(span))
