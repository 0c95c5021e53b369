"""Where a prompt's beginning has been before: an approximate picture of the engines' prefix caches.

Engines that reuse prefixes keep the blocks of past prompts until they need the room. The gateway is not told
which; it remembers what it sent where, as long as its own memory of it lasts. Two signs: the chained hashes
of a prompt's leading blocks, and the session (`x-session-id`, OpenAI's `prompt_cache_key`), whose last
request and answer are the beginning of the next. Blocks know better: the session only speaks for what is
behind them, or where there are none.

What an engine says of a prompt afterwards (`cached_tokens`) puts the picture right. Each replica has a
*trust*, the part of what was expected of it that was there, and what is expected next is as much less; a
replica that had nothing of what was expected three times running was restarted, and is forgotten.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping

__all__ = ["MOST_BLOCKS", "PrefixIndex"]

MOST_BLOCKS = 200_000
"""Remembered; about 20 MB."""

LEARN = 0.2
"""Part that one answer has in a replica's trust."""
LEAST = 0.05
"""Trust does not fall below this, or nothing could raise it again."""
MISSES = 3
"""Times running that nothing was there, after which a replica is taken to have been restarted."""
BITS = 256
"""Replicas, and times that one was forgotten, before all blocks are."""


class PrefixIndex:
    """Block hash -> replicas that lately got a prompt with this block.

    Replicas are bits of an int, so that a block costs a hundred bytes, and a replica is forgotten by giving
    it another bit. Blocks are kept in two generations: when the younger is full, the older goes.
    """

    def __init__(self, block_tokens: int, *, blocks: int = MOST_BLOCKS, sessions: int = 50_000) -> None:
        """`block_tokens` tokens per hash; at most that many `blocks` and `sessions` are remembered."""
        self.block_tokens = block_tokens
        self._half = max(1, blocks // 2)
        self._most_sessions = sessions
        self._young: dict[int, int] = {}
        self._old: Mapping[int, int] = {}
        self._sessions: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._bits: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._used = 0
        self._trust: dict[str, float] = {}
        self._misses: dict[str, int] = {}
        self._telling: set[str] = set()
        """Replicas that have told of cached tokens."""

    def __len__(self) -> int:
        return len(self._young) + len(self._old) + len(self._sessions)

    def hits(
        self, prompt_tokens: int, prefix: tuple[int, ...], session: str | None, block_tokens: int = 0
    ) -> Mapping[str, int]:
        """Replica id -> tokens of the prompt that it probably holds; one token is always computed.

        `block_tokens`: tokens per block of this prompt, where that differs from what is usual.
        """
        found: dict[str, int] = {}
        each = block_tokens or self.block_tokens
        young, old = self._young, self._old
        holders, depth = -1, 0
        for block in prefix:
            known = young.get(block) or old.get(block, 0)
            left = holders & known
            if depth and left != holders:
                for replica in self._named(holders ^ left):
                    found[replica] = depth * each
            holders = left
            if not left:
                break
            depth += 1
        if depth and holders:
            for replica in self._named(holders):
                found[replica] = depth * each
        if session is not None and (last := self._sessions.get(session)) is not None:
            bit, tokens = last
            known_as = self._names.get(bit)
            if known_as is not None and (not prefix or found.get(known_as) == len(prefix) * each):
                found[known_as] = max(found.get(known_as, 0), tokens)
        if not found:
            return found
        trust = self._trust
        return {
            replica: int(min(tokens, prompt_tokens - 1) * trust.get(replica, 1.0))
            for replica, tokens in found.items()
        }

    def sent(self, replica: str, prompt_tokens: int, prefix: tuple[int, ...], session: str | None) -> None:
        """A prompt goes to a replica."""
        bit = self._bits.get(replica) or self._new_bit(replica)
        for block in prefix:
            young = self._young
            known = young.get(block)
            if known is None:
                if len(young) >= self._half:
                    self._old, self._young = young, {}
                    young = self._young
                young[block] = self._old.get(block, 0) | bit
            else:
                young[block] = known | bit
        if session is not None:
            self._sessions[session] = (bit, prompt_tokens)
            self._sessions.move_to_end(session)
            if len(self._sessions) > self._most_sessions:
                self._sessions.popitem(last=False)

    def told(self, replica: str, expected: int, cached: int | None) -> None:
        """An engine said how much of a prompt it had; `expected`: what `hits` gave for it.

        None: it said nothing. Of one that has told before, that means none (vLLM leaves a zero out).
        """
        if cached is not None:
            self._telling.add(replica)
        elif replica not in self._telling:
            return
        if expected <= 0:
            return
        trust = self._trust.get(replica, 1.0)
        held = min(1.0, trust * (cached or 0) / expected)
        self._trust[replica] = max(LEAST, trust + LEARN * (held - trust))
        misses = 0 if cached else self._misses.get(replica, 0) + 1
        self._misses[replica] = misses
        if misses == MISSES:
            self.forget(replica)

    def forget(self, replica: str) -> None:
        """The replica lost its cache: it was restarted."""
        bit = self._bits.pop(replica, None)
        if bit is not None:
            del self._names[bit]

    def trust(self, replica: str) -> float:
        """Part of what is remembered of a replica that it still has, as far as it tells; 0.05 to 1."""
        return self._trust.get(replica, 1.0)

    def _new_bit(self, replica: str) -> int:
        if self._used == BITS:  # bits of the forgotten stay in the blocks
            self._young, self._old, self._bits, self._names, self._used = {}, {}, {}, {}, 0
            self._sessions.clear()
        bit = 1 << self._used
        self._used += 1
        self._bits[replica] = bit
        self._names[bit] = replica
        return bit

    def _named(self, bits: int) -> Iterator[str]:
        names = self._names
        while bits > 0:
            bit = bits & -bits
            if (name := names.get(bit)) is not None:
                yield name
            bits ^= bit
