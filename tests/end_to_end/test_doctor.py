"""`headgate doctor` before simulated engines and a gateway that runs."""

import asyncio
import json
from pathlib import Path
from typing import Any

import yaml

from tests.end_to_end.test_command_line import headgate
from tests.end_to_end.world import ADMIN_KEY, World, world

Verdicts = dict[str, set[str]]


async def doctor(here: World, *arguments: str, **changes: Any) -> tuple[int, list[dict[str, str]]]:
    """Exit code and findings for the world's own file, with the address where its admin listener is."""
    written = yaml.safe_load(here.file.read_text())
    written["server"]["admin"] = here.addresses.admin.removeprefix("http://")
    for path, value in changes.items():
        *way, last = path.split("__")
        place = written
        for step in way:
            place = place.setdefault(step, {})
        place[last] = value
    file = here.file.with_name("doctor.yaml")
    file.write_text(yaml.safe_dump(written))
    done = await asyncio.to_thread(
        headgate, "doctor", "--json", "-c", file, *arguments, HEADGATE_ADMIN_KEY=ADMIN_KEY
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["findings"]


def verdicts(findings: list[dict[str, str]]) -> Verdicts:
    found: Verdicts = {}
    for finding in findings:
        found.setdefault(finding["check"], set()).add(finding["verdict"])
        assert (finding["remedy"] is None) == (finding["verdict"] == "pass"), finding
    return found


SOUND = {"slo": {"ttft_p95_ms": 800}, "limits": {"total": 8192, "prompt": 8000, "in_flight": 16}}


async def test_a_fleet_fit_for_production_passes(tmp_path: Path) -> None:
    """Every line passes before TGI, which tells its limits, and vLLM, which tells its context."""
    engines: dict[str, dict[str, Any]] = {"tgi": {"kind": "tgi", "replicas": 2}, "vllm": {"kind": "vllm"}}
    async with world(tmp_path, engines, pools={"tgi": SOUND, "vllm": SOUND}) as here:
        code, findings = await doctor(here, "--live")
    assert code == 0, findings
    assert set().union(*verdicts(findings).values()) == {"pass"}
    told = [finding["what"] for finding in findings if finding["check"] == "limits"]
    assert "total: 8192 here, 16384 there; the smaller is used, 8192" in told


async def test_without_looking_nothing_live_is_called_well(tmp_path: Path) -> None:
    async with world(tmp_path, {"tgi": {"kind": "tgi"}}, pools={"tgi": SOUND}) as here:
        code, findings = await doctor(here)
    found = verdicts(findings)
    live = {"tokenizer", "limits", "streaming", "metrics", "health"}
    assert {check for check, verdict in found.items() if verdict == {"cannot tell"}} == live
    assert (code, found["fallback"]) == (1, {"fail"})


async def test_what_is_wrong_is_named_with_both_numbers(tmp_path: Path) -> None:
    """A Triton that cannot stream, an engine smaller than its pool, a replica that is gone."""
    engines: dict[str, dict[str, Any]] = {
        "triton": {"kind": "triton", "decoupled": False},
        "small": {"kind": "tgi", "max_total_tokens": 4096, "max_concurrent_requests": 8},
        "gone": {"kind": "vllm", "url": "http://127.0.0.1:9"},
    }
    async with world(tmp_path, engines, pools={"small": SOUND, "triton": SOUND}) as here:
        code, findings = await doctor(here, "--live")
    assert code == 1
    failed = {
        (finding["check"], finding["subject"]): finding
        for finding in findings
        if finding["verdict"] == "fail"
    }
    assert "decoupled: True" in failed["streaming", "pool triton"]["remedy"]
    assert failed["slo", "pool gone"]
    assert "no answer" in failed["health", "pool gone, replica gone-1"]["what"]
    limits = [f for f in findings if f["check"] == "limits" and f["subject"] == "pool small, replica small-1"]
    assert {f["what"].split(";")[0]: f["verdict"] for f in limits}["total: 8192 here, 4096 there"] == "fail"
    assert {f["what"].split(";")[0]: f["verdict"] for f in limits}["in_flight: 16 here, 8 there"] == "fail"


async def test_a_split_can_not_be_told_and_other_texts_can(tmp_path: Path) -> None:
    """As text, for people: one line a finding, then the totals."""
    rules = [
        {"name": "short", "when": {"estimated_total_tokens": {"lte": 100}}, "pools": ["tgi"]},
        {"name": "else", "pools": ["tgi"]},
    ]
    async with world(tmp_path, {"tgi": {"kind": "tgi"}}, rules=rules) as here:
        done = await asyncio.to_thread(headgate, "doctor", "-c", here.file)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("cannot tell  split")]
    assert "loadtest" in line.split(" -> ")[1]
    assert done.stdout.splitlines()[-1].endswith("cannot be told")


def test_the_shipped_file_has_the_demo_keys() -> None:
    done = headgate("doctor")
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("fail         keys")]
    assert [line.split()[3] for line in failed] == ["acme:", "globex:"]
