"""Cutting text where a tokenizer cuts it whatever stands around: at its added tokens.

Hugging Face's `tokenizers` looks for added tokens in the raw text before anything else
(`added_vocabulary.rs`, `extract_and_normalize`: an Aho-Corasick automaton, leftmost and longest) and gives
what lies between to normalizer, pre-tokenizer and model piece by piece. So the tokens of a text are those of
its segments, and one for each added token between them. That is what makes counts of segments worth
remembering.

Bytes are cut, not characters: UTF-8 finds the same places, and what is remembered is keyed by bytes.
"""

import re
from collections.abc import Collection, Iterator

__all__ = ["Splitter", "utf8"]

_SCAN = 64 * 1024
"""Bytes per regex call: a search holds the GIL to its end."""


def utf8(text: str) -> bytes:
    """`text` in UTF-8; lone surrogates, which UTF-8 cannot carry, replaced as tiktoken does."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


class Splitter:
    """Finds added tokens: from left to right, at each place the longest. Immutable."""

    def __init__(self, tokens: Collection[str]) -> None:
        contents = sorted({token.encode() for token in tokens if token})
        self.longest = max(map(len, contents), default=0)
        """Bytes of the longest token; 0 where there is none."""
        self._pattern = re.compile(_longest_of(contents)) if contents else None

    def matches(self, data: bytes, at: int = 0) -> Iterator[tuple[int, int]]:
        """(start, end) of each token in `data`, looked for from `at` on."""
        if self._pattern is None:
            return
        while at < len(data):
            stop = at + _SCAN
            for match in self._pattern.finditer(data, at, stop + self.longest):
                start, end = match.span()
                if start >= stop:
                    break  # the next window's
                yield start, end
                at = end
            at = max(at, stop)


def _longest_of(tokens: list[bytes]) -> bytes:
    """A pattern for the longest of the sorted `tokens` at a place, as a tree: hundreds of reserved ones share
    a beginning, and trying them one by one takes microseconds per byte of hostile text."""
    ends = tokens[0] == b""
    branches: dict[bytes, list[bytes]] = {}
    for token in tokens[ends:]:
        branches.setdefault(token[:1], []).append(token[1:])
    if not branches:
        return b""
    patterns = [re.escape(head) + _longest_of(rests) for head, rests in branches.items()]
    pattern = patterns[0] if len(patterns) == 1 and not ends else b"(?:" + b"|".join(patterns) + b")"
    return pattern + b"?" if ends else pattern
