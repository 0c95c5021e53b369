"""Tracing with OpenTelemetry: one SERVER span a request, below it one CLIENT span for each attempt.

Off unless OTEL_TRACES_EXPORTER asks for it; then `NoTracing` costs nothing and only hands the client's
trace context on. Names follow OTel's GenAI conventions where they have one. Token usage stands on the
attempt alone, so that nobody adds it up twice. Prompts and answers are never recorded.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.call import ROUTES, Call

Attributes = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """A span under way."""

    traceparent: str | None
    """W3C trace context for whoever is called from within it."""

    def child(self, name: str, attributes: Attributes) -> "Span": ...

    def end(self, attributes: Mapping[str, Any], error: str | None = None) -> None:
        """End it; None values are left out. `error` is a low-cardinality name. Idempotent."""
        ...

    def __enter__(self) -> "Span": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it, with the name of the exception that left the block."""
        ...


class Tracing(Protocol):
    def request(self, call: Call) -> Span: ...

    def close(self) -> None:
        """Send what is still buffered. May take seconds: call it off the loop."""
        ...


class NoTracing:
    """Records nothing; the client's own trace context travels on unchanged."""

    def request(self, call: Call) -> Span:
        return _NoSpan(call.traceparent)

    def close(self) -> None:
        pass


class _NoSpan:
    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def child(self, name: str, attributes: Attributes) -> Span:
        return self

    def end(self, attributes: Mapping[str, Any], error: str | None = None) -> None:
        pass

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


NO_SPAN: Span = _NoSpan(None)


class SdkTracing:
    """Spans through opentelemetry-sdk, exported in batches by a thread of its own."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "headgate"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("headgate")

    def request(self, call: Call) -> Span:
        carrier = {} if call.traceparent is None else {"traceparent": call.traceparent}
        context = TraceContextTextMapPropagator().extract(carrier)
        path = ROUTES[call.dialect]
        span = self._tracer.start_span(
            f"POST {path}",
            context=context,
            kind=trace.SpanKind.SERVER,
            attributes={
                "http.request.method": "POST",
                "http.route": path,
                "headgate.request_id": call.id,
                "headgate.tenant": call.tenant.name,
            },
        )
        return _SdkSpan(self._tracer, span)

    def close(self) -> None:
        self._provider.shutdown()


class _SdkSpan:
    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span)
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, self._context)
        self.traceparent = carrier.get("traceparent")

    def child(self, name: str, attributes: Attributes) -> Span:
        span = self._tracer.start_span(
            name, context=self._context, kind=trace.SpanKind.CLIENT, attributes=dict(attributes)
        )
        return _SdkSpan(self._tracer, span)

    def end(self, attributes: Mapping[str, Any], error: str | None = None) -> None:
        if not self._span.is_recording():
            return
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(name, value)
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end({}, None if kind is None else kind.__name__)


def tracing_of(exporter: str) -> Tracing:
    """The tracing that OTEL_TRACES_EXPORTER names: none, console, otlp.

    Raises ValueError where `otlp` is asked for and the `otlp` extra is not installed.
    """
    match exporter:
        case "none":
            return NoTracing()
        case "console":
            return SdkTracing(ConsoleSpanExporter())
        case "otlp":
            try:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            except ImportError:
                raise ValueError("OTEL_TRACES_EXPORTER=otlp needs: pip install 'headgate[otlp]'") from None
            return SdkTracing(OTLPSpanExporter())
        case _:
            raise ValueError(f"OTEL_TRACES_EXPORTER is none, console or otlp, not {exporter!r}")
