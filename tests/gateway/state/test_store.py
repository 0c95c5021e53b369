"""The state store: what it keeps, across processes and restarts, and what it does where it cannot."""

import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from gateway.state.overlay import StoredKey
from gateway.state.store import AUDIT_KEPT, FILE_NAME, StateStore, StateUnusable, Taken


def a_key(key_id: str = "k", digest: str = "d" * 64, **fields) -> StoredKey:
    return StoredKey(
        **{"id": key_id, "tenant": "acme", "digest": digest, "created": 1.0, "expires": None, "who": "me"}
        | fields
    )


def test_everything_outlives_a_restart(tmp_path):
    state = tmp_path / "deep" / "state"
    with closing(StateStore.at(state)) as store:
        assert store.warning is None
        store.add_key(a_key("one", "1" * 64))
        store.add_key(a_key("two", "2" * 64, expires=9.5))
        store.revoke("one", ["1" * 64, "f" * 64], at=2.0, who="you")
        store.drain("r1", at=3.0, who="me")
        store.drain("r1", at=4.0, who="you")
        store.drain("r2", at=5.0, who="me")
        store.enable("r2", at=6.0, who="me")
        before = store.read()
    with closing(StateStore.at(state)) as store:
        after = store.read()
        assert (after.keys, dict(after.revocations), dict(after.drains)) == (
            before.keys,
            dict(before.revocations),
            dict(before.drains),
        )
        assert [key.id for key in after.keys] == ["one", "two"]
        assert set(after.revocations) == {"1" * 64, "f" * 64}
        assert [(drain.who, drain.at) for drain in after.drains.values()] == [("me", 3.0)]
        assert len(store.audit()) == 7
        assert store.audit(1)[0].action == "replicas.enable"


def test_the_file_is_for_its_owner_alone(tmp_path):
    with closing(StateStore.at(tmp_path)) as store:
        store.note("x", at=1.0, who="me")
        for path in tmp_path.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_an_id_is_given_once(tmp_path):
    with closing(StateStore.at(tmp_path)) as store:
        store.add_key(a_key("one", "1" * 64))
        with pytest.raises(Taken):
            store.add_key(a_key("one", "2" * 64))
        assert len(store.read().keys) == 1
        assert [entry.action for entry in store.audit()] == ["keys.create"], "what failed is not audited"


def test_a_revocation_comes_earlier_never_later(tmp_path):
    with closing(StateStore.at(tmp_path)) as store:
        store.add_key(a_key("one", "1" * 64))
        store.rotate_key(a_key("one", "2" * 64), ["1" * 64], 100.0)
        assert store.read().revocations["1" * 64].since == 100.0
        store.revoke("one", ["1" * 64], at=50.0, who="me")
        store.rotate_key(a_key("one", "3" * 64), ["1" * 64], 200.0)
        assert store.read().revocations["1" * 64].since == 50.0


def test_the_version_tells_of_every_write_here_and_elsewhere(tmp_path):
    with closing(StateStore.at(tmp_path)) as one, closing(StateStore.at(tmp_path)) as other:
        overlay = one.read()
        assert one.version() == one.version() == overlay.version
        one.revoke("x", ["1" * 64], at=1.0, who="me")
        assert one.version() != overlay.version
        overlay = one.read()
        assert one.version() == overlay.version
        other.revoke("y", ["2" * 64], at=1.0, who="me")
        assert one.version() != overlay.version
        assert set(one.read().revocations) == {"1" * 64, "2" * 64}


def test_many_writers_lose_nothing(tmp_path):
    """Threads on one store and a second store on the same file."""
    with closing(StateStore.at(tmp_path)) as one, closing(StateStore.at(tmp_path)) as other:

        def write(store: StateStore, start: int) -> None:
            for number in range(start, start + 15):
                store.revoke("x", [f"{number:064x}"], at=1.0, who="me")

        threads = [
            threading.Thread(target=write, args=(store, 100 * number))
            for number, store in enumerate((one, one, other, other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(one.read().revocations) == 60


def test_the_audit_is_bounded(tmp_path):
    with closing(StateStore.in_memory()) as store:
        for number in range(AUDIT_KEPT + 5):
            store.note(str(number), at=1.0, who="me")
        rows = store.audit(2 * AUDIT_KEPT)
        assert (len(rows), rows[-1].action) == (AUDIT_KEPT, "5")


def blocked(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "state"


def test_where_nothing_can_be_written_it_lives_in_memory_and_says_so(tmp_path):
    with closing(StateStore.at(blocked(tmp_path))) as store:
        assert store.warning is not None
        assert "will not outlive" in store.warning
        store.add_key(a_key())
        assert len(store.read().keys) == 1
    with pytest.raises(OSError, match="file"):
        StateStore.at(blocked(tmp_path), must_keep=True)


@pytest.mark.parametrize("clean", [True, False])
def test_what_was_revoked_stays_so_on_a_medium_that_went_read_only(tmp_path, clean, monkeypatch):
    """The file is copied into memory, with what its log still holds."""
    keeper = StateStore.at(tmp_path)
    keeper.revoke("x", ["1" * 64], at=1.0, who="me")
    if clean:
        keeper.close()

    def no_writing(*_: object) -> None:
        raise OSError(30, "Read-only file system", str(tmp_path))

    with monkeypatch.context() as patched:
        patched.setattr("gateway.state.store.os.open", no_writing)
        store = StateStore.at(tmp_path)
    try:
        assert store.warning is not None
        assert set(store.read().revocations) == {"1" * 64}
    finally:
        store.close()
        keeper.close()


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    """Starting without it would bring back what was revoked."""
    (tmp_path / FILE_NAME).write_bytes(b"this is no database, but long enough to be one" * 100)
    with pytest.raises(StateUnusable, match="cannot be read"):
        StateStore.at(tmp_path)


def test_a_newer_file_is_left_alone(tmp_path):
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.commit()
    with pytest.raises(StateUnusable, match="newer"):
        StateStore.at(tmp_path)
