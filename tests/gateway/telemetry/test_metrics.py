"""Metrics: what is counted, read from the text that Prometheus would scrape."""

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from backends.contract import Load
from gateway.config.snapshot import Slo
from gateway.telemetry.metrics import Children, Metrics
from gateway.telemetry.records import RecordBook, RequestRecord
from tests.gateway.builders import Clock, an_estimate


def scraped(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.render().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return scraped(metrics).get((name, frozenset(labels.items())))


def a_record(**fields) -> RequestRecord:
    record = RecordBook().open("id-1", "POST", "/", Clock(1.0))
    for name, it in fields.items():
        setattr(record, name, it)
    return record


SERVED = {
    "model": "llama", "pool": "short", "tenant": "acme", "outcome": "completed", "first_byte": 1.3,
    "prompt_tokens": 10, "completion_tokens": 5, "queued": 0.1, "upstream_wait": 0.15,
    "priority_class": "standard",
}  # fmt: skip
WHO = {"model": "llama", "pool": "short", "tenant": "acme"}


def test_a_served_request():
    metrics = Metrics()
    metrics.observe(a_record(**SERVED), 3.0)
    assert value(metrics, "headgate_requests_total", **WHO, outcome="completed", code="") == 1
    assert value(metrics, "headgate_tokens_total", **WHO, kind="prompt") == 10
    assert value(metrics, "headgate_tokens_total", **WHO, kind="completion") == 5
    where = {"model": "llama", "pool": "short"}
    assert value(metrics, "headgate_time_to_first_token_seconds_sum", **where) == pytest.approx(0.3)
    assert value(metrics, "headgate_request_duration_seconds_sum", **where) == pytest.approx(2.0)
    waited = {"pool": "short", "class": "standard"}
    assert value(metrics, "headgate_queue_wait_seconds_sum", **waited) == pytest.approx(0.1)
    assert value(metrics, "headgate_overhead_seconds_sum") == pytest.approx(0.05)


def test_a_request_that_met_no_pool_is_counted_and_nothing_else():
    metrics = Metrics()
    metrics.observe(a_record(outcome="rejected", error_code="invalid_api_key"), 3.0)
    who = {"model": "", "pool": "", "tenant": ""}
    assert value(metrics, "headgate_requests_total", **who, outcome="rejected", code="invalid_api_key") == 1
    assert not any(name.startswith("headgate_request_duration") for name, _ in scraped(metrics))


def test_a_request_without_a_first_byte_has_no_time_to_it():
    metrics = Metrics()
    metrics.observe(a_record(**{**SERVED, "first_byte": None, "outcome": "failed"}), 3.0)
    assert not any(name.startswith("headgate_time_to_first_token") for name, _ in scraped(metrics))
    assert value(metrics, "headgate_request_duration_seconds_count", model="llama", pool="short") == 1


def test_output_lengths_are_held_against_what_was_predicted():
    """Within the p90 or beyond it; and by which factor p90 and mean were off, where they were learned."""
    metrics = Metrics()
    learned = replace(an_estimate(10, 100), mean=50, output_by="learned p90", learned=True)
    metrics.observe_output("llama", learned, None, 100)
    metrics.observe_output("llama", learned, None, 101)
    metrics.observe_output("llama", learned, 40, 40)  # predicted is what it could have at most
    metrics.observe_output("llama", an_estimate(10, 512), None, 7)
    name, by = "headgate_output_length_predictions_total", "learned p90"
    assert value(metrics, name, model="llama", by=by, passed="false") == 2
    assert value(metrics, name, model="llama", by=by, passed="true") == 1
    assert value(metrics, name, model="llama", by="model default", passed="false") == 1
    ratio = "headgate_output_length_error_ratio"
    assert value(metrics, f"{ratio}_count", model="llama", predicted="mean") == 3
    total = value(metrics, f"{ratio}_sum", model="llama", predicted="mean")
    assert total == pytest.approx(50 / 100 + 50 / 101 + 1)
    assert value(metrics, f"{ratio}_bucket", model="llama", predicted="p90", le="1.0") == 3


def test_clamps_are_counted_by_what_cut():
    metrics = Metrics()
    metrics.observe(a_record(**SERVED, max_tokens_by="tenant"), 3.0)
    clamped = value(metrics, "headgate_max_tokens_clamped_total", model="llama", pool="short", by="tenant")
    assert clamped == 1


def test_who_lost_something_is_counted_by_whose_steps_took_it():
    metrics = Metrics()
    metrics.note_degraded([("rule short", 2), ("class batch", 1)])
    metrics.note_degraded([("rule short", 2)])
    name = "headgate_degraded_requests_total"
    assert value(metrics, name, of="rule short", step="2") == 2
    assert value(metrics, name, of="class batch", step="1") == 1


class Town:
    """Gauges as a gateway has them."""

    def __init__(self) -> None:
        self.in_flight = 2

    def replicas(self):
        yield "short", "r1", self.in_flight, 700, True
        yield "short", "r2", 0, 0, False

    def warming(self):
        yield "short", "r1", True

    def sleepers(self):
        yield "short", "waking", 2

    def engine_loads(self):
        yield "short", "r1", Load(running=3, kv_usage=0.25, preemptions_total=2), 1.5, 1

    def drained(self):
        yield "short", "r1", False
        yield "short", "r2", True

    def forced_estimates(self):
        return {"engine": 3}

    def counted_bytes(self):
        return 300, 1200

    def config(self):
        return "abcdef", False, 17.5

    def queues(self):
        yield "short", {("standard", "small"): 3, ("batch", "long"): 0}, {"standard": 1.5}

    def shares(self):
        yield "short", 0.75, 0.25

    def overload(self):
        yield "rule short", "short", "standard", 2

    def limit_store(self):
        return False, 2, 7, 1

    def pool_limits(self):
        yield "short", "prompt", None, 900
        yield "short", "total", 4096, 3000

    def live_requests(self) -> int:
        return 5

    def info(self):
        return {"version": "1.2.3", "config": "abc"}


def test_gauges_are_read_at_scrape_time():
    """They cannot drift: nothing is remembered between two scrapes."""
    metrics, town = Metrics(), Town()
    metrics.watch(town)
    town.in_flight = 4
    r1, r2 = {"pool": "short", "replica": "r1"}, {"pool": "short", "replica": "r2"}
    assert value(metrics, "headgate_in_flight_requests", **r1) == 4
    assert value(metrics, "headgate_outstanding_tokens", **r1) == 700
    assert (
        value(metrics, "headgate_replica_ready", **r1),
        value(metrics, "headgate_replica_ready", **r2),
    ) == (1, 0)
    assert value(metrics, "headgate_engine_running_requests", **r1) == 3
    assert value(metrics, "headgate_engine_kv_usage_ratio", **r1) == 0.25
    assert value(metrics, "headgate_engine_preemptions_total", **r1) == 2
    assert value(metrics, "headgate_engine_load_age_seconds", **r1) == 1.5
    assert value(metrics, "headgate_engine_foreign_requests", **r1) == 1
    untold = value(metrics, "headgate_engine_waiting_requests", **r1)
    assert untold is None, "what an engine does not tell is not zero"
    line = {"pool": "short", "class": "standard", "lane": "small"}
    assert value(metrics, "headgate_queued_requests", **line) == 3
    empty = {"pool": "short", "class": "batch", "lane": "long"}
    assert value(metrics, "headgate_queued_requests", **empty) == 0
    wait = {"pool": "short", "class": "standard"}
    assert value(metrics, "headgate_queue_expected_wait_seconds", **wait) == 1.5
    assert value(metrics, "headgate_pool_work_share", pool="short") == 0.75
    assert value(metrics, "headgate_pool_capacity_share", pool="short") == 0.25
    assert value(metrics, "headgate_live_requests") == 5
    step = {"of": "rule short", "pool": "short", "class": "standard"}
    assert value(metrics, "headgate_overload_step", **step) == 2
    assert value(metrics, "headgate_prompt_bytes_total", by="tokenizer") == 300
    assert value(metrics, "headgate_prompt_bytes_total", by="memory") == 1200
    assert value(metrics, "headgate_pool_limit_tokens", pool="short", limit="total") == 3000
    assert value(metrics, "headgate_pool_configured_limit_tokens", pool="short", limit="total") == 4096
    assert value(metrics, "headgate_pool_configured_limit_tokens", pool="short", limit="prompt") is None
    assert value(metrics, "headgate_build_info", version="1.2.3", config="abc") == 1
    town.in_flight = 0
    assert value(metrics, "headgate_in_flight_requests", **r1) == 0


def test_two_gateways_do_not_share_metrics():
    one, other = Metrics(), Metrics()
    one.observe(a_record(**SERVED), 3.0)
    assert not any(name == "headgate_requests_total" for name, _ in scraped(other))


def test_what_clients_type_makes_no_series():
    """S10: paths, ids and names of clients are no labels."""
    metrics = Metrics()
    metrics.observe(a_record(**SERVED), 3.0)
    before = len(scraped(metrics))
    for i in range(200):
        metrics.observe(a_record(**SERVED, shown_id=f"id-{i}", path=f"/x/{i}", replica="r1", rule="a"), 3.0)
    assert len(scraped(metrics)) == before


def test_promises_are_judged_as_requests_end():
    """On the clock of the records."""
    metrics = Metrics(Clock(3.0))
    slo = Slo(ttft_p95_ms=250, queue_ms=200)
    metrics.observe(a_record(**SERVED, slo=slo, stream=True, attempts=1), 3.0)
    which = {"pool": "short", "class": "standard"}
    assert value(metrics, "headgate_slo_attainment", **which, objective="queue") == 1
    assert value(metrics, "headgate_slo_attainment", **which, objective="ttft") == 0
    assert value(metrics, "headgate_slo_requests_total", **which, objective="all", met="false") == 1
    assert value(metrics, "headgate_slo_attainment", **which, objective="tpot") is None


def test_children_are_those_of_prometheus():
    metrics = Metrics()
    children = Children(metrics.attempts)
    children["pool", "ok"].inc()
    children["pool", "ok"].inc()
    assert children["pool", "ok"] is metrics.attempts.labels("pool", "ok")
    assert (
        metrics.registry.get_sample_value("headgate_attempts_total", {"pool": "pool", "outcome": "ok"}) == 2
    )
    assert len(children) == 1


def test_places_in_line_and_how_well_waits_were_foretold():
    metrics = Metrics()
    metrics.note_standing("short", "batch", 40)
    metrics.note_foretold("short", "batch", 3.0, 1.5)
    where = {"pool": "short", "class": "batch"}
    assert value(metrics, "headgate_queue_position_bucket", **where, le="20.0") == 0
    assert value(metrics, "headgate_queue_position_bucket", **where, le="50.0") == 1
    assert value(metrics, "headgate_queue_wait_error_seconds_bucket", **where, le="-2.0") == 0
    assert value(metrics, "headgate_queue_wait_error_seconds_bucket", **where, le="-1.0") == 1
    assert value(metrics, "headgate_queue_wait_error_seconds_count", **where) == 1
