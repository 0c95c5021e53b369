"""Remembered counts: a conversation that grows pays for its new turn only.

A rendered chat is cut at the tokenizer's added tokens, where counts add up exactly (`segments`). Two
memories:

    segments    text between two added tokens -> its tokens
    heads       text from the beginning to a block's end -> the last cut before it, and the tokens up to there

For the heads, a text is read in blocks of a fixed length with one running hash, so that the digest at the end
of a block stands for everything before it: conversations that share a beginning share its blocks, wherever
they part. The deepest block that is known says where to go on; the rest, less than a block and the new turn,
is cut and looked up by segment. A cut counts for a block only if the longest token could not reach past the
block's end from there, because then nothing that follows can move it.

Keys are digests (BLAKE2b, keyed with random bytes that never leave the process), or the segment itself where
it is shorter. Both memories are bounded in entries, and an entry in bytes. A lookup takes no lock:
dictionaries are safe to share, and what a race could lose is only a remembered count.
"""

import hashlib
import itertools
import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gateway.tokens.counters import HuggingFaceCounter, TiktokenCounter, TokenCounter
from gateway.tokens.ranks import nasty_text
from gateway.tokens.segments import Splitter, utf8

__all__ = ["CacheStatistics", "CountCache", "Recent", "cache_of"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

BLOCK = 2040
"""Bytes of a block. From 2048 on hashlib gives up the GIL, and a busy process takes 5 ms to give it back."""

_DIGEST = 32

ENTRY_BYTES = 320
"""What an entry takes at most, key, value and place in its dictionary; a test measures it."""


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    hits: int = 0
    """Segments and heads found."""
    misses: int = 0
    """Segments counted."""
    bytes_remembered: int = 0
    """Bytes of prompts that were not counted again."""
    bytes_counted: int = 0
    entries: int = 0
    size: int = 0
    """Bytes of memory that the entries take at most."""

    def __add__(self, other: "CacheStatistics") -> "CacheStatistics":
        return CacheStatistics(
            self.hits + other.hits,
            self.misses + other.misses,
            self.bytes_remembered + other.bytes_remembered,
            self.bytes_counted + other.bytes_counted,
            self.entries + other.entries,
            self.size + other.size,
        )


class Recent(Generic[K, V]):
    """What was lately used, at most `entries`: two generations; when the younger is full, the older goes.

    Nearly as good as least-recently-used order, without a lock or a list to keep.
    """

    def __init__(self, entries: int) -> None:
        self._half = max(1, entries // 2)
        self._young: dict[K, V] = {}
        self._old: Mapping[K, V] = {}

    def get(self, key: K) -> V | None:
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        young = self._young
        if len(young) >= self._half:
            self._old, self._young = young, {}
            young = self._young
        young[key] = value

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


def cache_of(counter: TokenCounter) -> "CountCache | None":
    """A cache before `counter`, proved to count as it does; None where nothing is known of its tokenizer.

    Where counts of segments may not add up, a text is remembered only as a whole.
    """
    if isinstance(counter, TiktokenCounter):
        cuts: Sequence[str] | None = [token.content for token in counter.added_tokens]
        around = 0
    elif isinstance(counter, HuggingFaceCounter):
        cuts, around = counter.cuts, counter.around
    else:
        return None
    for splitter in map(Splitter, ((), ()) if cuts is None else (cuts, ())):
        if _adds_up(CountCache(counter, splitter, around=around)):
            return CountCache(counter, splitter, around=around)
    return None


def _adds_up(cache: "CountCache") -> bool:
    """Whether conversations that grow, and every nasty text, count as they do without a cache."""
    marks = [token.content for token in cache.counter.added_tokens[-3:]] or [""]
    texts = nasty_text()
    long = "".join(text[:900] + marks[turn % len(marks)] for turn, text in enumerate(texts))
    texts += [
        f"{marks[0]}{one} {marks[-1]}\n\n{two}{marks[0]}" for one, two in itertools.pairwise(texts[:-1])
    ]
    texts += [long[:BLOCK], long, long + marks[-1] + " more"]
    return all(
        cache.count(text, add_special_tokens=added) == cache.counter.count(text, add_special_tokens=added)
        for added in (False, True)
        for text in texts
    )


class CountCache:
    """Counts texts through a counter, each segment once. Safe to use from several threads."""

    def __init__(
        self,
        counter: TokenCounter,
        splitter: Splitter,
        *,
        around: int = 0,
        entries: int = 65536,
        key: bytes | None = None,
    ) -> None:
        """`splitter`: where the counter's counts add up (`proved_splitter`). `around`: tokens that
        `add_special_tokens` adds to any text. `entries`: of both memories together."""
        self.counter = counter
        self.splitter = splitter
        self._around = around
        self._segments: Recent[bytes, int] = Recent(entries * 3 // 4)
        self._heads: Recent[bytes, tuple[int, int]] = Recent(entries // 4)
        self._key = key or os.urandom(_DIGEST)
        self._books = threading.Lock()
        self._hits = self._misses = self._remembered = self._counted = 0

    def count(self, text: str, *, add_special_tokens: bool = False) -> int:
        """Tokens of `text`, as the counter would count it whole."""
        tokens = self._count(utf8(text), None)
        assert tokens is not None
        return tokens + (self._around if add_special_tokens else 0)

    def remembered(self, text: str, fresh: int, *, add_special_tokens: bool = False) -> int | None:
        """The same if at most `fresh` bytes must be counted for it, else None."""
        tokens = self._count(utf8(text), fresh)
        return None if tokens is None else tokens + (self._around if add_special_tokens else 0)

    def statistics(self) -> CacheStatistics:
        entries = len(self._segments) + len(self._heads)
        with self._books:
            return CacheStatistics(
                self._hits, self._misses, self._remembered, self._counted, entries, entries * ENTRY_BYTES
            )

    def _count(self, data: bytes, fresh: int | None) -> int | None:
        blocks = self._blocks(data)
        at, tokens, known = 0, 0, 0
        hits = misses = counted = 0
        for known in range(len(blocks), 0, -1):
            if (head := self._heads.get(blocks[known - 1])) is not None:
                at, tokens = head
                hits = 1
                break
        else:
            known = 0
        noted = at
        reach = self.splitter.longest
        try:
            # The last segment ends with the text, as if there were a token of no length.
            for start, end in itertools.chain(self.splitter.matches(data, at), [(len(data), len(data))]):
                while known < len(blocks) and (known + 1) * BLOCK < start + reach:
                    if at > noted:
                        self._heads.put(blocks[known], (at, tokens))
                        noted = at
                    known += 1
                if at < start:
                    segment = data[at:start]
                    key = segment if len(segment) < _DIGEST else self._digest(segment)
                    found = self._segments.get(key)
                    if found is None:
                        counted += len(segment)
                        if fresh is not None and counted > fresh:
                            counted -= len(segment)
                            return None
                        misses += 1
                        found = self.counter.count(segment.decode(), add_special_tokens=False)
                        self._segments.put(key, found)
                    else:
                        hits += 1
                    tokens += found
                tokens += end > start
                at = end
        finally:
            with self._books:
                self._hits += hits
                self._misses += misses
                self._counted += counted
                self._remembered += at - counted
        return tokens

    def _blocks(self, data: bytes) -> list[bytes]:
        """A digest of everything up to the end of each whole block. None where nothing is cut anyway."""
        if not self.splitter.longest:
            return []
        running = self._hash(b"head")
        digests = []
        view = memoryview(data)
        for start in range(0, len(data) - BLOCK + 1, BLOCK):
            running.update(view[start : start + BLOCK])
            digests.append(running.digest())
        return digests

    def _digest(self, segment: bytes) -> bytes:
        running = self._hash(b"segment")
        if len(segment) < BLOCK:
            running.update(segment)
        else:
            view = memoryview(segment)
            for start in range(0, len(segment), BLOCK):
                running.update(view[start : start + BLOCK])
        digest: bytes = running.digest()
        return digest

    def _hash(self, person: bytes) -> Any:  # hashlib's type has no public name
        return hashlib.blake2b(digest_size=_DIGEST, key=self._key, person=person)
