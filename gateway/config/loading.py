"""From a file to a snapshot, or to everything that is wrong with the file.

    bytes --positions--> tree with lines --positions--> values, variables replaced
          --reading--> schema models --checking--> findings --building--> Snapshot

A file whose syntax is broken has that one problem. Any other file has all its problems told at once, from
all the steps. Nothing is started, connected to or downloaded; files that the configuration names are
looked for, and those of secrets are read.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from backends.contract import EngineRegistry
from gateway.config.building import build
from gateway.config.checking import check
from gateway.config.positions import MAX_BYTES, Unreadable, parse, values
from gateway.config.problems import ConfigInvalid, Problem, Report
from gateway.config.reading import read
from gateway.config.snapshot import Snapshot

__all__ = ["ConfigInvalid", "Problem", "load", "load_with_warnings"]


def load(
    path: str | os.PathLike[str],
    registry: EngineRegistry,
    *,
    environ: Mapping[str, str] = os.environ,
    force_open: bool = False,
) -> Snapshot:
    """The snapshot of the file at `path`.

    `force_open` permits `authentication: off` on an address that others can reach. Raises ConfigInvalid,
    with every problem, and nothing else.
    """
    return load_with_warnings(path, registry, environ=environ, force_open=force_open)[0]


def load_with_warnings(
    path: str | os.PathLike[str],
    registry: EngineRegistry,
    *,
    environ: Mapping[str, str] = os.environ,
    force_open: bool = False,
    content: bytes | None = None,
) -> tuple[Snapshot, tuple[Problem, ...]]:
    """As `load`, with what is allowed but probably not meant. ConfigInvalid carries the warnings too.

    `content` is read in place of the file, as if it were there.
    """
    file = Path(path)
    content = _content(file) if content is None else content
    try:
        document = parse(content)
    except Unreadable as error:
        at = error.position
        raise ConfigInvalid([Problem(at.line, at.column, "", error.message, source=file.name)]) from None
    report = Report(file.name, document)
    data, variable_faults = values(document, environ)
    for fault in (*document.faults, *variable_faults):
        if fault.spoils:
            report.spoil(fault.path, fault.message, at=fault.position)
        else:
            report.error(fault.path, fault.message, at=fault.position)
    base = Path(os.path.abspath(file)).parent
    read_file = read(data, document, report)
    findings = check(read_file, report, registry, base, force_open=force_open)
    if report.failed:
        raise ConfigInvalid(report.errors, report.warnings)
    digest = hashlib.sha256(content).hexdigest()
    return build(read_file, findings, source=str(file), digest=digest, base=base), report.warnings


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigInvalid([Problem(0, 0, "", f"cannot be read: {reason}", source=file.name)]) from None
