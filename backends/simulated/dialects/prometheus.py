"""Prometheus' text format, as far as engines' load metrics need it."""

from collections.abc import Mapping, Sequence
from typing import Literal

from aiohttp import web

__all__ = ["Family", "exposition"]

Family = tuple[str, Literal["gauge", "counter"], Sequence[tuple[Mapping[str, str], float]]]
"""Name, type and samples (labels, value)."""


def exposition(families: Sequence[Family]) -> web.Response:
    """The answer of a metrics endpoint (version 0.0.4 of the format)."""
    lines = []
    for name, kind, samples in families:
        lines.append(f"# TYPE {name} {kind}")
        for labels, value in samples:
            written = ",".join(f'{label}="{text}"' for label, text in labels.items())
            lines.append(f"{name}{{{written}}} {value}" if labels else f"{name} {value}")
    body = "\n".join(lines) + "\n"
    return web.Response(
        body=body.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    )
