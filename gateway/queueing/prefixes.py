"""Where a prompt's beginning has been before: an approximate picture of the engines' prefix caches.

Engines that reuse prefixes keep the blocks of past prompts until they need the room. The gateway is not told
which; it remembers what it sent where, as long as its own memory of it lasts. Two signs: the chained hashes
of a prompt's leading blocks, and the session (a session id or OpenAI's `prompt_cache_key`), whose last
request and answer are the beginning of the next.
"""

from collections import OrderedDict
from collections.abc import Mapping

__all__ = ["PrefixIndex"]


class PrefixIndex:
    """Block hash -> replicas that lately got a prompt with this block. The least recently used go first."""

    def __init__(self, block_tokens: int, *, blocks: int = 200_000, sessions: int = 50_000) -> None:
        """`block_tokens` tokens per hash; at most that many `blocks` and `sessions` are remembered."""
        self.block_tokens = block_tokens
        self._most_blocks = blocks
        self._most_sessions = sessions
        self._blocks: OrderedDict[int, dict[str, None]] = OrderedDict()
        self._sessions: OrderedDict[str, tuple[str, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks) + len(self._sessions)

    def hits(self, prompt_tokens: int, prefix: tuple[int, ...], session: str | None) -> Mapping[str, int]:
        """Replica id -> tokens of the prompt that it probably holds; one token is always computed."""
        found: dict[str, int] = {}
        holders: set[str] | None = None
        depth = 0
        for block in prefix:
            known = self._blocks.get(block)
            if not known:
                break
            left = set(known) if holders is None else holders & known.keys()
            for gone in (holders or set()) - left:
                found[gone] = depth * self.block_tokens
            if not left:
                holders = left
                break
            holders, depth = left, depth + 1
        for replica in holders or ():
            found[replica] = depth * self.block_tokens
        if session is not None and (last := self._sessions.get(session)) is not None:
            found[last[0]] = max(found.get(last[0], 0), last[1])
        return {replica: min(tokens, prompt_tokens - 1) for replica, tokens in found.items()}

    def sent(self, replica: str, prompt_tokens: int, prefix: tuple[int, ...], session: str | None) -> None:
        """A prompt goes to a replica."""
        for block in prefix:
            known = self._blocks.get(block)
            if known is None:
                self._blocks[block] = {replica: None}
            else:
                known[replica] = None
                self._blocks.move_to_end(block)
        while len(self._blocks) > self._most_blocks:
            self._blocks.popitem(last=False)
        if session is not None:
            self._sessions[session] = (replica, prompt_tokens)
            self._sessions.move_to_end(session)
            if len(self._sessions) > self._most_sessions:
                self._sessions.popitem(last=False)

    def forget(self, replica: str) -> None:
        """The replica lost its cache: it was restarted."""
        for known in self._blocks.values():
            known.pop(replica, None)
        for session in [key for key, last in self._sessions.items() if last[0] == replica]:
            del self._sessions[session]
