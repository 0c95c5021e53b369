"""Whatever happens in whatever order: nothing is lost or served twice, nothing lies idle, nobody is overtaken
without bound, classes keep their order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.config.snapshot import PriorityClass
from gateway.queueing.items import LONG
from gateway.queueing.pacing import AHEAD
from gateway.queueing.scheduler import Item
from gateway.state.overlay import Drain
from tests.gateway.queueing.pools import Client, Pool

PROMPTS = st.sampled_from([1, 50, 500, 1500, 2500, 3900, 5000, 30_000])
CLASSES = st.sampled_from(list(PriorityClass))


class Watched(Client):
    """Checks, at the moment of its grant, that this was fair to those that stay."""

    def __init__(self, machine: "Machine") -> None:
        super().__init__()
        self.machine = machine

    def granted(self, slot) -> None:
        super().granted(slot)
        self.machine.check_grant(self)


class Machine(RuleBasedStateMachine):
    """One pool of three replicas, its clients, and its engines' whims."""

    policy = "lanes"
    fields: dict = {}  # noqa: RUF012  # each subclass has its own

    @initialize(limit=st.sampled_from([1, 2, 5, None]), kv=st.sampled_from([None, 8000, 60_000]))
    def begin(self, limit, kv) -> None:
        self.pool = Pool(
            "abc", self.policy, in_flight=limit, kv_tokens=kv, settings=self.fields, max_requests=50
        )
        self.limit = limit
        self.kv = kv
        self.held: list[Client] = []

    # ------------------------------------------------------------------------------------- what happens

    @rule(
        prompt=PROMPTS,
        output=st.sampled_from([1, 100, 2000]),
        priority=CLASSES,
        tenant=st.sampled_from("xyz"),
        exclude=st.sampled_from(["", "", "", "", "a", "bc"]),
        streamed=st.booleans(),
        budget=st.sampled_from([None, None, 0.5, 30.0]),
    )
    def ask(self, prompt, output, priority, tenant, exclude, streamed, budget) -> None:
        client = Watched(self)
        pool = self.pool
        pool.clients.append(client)
        client.item = Item(
            arrival=pool.clock.now,
            prompt_tokens=prompt,
            output_tokens=output,
            granted=client.granted,
            refused=client.refused,
            tenant=tenant,
            priority=priority,
            exclude=frozenset(exclude),
            streamed=streamed,
            deadline=None if budget is None else pool.clock.now + budget,
        )
        refusal = pool.scheduler.offer(client.item)
        if refusal is not None:
            client.refused(refusal)

    @rule(which=st.integers(0, 99))
    def leave(self, which) -> None:
        waiting = [client for client in self.pool.clients if client.open]
        if waiting:
            client = waiting[which % len(waiting)]
            self.pool.scheduler.withdraw(client.item)
            client.withdrawn = True

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99), tokens=st.sampled_from([0, 1, 10, 5000]))
    def stream(self, which, tokens) -> None:
        slot = self.held[which % len(self.held)].slot
        assert slot is not None
        slot.progress(tokens)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99))
    def end(self, which) -> None:
        client = self.held.pop(which % len(self.held))
        assert client.slot is not None
        client.slot.release()
        client.slot.release()

    @rule(seconds=st.sampled_from([0.001, 0.05, 1.0, 20.0, 700.0]))
    def time_passes(self, seconds) -> None:
        self.pool.tick(seconds)

    @rule(replica=st.sampled_from("abc"), what=st.sampled_from(["avoid", "reached", "drain", "enable"]))
    def replica_changes(self, replica, what) -> None:
        ledger = self.pool.ledgers[replica]
        if what == "avoid":
            ledger.avoid()
        elif what == "reached":
            ledger.reached()
        else:
            ledger.drained = Drain(replica, 1.0, "me") if what == "drain" else None
        ledger.changed()

    @rule()
    def look(self) -> None:
        """After a look at everything, no replica is idle that somebody could use."""
        self.pool.scheduler.dispatch()
        for client in self.pool.clients:
            if client.open:
                for view in self.pool.scheduler.replicas.eligible(client.item.exclude, self.pool.clock.now):
                    assert view.ledger.in_flight, "idle, while somebody waits who may have it"

    # ------------------------------------------------------------------------------- what always holds

    def check_grant(self, client: Client) -> None:
        """At the moment of a grant; the books have the request in them already."""
        self.held.append(client)
        slot, item, policy = client.slot, client.item, self.pool.policy
        assert slot is not None
        ledger = slot.ledger
        now = self.pool.clock.now
        assert ledger.replica.id not in item.exclude
        assert ledger.drained is None
        assert self.limit is None or ledger.in_flight <= self.limit
        assert item.latest >= now, "too late"
        if policy.binding == "late":
            alone = ledger.unstarted_tokens == item.prompt_tokens
            assert alone or ledger.unstarted_tokens <= policy.dose[1]
            assert self.kv is None or ledger.in_flight == 1 or ledger.kv_reserved <= policy.kv_guard * self.kv
        for other in self.pool.clients:
            if other.open and other is not client and self.same_line(other.item, item):
                self.check_overtaken(other, client)

    def same_line(self, one, other) -> bool:
        """Whether the first of the two, by key, had to go first: same sizes, same replicas, same tenant."""
        return (
            one.flow is not None
            and self.pool.scheduler._line(one) is self.pool.scheduler._line(other)
            and (one.tenant == other.tenant or not self.pool.policy.fair)
        )

    def check_overtaken(self, stays: Client, goes: Client) -> None:
        policy = self.pool.policy
        assert stays.item.key >= goes.item.key
        if policy.strict:
            assert stays.item.priority <= goes.item.priority
        elif policy.order == "lanes":
            bound = policy.offsets[stays.item.priority] + policy.slack_cap
            assert goes.item.arrival <= stays.item.arrival + bound

    @invariant()
    def books_are_right(self) -> None:
        """Every client is waiting, served, refused or gone; every slot is in somebody's hands."""
        if not hasattr(self, "pool"):
            return
        waiting = [client for client in self.pool.clients if client.open]
        scheduler = self.pool.scheduler
        assert scheduler.waiting == len(waiting)
        assert {id(row.item) for row in scheduler.standings()} == {id(client.item) for client in waiting}
        assert scheduler.waiting_tokens == sum(client.item.prompt_tokens for client in waiting)
        for name, ledger in self.pool.ledgers.items():
            here = [client for client in self.held if client.replica == name]
            assert ledger.in_flight == len(here)
            assert ledger.unstarted_tokens == sum(
                client.item.prompt_tokens for client in here if client.slot and not client.slot.started
            )
            assert ledger.kv_seen == sum(
                client.item.prompt_tokens + client.slot.streamed for client in here if client.slot
            )
            assert ledger.kv_reserved == sum(client.slot.reserved for client in here if client.slot)

    @invariant()
    def who_is_first_has_no_room(self) -> None:
        """Work is conserved: no replica could take the first of any line, but for those kept for others.

        Where tenants are balanced, the first by key is not always the next; `look` speaks for them.
        """
        if not hasattr(self, "pool") or self.pool.policy.fair or self.pool.policy.reserved:
            return
        pool = self.pool
        firsts: dict = {}
        for client in pool.clients:
            if client.open:
                line = pool.scheduler._line(client.item)
                if line not in firsts or (client.item.key, client.item.number) < firsts[line]:
                    firsts[line] = (client.item.key, client.item.number, client.item)
        for line, (_, _, item) in firsts.items():
            if line.size == LONG:
                continue
            for view in pool.scheduler.replicas.eligible(item.exclude, pool.clock.now):
                ledger = view.ledger
                assert (
                    (self.limit is not None and ledger.in_flight >= view.slots)
                    or (ledger.unstarted_tokens and ledger.unstarted_tokens + item.prompt_tokens > view.dose)
                    or ledger.kv_reserved + item.prompt_tokens + item.output_tokens > view.kv_limit
                    or view is pool.scheduler.replicas.kept
                    or (ledger.in_flight and view.full_until - pool.clock.now > AHEAD[item.lane])
                ), "room, and somebody to use it"

    def teardown(self) -> None:
        """Everybody ends: the books are empty."""
        if not hasattr(self, "pool"):
            return
        for client in self.pool.clients:
            self.pool.scheduler.withdraw(client.item)
            client.withdrawn = client.open
        for client in self.held:
            assert client.slot is not None
            client.slot.release()
        assert self.pool.scheduler.waiting == 0
        for ledger in self.pool.ledgers.values():
            assert (ledger.in_flight, ledger.unstarted_tokens, ledger.unstarted_long) == (0, 0, 0)
            assert (ledger.kv_reserved, ledger.kv_seen, ledger.outstanding_tokens) == (0, 0, 0)
        for account in self.pool.scheduler._accounts._accounts.values():
            assert (account.waiting, account.in_flight, account.flows) == (0, 0, [])


class StrictMachine(Machine):
    fields = {"strict": True, "fair": False}  # noqa: RUF012


class UnfairMachine(Machine):
    fields = {"fair": False, "shed": frozenset()}  # noqa: RUF012


class ReservedMachine(Machine):
    fields = {"reserved": {PriorityClass.interactive: 1}, "overdue": "demote"}  # noqa: RUF012

    @rule()
    def look(self) -> None:
        """Slots that are kept for a class may be idle."""
        self.pool.scheduler.dispatch()


class EarlyMachine(Machine):
    policy = "lmetric"


class SjfMachine(Machine):
    policy = "sjf"


LIMITS = settings(max_examples=60, stateful_step_count=40, deadline=None)

TestLanes = Machine.TestCase
TestLanes.settings = LIMITS
TestStrict = StrictMachine.TestCase
TestStrict.settings = LIMITS
TestUnfair = UnfairMachine.TestCase
TestUnfair.settings = LIMITS
TestReserved = ReservedMachine.TestCase
TestReserved.settings = LIMITS
TestEarly = EarlyMachine.TestCase
TestEarly.settings = LIMITS
TestSjf = SjfMachine.TestCase
TestSjf.settings = LIMITS


def test_the_machine_sees_long_requests():
    """Else its bound on overtaking would say little."""
    pool = Pool("a")
    assert pool.scheduler._line(pool.ask(30_000).item).size == LONG
