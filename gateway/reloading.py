"""Reloading routes.yaml: read and checked whole, swapped whole, or the old configuration stays.

Three things ask for it: SIGHUP, the admin API, and the file itself, which is looked at every LOOK seconds.
Looking is by the resolved path, so that a ConfigMap's swap of a symlink is seen, and a change counts once
two looks agree, so that a file is not read while it is written.

Loading, with its tokenizers, happens in threads; the swap is one synchronous step on the loop.
"""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from gateway.config.problems import ConfigInvalid, Problem
from gateway.config.snapshot import Server, Snapshot
from gateway.runtime import Runtime
from gateway.tokens.counters import TokenizerError
from gateway.tokens.counting import Counting

log = logging.getLogger("headgate.config")

LOOK = 0.5
"""Seconds between two looks at the file."""

Load = Callable[[], tuple[Snapshot, tuple[Problem, ...]]]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the configuration came from, and how to read it again."""

    path: Path
    load: Load
    """Reads the file. Raises ConfigInvalid."""
    declared: Server
    """What the file said of the server at the start; flags may have said otherwise."""
    admit: Callable[[Snapshot], None] = field(default=lambda snapshot: None)
    """Raises ValueError for a snapshot that must not run on the addresses there are."""


@dataclass(frozen=True, slots=True)
class ReloadResult:
    at: float
    """Seconds since 1970."""
    by: str
    ok: bool
    hash: str
    """Of the configuration that is in force now."""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Reloader:
    """Loads, builds and hands over new configurations, one at a time."""

    def __init__(
        self,
        source: Source | None,
        running: Callable[[], Runtime],
        adopt: Callable[[Snapshot, Counting], Awaitable[None]],
        warnings: tuple[Problem, ...] = (),
    ) -> None:
        """`adopt` swaps; it must not fail. `warnings` are those of the first load."""
        self._source = source
        self._running = running
        self._adopt = adopt
        self._lock = asyncio.Lock()
        self.loaded_at = time.time()
        """When the configuration in force was loaded, in seconds since 1970."""
        self.warnings = tuple(map(str, warnings))
        """What is odd in the configuration in force."""
        self.last = ReloadResult(self.loaded_at, "start", True, running().snapshot.hash, (), self.warnings)

    @property
    def possible(self) -> bool:
        """Whether there is a file to load again."""
        return self._source is not None

    async def reload(self, by: str) -> ReloadResult:
        """Load the file again, and swap if it is good. Never raises for a file that is not."""
        source = self._source
        if source is None:
            raise RuntimeError("there is no file to load again")
        async with self._lock:
            running = self._running()
            problems: tuple[str, ...]
            warnings: tuple[str, ...] = ()
            try:
                snapshot, warnings = await asyncio.to_thread(_load, source, running.snapshot)
                counting = await asyncio.to_thread(
                    partial(Counting.build, snapshot, previous=running.counting)
                )
            except ConfigInvalid as invalid:
                problems, warnings = _words(invalid.problems), _words(invalid.warnings)
            except (TokenizerError, ValueError, OSError) as error:
                problems = (str(error),)
            except Exception as error:
                log.exception("unexpected error while loading the configuration")
                problems = (f"unexpected {type(error).__name__}; the log has more",)
            else:
                problems = ()
                await self._adopt(snapshot, counting)
                self.loaded_at, self.warnings = time.time(), warnings
            self.last = ReloadResult(
                time.time(), by, not problems, self._running().snapshot.hash, problems, warnings
            )
            self._log(self.last)
            return self.last

    async def watch(self) -> None:
        """Reload when the file has changed, for ever."""
        source = self._source
        if source is None:
            return
        loaded: _Mark | None = None
        if await asyncio.to_thread(_hash, source.path) == self._running().snapshot.hash:
            loaded = await asyncio.to_thread(_mark, source.path)
        before = loaded
        while True:
            await asyncio.sleep(LOOK)
            now = await asyncio.to_thread(_mark, source.path)
            if now == before and now != loaded:
                loaded = now
                await self.reload("file")
            before = now

    def _log(self, result: ReloadResult) -> None:
        fields = {"by": result.by, "hash": result.hash[:12]}
        if result.ok:
            log.info("configuration loaded", extra={"fields": fields})
        else:
            fields["problems"] = "; ".join(result.problems)
            log.error("configuration not loaded, the old one stays", extra={"fields": fields})
        for warning in result.warnings:
            log.warning("configuration: %s", warning)


_Mark = tuple[str, int, int, int] | None
"""Resolved path, inode, time of change in ns, size; None where there is no such file."""


def _mark(path: Path) -> _Mark:
    try:
        resolved = os.path.realpath(path)
        found = os.stat(resolved)
    except OSError:
        return None
    return resolved, found.st_ino, found.st_mtime_ns, found.st_size


def _hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _load(source: Source, running: Snapshot) -> tuple[Snapshot, tuple[str, ...]]:
    """The file's snapshot on the addresses and state there are. Raises ConfigInvalid, ValueError."""
    loaded, problems = source.load()
    server, declared = loaded.server, source.declared
    fixed: tuple[str, ...] = tuple(
        f"server.{name} cannot change while the gateway runs: restart it for that"
        for name in ("listen", "admin", "state")
        if getattr(server, name) != getattr(declared, name)
    )
    limits = server.limits
    stays = {
        name: getattr(running.server.limits, name) for name in ("redis_url", "mode", "timeout", "namespace")
    }
    if any(getattr(limits, name) != value for name, value in stays.items()):
        # What is reserved is settled where it was reserved. No value is shown: one of them has a password.
        where = "server.redis_url and server.limits.mode, timeout_ms and namespace"
        fixed = (*fixed, f"{where} cannot change while the gateway runs: restart it for that")
    kept = replace(
        server,
        listen=running.server.listen,
        admin=running.server.admin,
        state=running.server.state,
        limits=replace(limits, **stays),
    )
    snapshot = replace(loaded, server=kept)
    source.admit(snapshot)
    return snapshot, (*_words(problems), *fixed)


def _words(problems: tuple[Problem, ...]) -> tuple[str, ...]:
    return tuple(map(str, problems))
