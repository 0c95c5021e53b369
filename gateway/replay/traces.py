"""Reading traces: public ones, Headgate's own access log, and what AIPerf reads and writes. `.gz` too.

    Azure       CSV  TIMESTAMP,ContextTokens,GeneratedTokens
    slices      CSV  t_s,tenant,in_tokens,out_tokens           (ServeGen samples, Azure with seconds)
    BurstGPT    CSV  Timestamp,Model,Request tokens,Response tokens,...   (AIPerf reads it too)
    Mooncake    JSON lines {"timestamp": ms, "input_length", "output_length", "hash_ids"}: AIPerf's
                `mooncake_trace`, with `session_id` and `delay`; or short {"t": s, "in", "out", "h"}
    AIPerf      JSON lines of profile_export.jsonl: {"metadata": {"request_start_ns"}, "metrics": {...}}
    Headgate    JSON lines of logger headgate.request (telemetry/logs.py)

The format is told by the first line. A request of no output counts for one token.
"""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from gateway.config.snapshot import PriorityClass
from gateway.replay.fleet import BLOCK
from gateway.replay.mixes import DOCS_CAP, DOCS_REQUESTS
from gateway.replay.requests import TraceRequest

__all__ = ["MIX_FILES", "TraceInvalid", "mixed_files", "open_text", "read_trace"]

MIX_FILES = (
    "azure2023_conv.csv.gz",
    "azure2023_code.csv.gz",
    "mooncake_fast25_conversation.jsonl.gz",
)
"""What `mixed_files` looks for."""

BIN_S = 3.0
"""Mooncake's timestamps are multiples of that, but for milliseconds; within it, times are drawn evenly."""


class TraceInvalid(ValueError):
    """A trace that cannot be read. The message names file and line."""


def read_trace(path: Path, rng: random.Random) -> list[TraceRequest]:
    """The requests of a file, in order of time, the first at 0. Raises TraceInvalid, OSError."""
    try:
        requests = sorted(_requests(path), key=lambda request: request.at)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise TraceInvalid(f"{path}: {error}") from None
    if not requests:
        raise TraceInvalid(f"{path}: no requests in it")
    if len(requests) > 1 and all(abs((request.at + 0.01) % BIN_S) < 0.02 for request in requests):
        requests = sorted(
            (replace(request, at=request.at + BIN_S * rng.random()) for request in requests),
            key=lambda request: request.at,
        )
    first = requests[0].at
    return [replace(request, at=request.at - first) for request in requests]


def mixed_files(directory: Path, rng: random.Random) -> list[TraceRequest]:
    """The mix of `mixes.mixed`, from the files: conversation, code, and a quarter of Mooncake's conversations
    as tenant `docs`, cut at 60,000 tokens. Raises TraceInvalid, OSError."""
    missing = [name for name in MIX_FILES if not (directory / name).is_file()]
    if missing:
        raise TraceInvalid(f"{directory}: {', '.join(missing)} not found")
    conversation, code, mooncake = (read_trace(directory / name, rng) for name in MIX_FILES)
    documents = rng.sample(mooncake, min(DOCS_REQUESTS, len(mooncake)))
    requests = [*conversation, *code]
    requests += [
        replace(
            request,
            tenant="docs",
            prompt_tokens=min(request.prompt_tokens, DOCS_CAP),
            blocks=(),  # three quarters of the conversations are missing: what is left shares little
        )
        for request in documents
    ]
    return sorted(requests, key=lambda request: request.at)


def _requests(path: Path) -> Iterator[TraceRequest]:
    with open_text(path) as lines:
        first = lines.readline()
        lines.seek(0)
        if first.lstrip().startswith("{"):
            yield from _json_lines(path, lines)
        else:
            yield from _table(path, lines)


def _table(path: Path, lines: TextIO) -> Iterator[TraceRequest]:
    reader = csv.DictReader(lines)
    columns = set(reader.fieldnames or ())
    row_of = next((row_of for needed, row_of in _TABLES if needed <= columns), None)
    if row_of is None:
        raise TraceInvalid(f"{path}:1: no known columns: {', '.join(sorted(columns)) or 'none'}")
    for row in reader:
        try:
            yield row_of(path, row)
        except (KeyError, TypeError, ValueError) as error:
            raise TraceInvalid(f"{path}:{reader.line_num}: {type(error).__name__}: {error}") from None


def _json_lines(path: Path, lines: TextIO) -> Iterator[TraceRequest]:
    sessions: dict[str, float] = {}  # AIPerf's delays count from the turn before
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            request = _json_row(row, sessions)
        except (KeyError, TypeError, ValueError) as error:
            raise TraceInvalid(f"{path}:{number}: {type(error).__name__}: {error}") from None
        if request is not None:
            yield request


def _json_row(row: dict[str, Any], sessions: dict[str, float]) -> TraceRequest | None:
    if row.get("logger") == "headgate.request" or "outcome" in row:
        return _log_line(row)
    if "logger" in row:
        return None  # another line of the same log
    if "metadata" in row:
        return _aiperf_record(row)
    if "in" in row:
        return _request(float(row["t"]), row.get("tenant", "docs"), row["in"], row["out"], row.get("h"))
    session = row.get("session_id")
    at = row.get("timestamp")
    if at is not None:
        seconds = float(at) / 1e3
    elif session is not None:
        seconds = sessions.get(session, 0.0) + float(row.get("delay") or 0.0) / 1e3
    else:
        raise KeyError("timestamp")
    if session is not None:
        sessions[session] = seconds
    prompt = row.get("input_length")
    if prompt is None:
        prompt = max(1, len(row["text_input"]) // 4)
    return _request(
        seconds, row.get("tenant", "trace"), prompt, row.get("output_length", 1), row.get("hash_ids")
    )


def _log_line(row: dict[str, Any]) -> TraceRequest | None:
    """A finished request of our own. One that was refused has no true output: it is left out."""
    if row.get("outcome") != "completed" or not row.get("prompt_tokens"):
        return None
    ended = datetime.fromisoformat(row["time"]).timestamp()
    request = _request(
        ended - float(row.get("duration_ms") or 0.0) / 1e3,
        row.get("tenant") or "anonymous",
        row["prompt_tokens"],
        row.get("completion_tokens") or 1,
        None,
    )
    name = str(row.get("class"))
    return replace(
        request,
        max_tokens=row.get("max_tokens"),
        priority=PriorityClass[name] if name in PriorityClass.__members__ else PriorityClass.standard,
        streamed=bool(row.get("stream", True)),
        model=row.get("model"),
    )


def _aiperf_record(row: dict[str, Any]) -> TraceRequest | None:
    metadata, metrics = row["metadata"], row.get("metrics") or {}
    if row.get("error") is not None or "input_sequence_length" not in metrics:
        return None
    output = metrics.get("output_sequence_length") or metrics.get("output_token_count") or {"value": 1}
    return _request(
        float(metadata["request_start_ns"]) / 1e9,
        "aiperf",
        metrics["input_sequence_length"]["value"],
        output["value"],
        None,
    )


def _azure_row(path: Path, row: dict[str, str]) -> TraceRequest:
    at = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26]).timestamp()
    tenant = "code" if "code" in path.name else "conv"
    return _request(at, tenant, row["ContextTokens"], row["GeneratedTokens"], None)


def _slice_row(path: Path, row: dict[str, str]) -> TraceRequest:
    return _request(float(row["t_s"]), row["tenant"], row["in_tokens"], row["out_tokens"], None)


def _burst_row(path: Path, row: dict[str, str]) -> TraceRequest:
    request = _request(
        float(row["Timestamp"]), row["Model"], row["Request tokens"], row["Response tokens"], None
    )
    return replace(request, model=row["Model"])


_TABLES: tuple[tuple[frozenset[str], Callable[[Path, dict[str, str]], TraceRequest]], ...] = (
    (frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}), _azure_row),
    (frozenset({"t_s", "tenant", "in_tokens", "out_tokens"}), _slice_row),
    (frozenset({"Timestamp", "Model", "Request tokens", "Response tokens"}), _burst_row),
)


def _request(at: float, tenant: str, prompt: Any, output: Any, blocks: Any) -> TraceRequest:
    tokens = max(1, int(float(prompt)))
    hashes = tuple(int(block) for block in blocks or ())[: tokens // BLOCK]
    return TraceRequest(at, tenant, tokens, max(1, int(float(output))), blocks=hashes)


def open_text(path: Path) -> TextIO:
    """A file as UTF-8 text, unpacked if its name ends in .gz. Raises OSError."""
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8", newline="")  # the caller closes
    return path.open(encoding="utf-8", newline="")
