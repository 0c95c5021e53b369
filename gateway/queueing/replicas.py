"""The replicas of a pool as their scheduler sees them: which may be chosen, and what room each has.

All from the gateway's own ledgers. What changes slowly (speeds, doses, weights, limits) is derived anew every
REFRESH seconds; what a ledger knows itself is read as it is.
"""

from collections.abc import Sequence

from gateway.config.snapshot import Policy
from gateway.fleet.ledger import ReplicaLedger, Slot
from gateway.fleet.step_model import StepModel
from gateway.queueing.items import INFINITE, LONG, Item
from gateway.queueing.long_set import LongSet
from gateway.queueing.pacing import AHEAD, fed
from gateway.queueing.placements import PLACEMENTS, View
from gateway.queueing.prefixes import MOST_BLOCKS, PrefixIndex

__all__ = ["Replicas"]

REFRESH = 0.5
"""Seconds for which what is derived from a replica's ledger holds."""
SLOTS = 256
"""Requests at a time of a replica whose limit is not known: what engines run by default."""
SLOW_START = 30.0
"""Seconds in which a replica that joined or came back grows from a tenth of its weight to all of it."""
CACHE = 500_000
"""Tokens that a replica's cache is taken to hold where nobody says: an 8B model's on an 80 GB GPU."""


class Replicas:
    """The views of a pool's replicas, and the questions that a scheduler asks about their room."""

    def __init__(
        self,
        ledgers: Sequence[ReplicaLedger],
        policy: Policy,
        now: float,
        *,
        lanes: bool,
        in_flight: int | None,
        kv_tokens: int | None,
        pace: StepModel,
        prefixes: PrefixIndex | None,
        adapters: int | None,
    ) -> None:
        """The keywords are the scheduler's; `lanes`: whether long prompts have replicas of their own."""
        self.policy = policy
        self.pace = pace
        self.views = tuple(View(ledger, i) for i, ledger in enumerate(ledgers))
        self.by_ledger = {view.ledger: view for view in self.views}
        self.late = policy.binding == "late"
        self.lanes = lanes
        self.paced = lanes and policy.pace
        self.reserved = bool(policy.reserved)
        self.long_set = LongSet(policy.long_margin)
        self.kept: View | None = None
        """Closed to all but long prompts, until it has got one."""
        self.capacity = 0.0
        """Replica-seconds per second that they do."""
        self.fastest = 1.0
        self.total_slots = 0.0
        self.expecting = False
        """Some of them have prompts of answers that are not streamed."""
        self.batch: tuple[dict[Slot, None], ...] = tuple({} for _ in self.views)
        """Per replica, oldest first: slots that may be taken back if they have no first token."""
        self.refresh_at = -INFINITE
        self._in_flight = in_flight
        self._kv_tokens = kv_tokens
        self._adapters = adapters
        self._placement = PLACEMENTS[policy.placement]()
        self.prefixes = self._remembering(prefixes)
        self.refresh(now)

    def _remembering(self, earlier: PrefixIndex | None) -> PrefixIndex:
        """No more is remembered than the replicas' caches can hold, where that is known."""
        each = self.policy.prefix_tokens
        if earlier is not None and earlier.block_tokens == each:
            return earlier
        if not each:
            return PrefixIndex(1)
        held = len(self.views) * (CACHE if self._kv_tokens is None else self._kv_tokens)
        return PrefixIndex(each, blocks=min(MOST_BLOCKS, held // each))

    def expire(self, now: float) -> None:
        """Prompts of answers that are not streamed, whose predicted time has come, have been read."""
        for view in self.views:
            view.ledger.expire(now)
        self.expecting = any(view.ledger.next_expected() is not None for view in self.views)

    def refresh(self, now: float) -> None:
        """Derive anew what changes slowly: speeds, doses, limits."""
        self.refresh_at = now + REFRESH
        policy = self.policy
        capacity = slots = 0.0
        for view in self.views:
            ledger = view.ledger
            model = ledger.model
            view.slowness = model.slowness / self.pace.slowness
            view.token_s, view.attention_s = model.token_s, model.attention_s
            view.step_s, view.sequence_s, view.kv_s = model.step_s, model.sequence_s, model.kv_s
            warm = 1.0
            if ledger.back_since != view.back_since:  # it was away: what it held may be gone
                view.back_since = ledger.back_since
                self.prefixes.forget(ledger.replica.id)
                ledger.adapters.clear()
            if ledger.back_since is not None:
                warm = min(max(0.1, (now - ledger.back_since) / SLOW_START), 1.0)
            view.weight = ledger.replica.weight * warm
            least, most = policy.dose
            view.dose = min(max(1.5 * policy.tpot_target / model.token_s, least), most)
            limit = INFINITE if self._in_flight is None else self._in_flight
            if self._in_flight is not None:  # what others have sent there takes room too
                limit = max(1, self._in_flight - ledger.reported.foreign(now))
            view.slots = limit if warm == 1.0 else max(1.0, min(limit, SLOTS) * warm)
            view.slots_over = max(1.0, min(limit, SLOTS) * (1 - policy.headroom))
            if self.late and self._kv_tokens is not None:
                view.kv_limit = policy.kv_guard * self._kv_tokens
                view.kv_over = view.kv_limit * (1 - policy.headroom)
            if not ledger.closed and not ledger.cooling():
                capacity += 1 / view.slowness
                slots += min(limit, SLOTS)
        self.capacity = max(capacity, 1e-3)
        self.total_slots = slots
        self.fastest = min(view.slowness for view in self.views)

    def size_long_set(self, now: float) -> None:
        usable = [view for view in self.views if view.ledger.usable()]
        self.long_set.resize(now, usable or self.views)

    def eligible(self, exclude: frozenset[str], now: float) -> list[View]:
        """Replicas that may be chosen: neither drained, on hold nor excluded; avoided ones where there is no
        other."""
        well: list[View] = []
        left: list[View] = []
        for view in self.views:
            ledger = view.ledger
            if ledger.closed or (exclude and ledger.replica.id in exclude):
                continue
            (left if ledger.ready is False or now < ledger.avoid_until else well).append(view)
        return well or left

    def fits(
        self, view: View, item: Item, now: float, *, over: bool = False, taken: int = 0, cache: int = 0
    ) -> bool:
        """Whether the unstarted prompts, the cache and the pace of the replica leave room for `item`, once so
        many of those tokens are taken back.

        `over`: its tenant holds more than its share, and may not run ahead of others' long prompts.
        """
        ledger = view.ledger
        ahead = AHEAD[LONG if over else item.lane]
        if self.paced and not taken and ledger.in_flight and view.full_until - now > ahead:
            return False
        pending = ledger.unstarted_tokens - taken
        if pending > 0:
            prompt = item.prompt_tokens
            hit = item.hits.get(ledger.replica.id, 0) if item.hits else 0
            if pending + prompt - hit > view.dose * (1 + 3 * hit / prompt if hit else 1):
                return False
        return (
            ledger.kv_reserved - cache + item.prompt_tokens + item.output_tokens <= view.kv_limit
            or not ledger.in_flight
        )

    def feed(self, view: View, item: Item, uncached: int, now: float, *, pressed: bool) -> None:
        """`item` is sent there. `pressed`: requests are being refused for want of time.

        Where some are refused anyway, to refuse a few more of the longest beats being slow for all.
        """
        if self.paced:
            target = self.policy.tpot_long if view.long and not pressed else self.policy.tpot_target
            item.fill = fed(view, now, uncached * (view.token_s + view.attention_s * uncached), target)

    def coming(self, exclude: frozenset[str]) -> bool:
        """Whether a replica is being warmed up, and so worth waiting for."""
        return any(
            view.ledger.closed and not view.ledger.absent and view.ledger.replica.id not in exclude
            for view in self.views
        )

    def slots_for(self, view: View, item: Item) -> float:
        """Slots of the replica for this class: all, less those kept for more urgent ones."""
        slots = view.slots
        for priority, kept in self.policy.reserved.items():
            if priority > item.priority:
                slots -= max(0, kept - view.ledger.by_class[priority])
        return slots

    def open_to_over(self, view: View) -> bool:
        """Whether a tenant above its share may use the replica."""
        return view.ledger.in_flight < view.slots_over and view.ledger.kv_reserved < view.kv_over

    def in_set(self, view: View, item: Item) -> bool:
        """Whether a long prompt may go there: a replica of the long set, idle, or with most of it cached."""
        return (
            view.long
            or not view.ledger.in_flight
            or bool(item.exclude)  # its second attempt
            or (bool(item.hits) and 2 * item.hits.get(view.ledger.replica.id, 0) >= item.prompt_tokens)
        )

    def place(self, item: Item, now: float, *, over: bool) -> View | None:
        """The best replica with room for `item`; None where there is none."""
        exclude = item.exclude
        late, long = self.late, item.long
        kept = None if long else self.kept
        found: list[View] = []
        avoided: list[View] = []
        for view in self.views:
            ledger = view.ledger
            if ledger.in_flight >= view.slots or view is kept or ledger.closed:
                continue
            if late and not self.fits(view, item, now, over=over):
                continue
            if exclude and ledger.replica.id in exclude:
                continue
            if long and not self.in_set(view, item):
                continue
            if over and not self.open_to_over(view):
                continue
            if self.reserved and ledger.in_flight >= self.slots_for(view, item):
                continue
            (avoided if ledger.ready is False or now < ledger.avoid_until else found).append(view)
        if not found and avoided and avoided[0] in self.eligible(exclude, now):
            found = avoided  # there is no other, with room or without
        if self.lanes and not long and len(found) > 1:
            found = _outside(found)
        if len(found) < 2:
            return found[0] if found else None
        return self._placement.choose(item, found)

    def may_lend(self, view: View) -> bool:
        """Whether a replica is idle enough: no long prompt about to be read, and room for those to come."""
        return self.open_to_over(view) and not view.ledger.unstarted_long and view.ledger.usable()

    def takes(self, view: View, item: Item, now: float) -> bool:
        """Whether a replica that may be lent has room for this one."""
        ledger = view.ledger
        return not (
            ledger.replica.id in item.exclude
            or (self.late and not self.fits(view, item, now))
            or (item.long and not self.in_set(view, item))
            or (self.reserved and ledger.in_flight >= self.slots_for(view, item))
        )

    def cheapest(self, item: Item, now: float) -> tuple[View, list[Slot]] | None:
        """Where the fewest unstarted tokens must go for `item` to fit, and whose slots; None: nowhere."""
        best: tuple[int, View, list[Slot]] | None = None
        for view in self.eligible(item.exclude, now):
            if (item.long and not self.in_set(view, item)) or (view is self.kept and not item.long):
                continue
            victims = self.victims(view, item, now)
            tokens = sum(slot.unstarted_tokens for slot in victims)
            if victims and (best is None or tokens < best[0]):
                best = tokens, view, victims
        return None if best is None else best[1:]

    def victims(self, view: View, item: Item, now: float) -> list[Slot]:
        """The newest slots of batch requests that must go for `item` to fit; empty where it never does."""
        ledger = view.ledger
        victims: list[Slot] = []
        tokens = cache = 0
        for slot in reversed(self.batch[view.index]):
            if slot.started or slot.stop is None:
                continue
            victims.append(slot)
            tokens += slot.unstarted_tokens
            cache += slot.reserved
            if ledger.in_flight - len(victims) < view.slots and (
                not self.late or self.fits(view, item, now, taken=tokens, cache=cache)
            ):
                return victims
        return []

    def note_adapter(self, held: dict[str, float], adapter: str, now: float) -> None:
        """An adapter is used. Where a replica holds so few, the one that was unused for longest goes."""
        held.pop(adapter, None)
        held[adapter] = now
        if self._adapters is not None and len(held) > self._adapters:
            del held[next(iter(held))]

    def keep_for(self, item: Item, now: float) -> None:
        """It is a long request's turn, and there is no room: close the replica that will soonest have it."""
        views = [view for view in self.eligible(item.exclude, now) if view.long]
        if len(views) > 1:
            self.kept = min(views, key=lambda view: view.ledger.unstarted_tokens * view.token_s)

    def preference(self, exclude: frozenset[str], now: float) -> list[View]:
        """Replicas that may be chosen, best first for a small request, whether or not they have room."""
        return sorted(
            self.eligible(exclude, now),
            key=lambda view: (view.ttft(1) / view.weight, view.ledger.load(), view.ledger.in_flight,
                              view.ledger.requests_total / view.ledger.replica.weight),
        )  # fmt: skip

    def has_room(self, view: View) -> bool:
        """Whether a small request could be sent to the replica now, by the ledger alone."""
        ledger = view.ledger
        return (
            not ledger.closed
            and ledger.in_flight < view.slots
            and (not self.late or ledger.unstarted_tokens <= 0 or ledger.unstarted_tokens < view.dose)
            and (ledger.kv_reserved < view.kv_limit or not ledger.in_flight)
        )


def _outside(views: list[View]) -> list[View]:
    """For a short request: replicas outside the long set; else those without an unstarted long prompt."""
    outside = [view for view in views if not view.long]
    if outside:
        return outside
    clear = [view for view in views if not view.ledger.unstarted_long]
    return clear or views
