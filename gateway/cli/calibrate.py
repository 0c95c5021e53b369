"""`headgate calibrate`: how fast is this engine? Measured over its API, and written as a profile."""

import datetime
import enum
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from backends.contract import EngineError, EngineLimits, OptionError
from backends.simulated.engine import EngineProfile
from backends.simulated.profiles import document_of
from gateway.app import discovery_of, engine_at
from gateway.cli.exits import COULD_NOT_START, PROBLEM
from gateway.examining.calibrating import Calibrator, CannotMeasure, Load, Measured, shapes_of
from gateway.planning.fitting import Constant, Fit, fit

DEFAULTS = EngineProfile("", 0, 0, 0, 0, 0, 0)
LOAD = Load()
LARGE = 0.1
"""Residuals, rms, that are warned of: three times those of the engine that the form was made for."""
UNITS = {
    "base": ("ms per step", 1e3, "a step itself and the engine's own code around it (a + host)"),
    "e": ("us per token", 1e6, "each of a step's first {hinge} tokens"),
    "b": ("us per token", 1e6, "each token above them"),
    "q": ("ns per pair", 1e9, "attention, a prompt token looking at an earlier one"),
    "d": ("us per token", 1e6, "each cached token that a decoding sequence reads"),
    "s": ("us per sequence", 1e6, "each decoding sequence, on top of its token"),
    "request": (
        "ms per request",
        1e3,
        "network, HTTP, counting: before the first step; not in the profile",
    ),
}


class Format(enum.StrEnum):
    table = "table"
    json = "json"


def calibrate(
    url: Annotated[str, typer.Option(help="The engine. It should have nothing else to do.")],
    model: Annotated[
        str | None, typer.Option(help="As the engine names it; the first it tells if not given.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="VAR", help="The environment variable that holds the engine's key.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the profile there.")] = None,
    name: Annotated[str, typer.Option(help="The profile's name.")] = "measured",
    floor_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="The time of an empty step without host time, where known: host time is what is above it.",
        ),
    ] = None,
    hinge: Annotated[int, typer.Option(min=1, help="Tokens of a step up to which each costs less.")] = 172,
    step_tokens: Annotated[
        int, typer.Option(min=2, help="The engine's step budget (max_num_batched_tokens, max_num_tokens).")
    ] = DEFAULTS.step_tokens,
    kv_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens its cache holds: it is not measured.")
    ] = DEFAULTS.kv_tokens,
    max_sequences: Annotated[
        int | None, typer.Option(min=1, help="Sequences it runs at once; what it tells, else 256.")
    ] = None,
    max_prompt: Annotated[int, typer.Option(min=16, help="Longest prompt.")] = LOAD.prompt_tokens,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = LOAD.sequences,
    max_tokens_at_once: Annotated[int, typer.Option(min=256, help="Tokens at a time.")] = LOAD.tokens,
    max_requests: Annotated[int, typer.Option(min=10, help="Requests in all.")] = LOAD.requests,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Begin nothing new after so long.")
    ] = LOAD.seconds,
    rounds: Annotated[
        int, typer.Option(min=1, help="How often each is measured, after one that warms up.")
    ] = LOAD.rounds,
    form: Annotated[Format, typer.Option("--format", help="What is printed.")] = Format.table,
) -> None:
    """Measure a running engine: fit the constants of its step, print how well they fit, write a profile."""
    headers = _credentials(api_key_env)
    load = Load(max_prompt, max_concurrency, max_tokens_at_once, max_requests, max_seconds, rounds)
    try:
        kind, model, limits, measured = uvloop.run(_measure(url, model, headers, load))
        if len(measured.samples) < 2:
            raise CannotMeasure("; ".join(measured.notes) or "nothing was measured")
        found = fit(measured.samples, hinge=hinge, step_tokens=step_tokens)
        profile = profile_of_fit(
            found,
            name=name,
            floor_s=None if floor_ms is None else floor_ms / 1e3,
            kv_tokens=kv_tokens,
            max_sequences=max_sequences or min(limits.in_flight or DEFAULTS.max_sequences, step_tokens - 1),
        )
    except (CannotMeasure, EngineError, OptionError, ValueError) as error:
        print(f"headgate: {error}", file=sys.stderr)
        raise typer.Exit(PROBLEM) from None
    notes = [*measured.notes, *caveats(found, floor_ms=floor_ms)]
    document = document_of(profile, _how(kind, model, measured, found, notes))
    if form is Format.json:
        print(json.dumps(document, indent=1))
    else:
        print("\n".join(report(found, measured, notes)))
    if out is not None:
        try:
            out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            print(f"headgate: {error}", file=sys.stderr)
            raise typer.Exit(COULD_NOT_START) from None
        print(f"profile written: {out} (headgate engine|replay|plan --profile {out})", file=sys.stderr)


def profile_of_fit(
    found: Fit, *, name: str, floor_s: float | None, kv_tokens: int, max_sequences: int
) -> EngineProfile:
    """What was fitted, as a profile. Without a floor, host time is in `step_s`. Raises ValueError."""
    base = found.base.value
    step = base if floor_s is None else min(base, floor_s)
    return EngineProfile(
        name=name,
        step_s=step,
        light_token_s=found.e.value,
        # Where no prompt was longer than the hinge, tokens above it are taken for as dear as those below.
        token_s=found.b.value or found.e.value,
        attention_s=found.q.value,
        kv_token_s=found.d.value,
        host_s=base - step,
        hinge_tokens=found.hinge,
        kv_tokens=kv_tokens,
        max_sequences=max_sequences,
        step_tokens=found.step_tokens,
        sequence_s=found.s.value,
    )


def caveats(found: Fit, *, floor_ms: float | None) -> list[str]:
    """What the figures do not tell, in sentences."""
    notes = []
    if floor_ms is None:
        notes.append(
            "host time and the step's own time (a) both come once a step: over HTTP only their sum, base, is "
            "seen; the profile holds it as step_s. --floor-ms divides it where a is known (4.66 for an 8B "
            "model in bf16 on an H200; else bytes of weights / bandwidth of the memory, / 0.74)"
        )
    elif floor_ms / 1e3 > found.base.value:
        notes.append(f"base is below {floor_ms:g} ms: not this engine's floor; host time is given as 0")
    unsure = [constant.name for constant in found.constants if not constant.identified]
    if unsure:
        notes.append(
            f"not identified (standard error above a third of it): {', '.join(unsure)}; longer prompts "
            "(b, q), more sequences and cached tokens (d), or a quieter machine (e, request) would tell"
        )
    for kind, residuals in found.residuals.items():
        if kind != "all" and residuals.rms > LARGE:
            notes.append(
                f"the form does not fit this engine's {kind} well (residuals {residuals.rms:.0%} rms, worst: "
                f"{residuals.worst}): a replay or plan with this profile is off by as much"
            )
    notes.append("b holds what counting a prompt's tokens costs the engine's host, too")
    notes.append("not measured: kv_tokens, max_sequences, step_tokens, hinge_tokens; they are what was given")
    return notes


def report(found: Fit, measured: Measured, notes: Sequence[str]) -> list[str]:
    """Lines for people."""
    lines = [f"{'measured':52} {'ms':>9} {'fitted':>9} {'off':>7}"]
    for sample in measured.samples:
        said = found.seconds(sample)
        off = said / sample.seconds - 1
        lines.append(f"{sample!s:52} {1e3 * sample.seconds:9.3f} {1e3 * said:9.3f} {off:+7.1%}")
    lines += ["", f"{'constant':10} {'value':>10} {'+-':>9}  unit"]
    lines += [_line(constant, found.hinge) for constant in found.constants]
    lines.append("")
    for kind, residuals in found.residuals.items():
        lines.append(
            f"residuals, {kind:8} {residuals.samples:3d} samples: rms {residuals.rms:.1%}, median "
            f"{residuals.median:.1%}, max {residuals.most:.1%} ({residuals.worst})"
        )
    lines.append(
        f"{measured.requests} requests, {measured.output_tokens} output tokens, {measured.seconds:.1f} s"
    )
    return [*lines, "", *(f"note: {note}" for note in notes)]


def _line(constant: Constant, hinge: int) -> str:
    unit, factor, meaning = UNITS[constant.name]
    error = f"{constant.error * factor:9.4f}" if constant.error < 1e3 else "        ?"
    mark = "" if constant.identified else "  NOT IDENTIFIED"
    return (
        f"{constant.name:10} {constant.value * factor:10.4f} {error}  {unit}: "
        f"{meaning.format(hinge=hinge)}{mark}"
    )


async def _measure(
    url: str, model: str | None, headers: dict[str, str], load: Load
) -> tuple[str, str, EngineLimits, Measured]:
    discovery = discovery_of([url], headers)
    await discovery.look()
    if discovery.missing:
        raise CannotMeasure(f"{url}: {discovery.missing[0].why}")
    found = discovery.found[0]
    identified = found.identified
    if model is None:
        model = next(iter(identified.models.values()))
    elif model in identified.models:
        model = identified.models[model]
    elif model not in identified.models.values():
        raise CannotMeasure(f"no model {model!r} there; it names {', '.join(identified.models)}")
    print(f"{found.url} is {identified.kind} ({identified.how}); measuring {model}", file=sys.stderr)
    limits = identified.limits
    async with engine_at(found.url, identified.kind, identified.options, headers) as engine:
        calibrator = Calibrator(
            engine,
            model,
            load,
            clock=time.perf_counter,
            cpu_clock=time.process_time,
            told=_progress(),
            seed=secrets.randbits(32),  # prompts that no cache knows from the last time
        )
        shapes = shapes_of(load, limits.context_tokens, limits.prompt_tokens, limits.in_flight)
        measured = await calibrator.measure(shapes)
    return identified.kind, model, limits, measured


def _progress() -> Any:
    """One line that is written over and over, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda text: None
    return lambda text: print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _credentials(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise typer.BadParameter(f"the environment has no {variable}", param_hint="--api-key-env")
    return {"authorization": f"Bearer {key}"}


def _how(kind: str, model: str, measured: Measured, found: Fit, notes: Sequence[str]) -> dict[str, Any]:
    """What a profile tells of its measurement."""
    return {
        "by": "headgate calibrate",
        "on": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "engine": kind,
        "model": model,
        "requests": measured.requests,
        "request_s": found.request.value,
        "standard_errors": {each.name: each.error if each.error < 1e3 else None for each in found.constants},
        "not_identified": [each.name for each in found.constants if not each.identified],
        "residuals": {kind: asdict(residuals) for kind, residuals in found.residuals.items()},
        "notes": list(notes),
    }
