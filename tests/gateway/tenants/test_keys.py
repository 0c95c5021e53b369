"""Keys in force: file + overlay, revocations above all; what a history of commands amounts to."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from gateway.config.snapshot import Snapshot
from gateway.errors import BadRequest, Conflict, InvalidKey, NotFound
from gateway.state.store import StateStore
from gateway.tenants.authentication import Authenticator, digest_of
from gateway.tenants.keys import KeyDesk, MadeKey, duration_of, keys_in_force
from tests.gateway.builders import Clock, a_snapshot, a_tenant

TENANTS = [a_tenant("acme", keys=["one", "two"]), a_tenant("globex", keys=["three"])]


class Office:
    """A desk over a store in memory, and the door that its keys open."""

    def __init__(self, store: StateStore) -> None:
        self.clock = Clock(1000.0)
        self.store = store
        self.desk = KeyDesk(store, self.clock)
        self.file: Snapshot = a_snapshot(tenants=TENANTS)
        self.door = Authenticator(None, self.clock)

    def opens(self, key: str) -> str | None:
        """The tenant whose key it is, or None."""
        effective = replace(self.file, keys=keys_in_force(self.file, self.store.read()))
        try:
            return self.door.tenant(effective, b"Bearer " + key.encode())[0].name
        except InvalidKey:
            return None

    def create(
        self, tenant: str = "acme", key_id: str | None = None, lifetime: float | None = None
    ) -> MadeKey:
        return self.desk.create(self.file, tenant, key_id=key_id, lifetime=lifetime, who="me")

    def rotate(self, key_id: str, grace: float = 0.0) -> MadeKey:
        return self.desk.rotate(self.file, key_id, grace=grace, who="me")

    def revoke(self, key_id: str) -> None:
        self.desk.revoke(self.file, key_id, who="me")

    def states(self) -> list[tuple[str, str]]:
        return [(row.id, row.state) for row in self.desk.rows(self.file)]


@pytest.fixture
def office():
    store = StateStore.in_memory()
    yield Office(store)
    store.close()


def test_a_made_key_opens_its_tenants_door(office):
    made = office.create("globex", "laptop")
    assert office.opens(made.key) == "globex"
    assert office.opens("one") == "acme"
    assert made.key not in repr(made)
    assert (made.row.id, made.row.state, made.row.source) == ("laptop", "active", "store")


def test_an_id_is_made_up_from_the_tenant(office):
    first, second = office.create(), office.create()
    assert first.row.id.startswith("acme-")
    assert first.row.id != second.row.id


def test_a_key_expires_on_its_second(office):
    made = office.create(lifetime=10)
    office.clock.tick(9.99)
    assert office.opens(made.key) == "acme"
    office.clock.tick(0.01)
    assert office.opens(made.key) is None
    assert office.states()[-1][1] == "expired"


def test_rotation_with_grace(office):
    old = office.create(key_id="k", lifetime=1000)
    office.clock.tick(100)
    new = office.rotate("k", grace=60)
    assert new.row.expires == office.clock.now + 1000
    assert [office.opens(key.key) for key in (old, new)] == ["acme", "acme"]
    assert office.states()[-2:] == [("k", "retiring"), ("k", "active")]
    office.clock.tick(60)
    assert [office.opens(key.key) for key in (old, new)] == [None, "acme"]


def test_a_key_of_the_file_can_be_rotated_and_revoked(office):
    new = office.rotate("k1", grace=5)
    assert [office.opens(key) for key in ("two", new.key)] == ["acme", "acme"]
    office.revoke("k1")
    assert [office.opens(key) for key in ("two", new.key)] == [None, None]


def test_a_revoked_digest_stays_out_whoever_names_it_later(office):
    """By hash, before any file or store knows it."""
    office.revoke(f"sha256:{digest_of('later')}")
    office.file = a_snapshot(tenants=[a_tenant("acme", keys=["later"])])
    assert office.opens("later") is None


def test_a_new_key_under_a_revoked_files_id_is_another_key(office):
    office.revoke("k1")
    office.file = a_snapshot(tenants=[a_tenant("acme", keys=["one", "fresh"])])
    assert [office.opens(key) for key in ("one", "two", "fresh")] == ["acme", None, "acme"]


def test_a_clock_that_is_set_back_revives_nothing(office):
    made = office.create(key_id="k")
    office.revoke("k")
    office.rotate("k1")
    office.clock.tick(-500)
    assert [office.opens(key) for key in (made.key, "two")] == [None, None]
    assert ("k", "revoked") in office.states()


def test_a_second_rotation_hurries_the_first(office):
    first = office.create(key_id="k")
    second = office.rotate("k", grace=60)
    office.rotate("k", grace=5)
    assert [office.opens(key.key) for key in (first, second)] == ["acme", "acme"]
    office.clock.tick(5)
    assert [office.opens(key.key) for key in (first, second)] == [None, None]


def test_a_key_of_a_tenant_that_is_gone_does_not_work_until_it_is_back(office):
    made = office.create("globex")
    whole, office.file = office.file, a_snapshot(tenants=TENANTS[:1])
    assert office.opens(made.key) is None
    assert office.states()[-1][1] == "no tenant"
    with pytest.raises(Conflict):
        office.rotate(made.row.id)
    office.file = whole
    assert office.opens(made.key) == "globex"


def test_refusals(office):
    office.create(key_id="k")
    for wrong, refuse in (
        (lambda: office.create("nobody"), BadRequest),
        (lambda: office.create(key_id="a b"), BadRequest),
        (lambda: office.create(key_id=""), BadRequest),
        (lambda: office.create(key_id="k"), Conflict),
        (lambda: office.create(key_id="k1"), Conflict),
        (lambda: office.revoke("k0"), Conflict),  # both tenants have one in the file
        (lambda: office.revoke("nothing"), NotFound),
        (lambda: office.rotate("nothing"), NotFound),
    ):
        with pytest.raises(refuse):
            wrong()
    office.revoke("k")
    office.revoke("k")
    for wrong in (lambda: office.rotate("k"), lambda: office.create(key_id="k")):
        with pytest.raises(Conflict):
            wrong()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("15m", 900),
        ("12h", 43200),
        ("30d", 2592000),
        ("2w", 1209600),
        (" 1d ", 86400),
    ],
)
def test_durations(text, seconds):
    assert duration_of(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "1.5h", "1y", "1 d", "1d2h", "9" * 12])
def test_no_durations(text):
    with pytest.raises(ValueError, match="duration"):
        duration_of(text)


class History(RuleBasedStateMachine):
    """Any history of commands, of two processes and restarts, against a model that is a dict of ends."""

    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.here = Office(StateStore.at(self.directory))
        self.there = Office(StateStore.at(self.directory))
        self.there.clock = self.there.door._now = self.there.desk._now = self.here.clock
        self.ends: dict[str, tuple[str, float]] = {}
        """Key in clear -> its id, and when it ends."""

    def teardown(self) -> None:
        self.here.store.close()
        self.there.store.close()
        shutil.rmtree(self.directory)

    def office(self, elsewhere: bool) -> Office:
        return self.there if elsewhere else self.here

    def note(self, made: MadeKey) -> str:
        end = float("inf") if made.row.expires is None else made.row.expires
        self.ends[made.key] = made.row.id, end
        return made.row.id

    def valid(self, key_id: str) -> list[str]:
        now = self.here.clock.now
        return [key for key, (name, end) in self.ends.items() if name == key_id and end > now]

    @rule(target=made, elsewhere=st.booleans(), lifetime=st.none() | st.integers(1, 50))
    def create(self, elsewhere: bool, lifetime: int | None) -> str:
        return self.note(self.office(elsewhere).create(lifetime=lifetime))

    @rule(target=made, key_id=consumes(made), elsewhere=st.booleans(), grace=st.integers(0, 20))
    def rotate(self, key_id: str, elsewhere: bool, grace: int) -> str:
        try:
            new = self.office(elsewhere).rotate(key_id, grace)
        except Conflict:
            return key_id
        for key in self.valid(key_id):
            name, end = self.ends[key]
            self.ends[key] = name, min(end, self.here.clock.now + grace)
        return self.note(new)

    @rule(target=made, key_id=made, elsewhere=st.booleans())
    def revoke(self, key_id: str, elsewhere: bool):
        self.office(elsewhere).revoke(key_id)
        for key, (name, end) in self.ends.items():
            if name == key_id:
                self.ends[key] = name, min(end, self.here.clock.now)
        return multiple()

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.here.clock.tick(seconds)

    @rule()
    def restart(self) -> None:
        self.here.store.close()
        clock = self.here.clock
        self.here = Office(StateStore.at(self.directory))
        self.here.clock = self.here.door._now = self.here.desk._now = clock

    @invariant()
    def both_doors_agree_with_the_model(self) -> None:
        now = self.here.clock.now
        for key, (_, end) in self.ends.items():
            expected = "acme" if now < end else None
            assert self.here.opens(key) == self.there.opens(key) == expected


History.TestCase.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)
TestHistory = History.TestCase


def test_a_rotated_key_keeps_what_the_file_says_of_its_id(office):
    """A key that opted out of brown-outs stays out when it is rotated, and when its end is set."""
    tenant = a_tenant("acme", keys=["one", "two"])
    tenant = replace(tenant, keys=(replace(tenant.keys[0], degrade=False), tenant.keys[1]))
    office.file = a_snapshot(tenants=[tenant])
    new, other = office.rotate("k0", grace=5), office.create()
    found = keys_in_force(office.file, office.store.read())
    assert [found[digest_of(key)][1].degrade for key in (new.key, "one", "two", other.key)] == [
        False,
        False,
        True,
        True,
    ]
