"""Spans: one for the request, one below it for each attempt, and the client's trace goes on upstream."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.telemetry.tracing import NO_SPAN, NoTracing, SdkTracing, tracing_of
from tests.end_to_end.world import World, world
from tests.gateway.builders import a_call

TRACE = "a" * 32
TRACEPARENT = f"00-{TRACE}-{'b' * 16}-01"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": True}


async def spans_of(here: World, exporter: InMemorySpanExporter, **headers: str) -> list[ReadableSpan]:
    async with here.http() as http:
        await http.post("/v1/chat/completions", json=CHAT, headers=headers)
    await here.wait_at_rest()
    here.gateway.tracing._provider.force_flush()
    return list(exporter.get_finished_spans())


async def test_a_request_and_its_attempt(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    async with world(tmp_path, {"pool": {"kind": "tgi"}}, tracing=SdkTracing(exporter)) as here:
        attempt, request = await spans_of(here, exporter, traceparent=TRACEPARENT)
        assert (request.name, request.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
        assert (attempt.name, attempt.kind) == ("chat m", SpanKind.CLIENT)
        assert f"{request.context.trace_id:032x}" == TRACE
        assert f"{request.parent.span_id:016x}" == "b" * 16
        assert attempt.parent.span_id == request.context.span_id
        assert request.attributes["headgate.tenant"] == "tenant"
        assert attempt.attributes["headgate.replica"] == "pool-1"
        assert attempt.attributes["gen_ai.usage.output_tokens"] == 4
        assert "gen_ai.usage.output_tokens" not in request.attributes, "usage stands on one level"
        assert attempt.status.status_code is StatusCode.UNSET
        sent = here.engine().statistics().recent[0].headers["traceparent"]
        assert sent == f"00-{TRACE}-{attempt.context.span_id:016x}-01"


async def test_each_attempt_has_its_span_and_its_error(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    engines = {"first": {"kind": "trtllm"}, "second": {"kind": "tgi"}}
    async with world(tmp_path, engines, tracing=SdkTracing(exporter)) as here:
        here.engines["first-1"].arm("close")
        failed, answered, request = await spans_of(here, exporter)
        assert failed.attributes["error.type"] == "engine"
        assert failed.status.status_code is StatusCode.ERROR
        assert failed.attributes["headgate.pool"] == "first"
        assert answered.attributes["headgate.pool"] == "second"
        assert request.status.status_code is StatusCode.UNSET


async def test_a_refused_request_ends_its_span_with_the_errors_name(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    async with world(tmp_path, {"pool": {"kind": "tgi"}}, tracing=SdkTracing(exporter)) as here:
        here.engine().arm("refuse=0")
        _, request = await spans_of(here, exporter)
        assert request.attributes["error.type"] == "Unavailable"


def test_off_it_hands_the_clients_context_on() -> None:
    span = NoTracing().request(replace(a_call(), traceparent=TRACEPARENT))
    assert span.child("chat", {}).traceparent == TRACEPARENT
    assert NO_SPAN.traceparent is None


def test_exporters() -> None:
    assert isinstance(tracing_of("none"), NoTracing)
    for name in ("console", "otlp"):
        tracing = tracing_of(name)
        assert isinstance(tracing, SdkTracing)
        tracing.close()
    with pytest.raises(ValueError, match="OTEL_TRACES_EXPORTER is none, console or otlp"):
        tracing_of("zipkin")
