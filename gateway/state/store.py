"""The state store: one SQLite file in `server.state`, shared by the gateway and its command line.

Every method is short and blocking: call it in a thread. A lock makes the store safe for many threads, and
SQLite's own locks make it safe for many processes. Whether another process wrote is told by SQLite's
`data_version`, whether we did by the connection's count of changes: `version` has both.

What was revoked must not come back to life, so a file that is there but cannot be read is an error. Where
nothing can be written the store lives in memory, with what could be read, and `warning` says so.
"""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from types import MappingProxyType

from gateway.state.overlay import AuditEntry, Drain, Overlay, Revocation, StoredKey

log = logging.getLogger("headgate.state")

FILE_NAME = "state.sqlite3"
BUSY_SECONDS = 5.0
"""How long a write waits for another process's."""
WAKES_KEPT = 7
"""Wakes of each pool whose times are remembered."""
AUDIT_KEPT = 10_000
"""Entries; older ones are dropped."""
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    digest TEXT PRIMARY KEY, id TEXT NOT NULL, tenant TEXT NOT NULL,
    created REAL NOT NULL, expires REAL, who TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS revocations (
    digest TEXT PRIMARY KEY, since REAL NOT NULL, at REAL NOT NULL, who TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS drains (replica TEXT PRIMARY KEY, at REAL NOT NULL, who TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS wakes (
    number INTEGER PRIMARY KEY AUTOINCREMENT, pool TEXT NOT NULL, at REAL NOT NULL, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL,
    action TEXT NOT NULL, target TEXT NOT NULL, detail TEXT NOT NULL);
"""


class StateUnusable(Exception):
    """The state file is there, but what it says cannot be known."""


class Taken(Exception):
    """There is a key of this id already."""


class StateStore:
    """Open with `at` or `in_memory`; close when done."""

    def __init__(self, connection: sqlite3.Connection, warning: str | None = None) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.warning = warning
        """Why nothing that is decided now will outlive the process; None where it will."""

    @classmethod
    def in_memory(cls, warning: str | None = None) -> "StateStore":
        connection = _connect(":memory:")
        connection.executescript(_SCHEMA)
        return cls(connection, warning)

    @classmethod
    def at(cls, directory: Path, *, must_keep: bool = False) -> "StateStore":
        """The store in `directory`, made where there is none.

        Where nothing can be written: a store in memory with a `warning`, or OSError if it `must_keep`.
        Raises StateUnusable.
        """
        path = directory / FILE_NAME
        try:
            directory.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's -wal and -shm take its mode
        except OSError as error:
            if must_keep:
                raise
            return cls._unwritable(path, f"{error.strerror}: {error.filename}")
        connection = _connect(path)
        try:
            (known,) = connection.execute("PRAGMA user_version").fetchone()
            if known > SCHEMA_VERSION:
                raise StateUnusable(f"{path} was written by a newer headgate")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a revocation must outlive a power cut
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.OperationalError as error:
            connection.close()
            if must_keep:
                raise OSError(f"{path}: {error}") from error
            return cls._unwritable(path, str(error))
        except sqlite3.DatabaseError as error:
            connection.close()
            raise StateUnusable(f"{path} cannot be read: {error}") from error
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    @classmethod
    def _unwritable(cls, path: Path, why: str) -> "StateStore":
        """A store in memory that begins with what the file says, if there is one."""
        store = cls.in_memory(
            f"the state directory cannot be written ({why}): keys, revocations and drains that are made now "
            "will not outlive this process"
        )
        try:
            if path.stat().st_size:
                _copy(path, store._connection)
        except (FileNotFoundError, NotADirectoryError):
            pass  # nothing was ever kept there
        except (OSError, sqlite3.DatabaseError) as error:
            store.close()
            raise StateUnusable(f"{path} cannot be read: {error}") from error
        return store

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # ------------------------------------------------------------------------------------------- reading

    def version(self) -> tuple[int, int]:
        """Changes whenever this process or another one has written."""
        with self._lock:
            return self._version()

    def read(self) -> Overlay:
        """All that holds now."""
        with self._lock:
            version = self._version()  # first: what is written meanwhile is read again, not missed
            with self._transaction("DEFERRED"):
                keys = self._connection.execute(
                    "SELECT id, tenant, digest, created, expires, who FROM keys ORDER BY created, rowid"
                ).fetchall()
                revoked = self._connection.execute(
                    "SELECT digest, since, at, who FROM revocations"
                ).fetchall()
                drains = self._connection.execute("SELECT replica, at, who FROM drains").fetchall()
        return Overlay(
            keys=tuple(StoredKey(*row) for row in keys),
            revocations=MappingProxyType({row[0]: Revocation(*row) for row in revoked}),
            drains=MappingProxyType({row[0]: Drain(*row) for row in drains}),
            version=version,
        )

    def audit(self, limit: int = 100) -> list[AuditEntry]:
        """Who did what, newest first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT at, who, action, target, detail FROM audit ORDER BY number DESC LIMIT ?", (limit,)
            ).fetchall()
        return [AuditEntry(*row) for row in rows]

    def wakes(self) -> dict[str, list[float]]:
        """By pool: seconds that its last wakes took, oldest first."""
        with self._lock:
            rows = self._connection.execute("SELECT pool, seconds FROM wakes ORDER BY number").fetchall()
        found: dict[str, list[float]] = {}
        for pool, seconds in rows:
            found.setdefault(pool, []).append(seconds)
        return found

    # ------------------------------------------------------------------------------------------- writing

    def note_wake(self, pool: str, seconds: float, *, at: float) -> None:
        """A pool was woken in so many seconds. No administrator's action: the audit does not have it."""
        with self._lock, self._transaction("IMMEDIATE"):
            self._connection.execute(
                "INSERT INTO wakes (pool, at, seconds) VALUES (?, ?, ?)", (pool, at, seconds)
            )
            self._connection.execute(
                "DELETE FROM wakes WHERE pool = ? AND number NOT IN "
                "(SELECT number FROM wakes WHERE pool = ? ORDER BY number DESC LIMIT ?)",
                (pool, pool, WAKES_KEPT),
            )

    def add_key(self, key: StoredKey) -> None:
        """Raises Taken."""
        with self._writing(key.created, key.who, "keys.create", key.id, f"tenant {key.tenant}"):
            if self._connection.execute("SELECT 1 FROM keys WHERE id = ?", (key.id,)).fetchone():
                raise Taken(key.id)
            self._insert(key)

    def rotate_key(self, new: StoredKey, old_digests: Collection[str], until: float) -> None:
        """Add `new`, and revoke the old ones of its id from `until` on."""
        with self._writing(new.created, new.who, "keys.rotate", new.id, f"tenant {new.tenant}"):
            self._insert(new)
            self._revoke(old_digests, until, new.created, new.who)

    def revoke(self, name: str, digests: Collection[str], *, at: float, who: str) -> None:
        """Revoke the keys of these digests from now on, whether or not anybody knows them."""
        with self._writing(at, who, "keys.revoke", name):
            self._revoke(digests, at, at, who)

    def drain(self, replica: str, *, at: float, who: str) -> None:
        """Keep who drained it first."""
        with self._writing(at, who, "replicas.drain", replica):
            self._connection.execute("INSERT OR IGNORE INTO drains VALUES (?, ?, ?)", (replica, at, who))

    def enable(self, replica: str, *, at: float, who: str) -> None:
        with self._writing(at, who, "replicas.enable", replica):
            self._connection.execute("DELETE FROM drains WHERE replica = ?", (replica,))

    def forget_drains(self, replicas: Collection[str], *, at: float, who: str) -> None:
        """Drop the drains of replicas that are gone."""
        for replica in replicas:
            self.enable(replica, at=at, who=who)

    def note(self, action: str, target: str = "", detail: str = "", *, at: float, who: str) -> None:
        """Enter an action into the audit that changes nothing here."""
        with self._writing(at, who, action, target, detail):
            pass

    # ------------------------------------------------------------------------------------------- within

    def _version(self) -> tuple[int, int]:
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return version, self._connection.total_changes

    def _insert(self, key: StoredKey) -> None:
        self._connection.execute(
            "INSERT INTO keys (digest, id, tenant, created, expires, who) VALUES (?, ?, ?, ?, ?, ?)",
            (key.digest, key.id, key.tenant, key.created, key.expires, key.who),
        )

    def _revoke(self, digests: Collection[str], since: float, at: float, who: str) -> None:
        """A revocation can come earlier than was said before, never later; one at once is final."""
        self._connection.executemany(
            "INSERT INTO revocations VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET "
            "since = excluded.since, at = excluded.at, who = excluded.who "
            "WHERE since > at AND (excluded.since < since OR excluded.since <= excluded.at)",
            [(digest, since, at, who) for digest in digests],
        )

    @contextlib.contextmanager
    def _writing(self, at: float, who: str, action: str, target: str, detail: str = "") -> Iterator[None]:
        with self._lock, self._transaction("IMMEDIATE"):
            yield
            self._connection.execute(
                "INSERT INTO audit (at, who, action, target, detail) VALUES (?, ?, ?, ?, ?)",
                (at, who, action, target, detail),
            )
            self._connection.execute(
                "DELETE FROM audit WHERE number <= (SELECT max(number) FROM audit) - ?", (AUDIT_KEPT,)
            )

    @contextlib.contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        self._connection.execute(f"BEGIN {kind}")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.rollback()
            raise


def _connect(database: Path | str, *, uri: bool = False) -> sqlite3.Connection:
    # Transactions are ours: with isolation_level None the module begins none by itself.
    return sqlite3.connect(
        database, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=uri
    )


def _copy(path: Path, into: sqlite3.Connection) -> None:
    """Copy the file at `path`, on a medium that may not be written, into an open database."""
    # Reading a WAL database needs its -shm file. Where nothing can be written and no log is left behind,
    # `immutable` does without.
    log_left = path.with_name(path.name + "-wal")
    mode = "mode=ro" if log_left.exists() and log_left.stat().st_size else "immutable=1"
    source = _connect(f"{path.absolute().as_uri()}?{mode}", uri=True)
    try:
        source.backup(into)
    finally:
        source.close()
    into.executescript(_SCHEMA)
