"""What becomes of figures: a file, a page, a comparison with a baseline, an exit code."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.replay.comparing import Comparison
from gateway.replay.figures import Objectives
from gateway.replay.page import as_html
from loadtest.arguments import command_line, settings_of
from loadtest.comparing import compare, regressions

REGRESSED = 3
"""The exit code for what is worse than allowed, or in another order than foreseen."""
VERSION = 2


def written(given: argparse.Namespace, comparison: Comparison, **more: Any) -> dict[str, Any]:
    """The figures as `--json` writes them; latencies of rows in seconds."""
    return {
        "version": VERSION,
        "settings": settings_of(given),
        **more,
        "rows": [row.as_json() for row in comparison.rows],
    }


def read(path: Path) -> dict[str, Any]:
    """Figures that `--json` wrote. Raises ValueError, OSError."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or found.get("version") != VERSION or "rows" not in found:
        raise ValueError(f"{path}: not figures that --json of this version wrote")
    return found


def tell(
    given: argparse.Namespace,
    figures: Mapping[str, Any],
    comparison: Comparison,
    *,
    title: str,
    head: str,
    how: str,
    objectives: Objectives,
) -> int:
    """Write and compare as the options say; the exit code."""
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    if given.html is not None:
        page = as_html(
            comparison,
            settings_of(given),
            command_line(given.arguments),
            title=title,
            head=head,
            how=how,
            objectives=objectives,
        )
        given.html.write_text(page + "\n", encoding="utf-8")
    if given.baseline is None:
        return 0
    return against(read(given.baseline), figures, given.fail_above)


def against(baseline: Mapping[str, Any], now: Mapping[str, Any], bound: float | None) -> int:
    """Print the ratios; 3 where something is worse than `bound` allows."""
    print(f"\n{compare(baseline, now)}")
    if bound is None:
        return 0
    worse = regressions(baseline, now, bound)
    for text in worse:
        print(f"REGRESSION: {text}", file=sys.stderr)
    return REGRESSED if worse else 0
