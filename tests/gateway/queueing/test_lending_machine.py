"""Two pools, one of which lends to the other, and slots that are taken back: nothing is lost or served twice,
nothing lies idle, the lender's own go first, and nobody is put back more often than the policy says."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.config.snapshot import PriorityClass
from gateway.queueing.scheduler import Item
from gateway.state.overlay import Drain
from tests.gateway.queueing.pools import Client, Pool

PROMPTS = st.sampled_from([1, 50, 500, 1500, 3900, 5000, 30_000])
CLASSES = st.sampled_from(list(PriorityClass))
HOME, LENDER = "home", "lender"


class Holder(Client):
    """A request of one of the pools; when its slot is taken back it is put aside, to be offered again."""

    def __init__(self, machine: "Machine", pool: str, times: int = 0) -> None:
        super().__init__()
        self.machine, self.pool, self.times = machine, pool, times
        self.stopped = False

    @property
    def open(self) -> bool:
        return super().open and not self.stopped

    @property
    def holds(self) -> bool:
        return self.slot is not None and not self.stopped

    def granted(self, slot) -> None:
        super().granted(slot)
        slot.stop = self.stop if self.machine.may_stop else None
        self.machine.check_grant(self)

    def stop(self) -> None:
        assert self.holds, "told to stop twice, or without a slot"
        assert self.slot is not None
        assert self.slot.taken_back
        assert not self.slot.started
        assert self.item.priority is PriorityClass.batch
        assert self.times < self.machine.times, "put back too often"
        self.stopped = True
        self.machine.held.remove(self)
        self.machine.aside.append(self)


class Machine(RuleBasedStateMachine):
    fields: dict = {}  # noqa: RUF012  # each subclass has its own
    times = 0

    @initialize(limit=st.sampled_from([1, 2, 10, None]), may_stop=st.booleans())
    def begin(self, limit, may_stop) -> None:
        self.may_stop = may_stop
        fields = {"preempt": self.times, **self.fields}
        self.home = Pool("ab", in_flight=limit, settings=fields, name=HOME, max_requests=30)
        self.lender = Pool("xy", in_flight=limit, settings=fields, name=LENDER, clock=self.home.clock)
        self.lender.scheduler.lend_to(self.home.scheduler)
        self.pools = {HOME: self.home, LENDER: self.lender}
        self.ledgers = {**self.home.ledgers, **self.lender.ledgers}
        self.limit = limit
        self.clients: list[Holder] = []
        self.held: list[Holder] = []
        self.aside: list[Holder] = []

    # ------------------------------------------------------------------------------------- what happens

    @rule(
        where=st.sampled_from([HOME, HOME, LENDER]),
        prompt=PROMPTS,
        output=st.sampled_from([1, 100, 2000]),
        priority=CLASSES,
        tenant=st.sampled_from("uv"),
        exclude=st.sampled_from(["", "", "", "x", "a"]),
        may=st.sampled_from([True, True, False]),
        streamed=st.sampled_from([True, True, False]),
    )
    def ask(self, where, prompt, output, priority, tenant, exclude, may, streamed) -> None:
        self.offer(
            Holder(self, where),
            arrival=self.home.clock.now,
            prompt_tokens=prompt,
            output_tokens=output,
            priority=priority,
            tenant=tenant,
            exclude=frozenset(exclude),
            lenders=frozenset({LENDER} if may and where == HOME else ()),
            streamed=streamed,
        )

    def offer(self, client: Holder, **fields) -> None:
        self.clients.append(client)
        client.item = Item(granted=client.granted, refused=client.refused, **fields)
        refusal = self.pools[client.pool].scheduler.offer(client.item)
        if refusal is not None:
            client.refused(refusal)

    @precondition(lambda self: self.aside)
    @rule(which=st.integers(0, 99))
    def ask_again(self, which) -> None:
        """What was put aside comes back, to its old place."""
        old = self.aside.pop(which % len(self.aside))
        item = old.item
        client = Holder(self, old.pool, old.times + 1)
        names = (
            "arrival",
            "prompt_tokens",
            "output_tokens",
            "priority",
            "tenant",
            "exclude",
            "lenders",
            "streamed",
        )
        self.offer(client, **{name: getattr(item, name) for name in names}, preempted=client.times)
        assert client.item.key == item.key
        if client.refusal is not None:
            assert client.refusal.reason == "no_replica", "no bound of the line keeps it out"

    @rule(which=st.integers(0, 99))
    def leave(self, which) -> None:
        waiting = [client for client in self.clients if client.open]
        if waiting:
            client = waiting[which % len(waiting)]
            self.pools[client.pool].scheduler.withdraw(client.item)
            client.withdrawn = True

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99), tokens=st.sampled_from([1, 10, 5000]))
    def stream(self, which, tokens) -> None:
        client = self.held[which % len(self.held)]
        client.slot.stop = None
        client.slot.progress(tokens)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99))
    def end(self, which) -> None:
        client = self.held.pop(which % len(self.held))
        client.slot.release()
        client.slot.release()

    @rule(seconds=st.sampled_from([0.001, 0.05, 1.0, 20.0]))
    def time_passes(self, seconds) -> None:
        self.home.clock.tick(seconds)
        self.dispatch()

    def dispatch(self) -> None:
        """As a queue's timer does: only where somebody waits."""
        for pool in self.pools.values():
            if pool.scheduler.next_tick() is not None:
                pool.scheduler.dispatch()

    @rule(replica=st.sampled_from("abxy"), what=st.sampled_from(["avoid", "reached", "drain", "enable"]))
    def replica_changes(self, replica, what) -> None:
        ledger = self.ledgers[replica]
        if what == "avoid":
            ledger.avoid()
        elif what == "reached":
            ledger.reached()
        else:
            ledger.drained = Drain(replica, 1.0, "me") if what == "drain" else None
        ledger.changed()

    @rule()
    def look(self) -> None:
        """Work is conserved over both pools: nobody waits while a replica is idle that it may have."""
        self.dispatch()
        for client in self.clients:
            if not client.open:
                continue
            own = self.pools[client.pool].scheduler
            for view in own.replicas.eligible(client.item.exclude, self.home.clock.now):
                assert view.ledger.in_flight, "idle, while somebody waits who may have it"
            if LENDER in client.item.lenders and not self.lender.scheduler.waiting:
                for name, ledger in self.lender.ledgers.items():
                    if name not in client.item.exclude and ledger.usable():
                        assert ledger.in_flight, "idle, and would be lent"

    # ------------------------------------------------------------------------------- what always holds

    def check_grant(self, client: Holder) -> None:
        """At the moment of a grant; the books have the request in them already."""
        self.held.append(client)
        slot, item = client.slot, client.item
        ledger = slot.ledger
        name = ledger.replica.id
        assert name not in item.exclude
        assert not ledger.closed
        assert self.limit is None or ledger.in_flight <= self.limit
        if name in self.lender.ledgers and client.pool == HOME:
            assert LENDER in item.lenders
            assert not self.lender.scheduler.waiting, "their own go first"
            open_to = 1 if self.limit is None else max(1, self.limit * 0.7)
            assert self.limit is None or ledger.in_flight - 1 < open_to, "room is kept for their own"
        else:
            assert name in self.pools[client.pool].ledgers
        own = self.pools[client.pool].scheduler
        for other in self.clients:
            if other.open and other is not client and other.pool == client.pool:
                same = own._line(other.item) is own._line(item) and other.item.tenant == item.tenant
                if other.item.flow is not None and same:
                    assert other.item.key >= item.key, "overtaken"
                    bound = own.policy.offsets[other.item.priority] + own.policy.slack_cap
                    assert item.arrival <= other.item.arrival + bound

    @invariant()
    def books_are_right(self) -> None:
        """Every request waits in one line, holds one slot, is aside, or has gone."""
        if not hasattr(self, "pools"):
            return
        for name, pool in self.pools.items():
            waiting = [client for client in self.clients if client.open and client.pool == name]
            assert pool.scheduler.waiting == len(waiting)
            assert {id(row.item) for row in pool.scheduler.standings()} == {id(each.item) for each in waiting}
        for name, ledger in self.ledgers.items():
            here = [client for client in self.held if client.replica == name]
            assert ledger.in_flight == len(here)
            assert ledger.unstarted_tokens == sum(
                client.item.prompt_tokens for client in here if client.slot and not client.slot.started
            )
            assert ledger.kv_reserved == sum(client.slot.reserved for client in here if client.slot)
        assert len({id(client) for client in self.held}) == len(self.held)

    def teardown(self) -> None:
        """Everybody ends: the books of both pools are empty."""
        if not hasattr(self, "pools"):
            return
        for client in self.clients:
            if client.open:
                self.pools[client.pool].scheduler.withdraw(client.item)
                client.withdrawn = True
        while self.held:
            self.held.pop().slot.release()
        for pool in self.pools.values():
            assert pool.scheduler.waiting == 0
            for account in pool.scheduler._accounts._accounts.values():
                assert (account.waiting, account.in_flight, account.flows) == (0, 0, [])
            assert not any(pool.scheduler.replicas.batch)
        for ledger in self.ledgers.values():
            assert (ledger.in_flight, ledger.unstarted_tokens, ledger.unstarted_long) == (0, 0, 0)
            assert (ledger.kv_reserved, ledger.kv_seen, ledger.outstanding_tokens) == (0, 0, 0)


class PreemptingMachine(Machine):
    """Much batch work, and interactive requests that want its place."""

    times = 2

    @rule(where=st.sampled_from([HOME, LENDER]), urgent=st.booleans(), streamed=st.booleans())
    def compete(self, where, urgent, streamed) -> None:
        self.offer(
            Holder(self, where),
            arrival=self.home.clock.now,
            prompt_tokens=10 if urgent else 3000,
            output_tokens=10,
            priority=PriorityClass.interactive if urgent else PriorityClass.batch,
            lenders=frozenset({LENDER} if where == HOME else ()),
            streamed=streamed,
        )

    @precondition(lambda self: any(client.item.priority is PriorityClass.interactive for client in self.held))
    @rule()
    def urgent_ones_end(self) -> None:
        """And who was put aside comes back at once."""
        for client in [each for each in self.held if each.item.priority is PriorityClass.interactive]:
            if client in self.held:
                self.held.remove(client)
                client.slot.release()
        while self.aside:
            self.ask_again(0)


class StrictPreemptingMachine(PreemptingMachine):
    times = 1
    fields = {"strict": True, "fair": False, "overdue": "demote"}  # noqa: RUF012


LIMITS = settings(max_examples=60, stateful_step_count=50, deadline=None)

TestLending = Machine.TestCase
TestLending.settings = LIMITS
TestPreempting = PreemptingMachine.TestCase
TestPreempting.settings = LIMITS
TestStrictPreempting = StrictPreemptingMachine.TestCase
TestStrictPreempting.settings = LIMITS
