"""What an engine says: text as a hash of everything before it.

The next token is a function of the engine's seed and of *all* token ids so far, prompt and answer alike.
Two engines with the same tokenizer say the same thing to the same ids, whatever dialect they speak; one
wrong token in the template, a second BOS, a truncated prompt or an answer that was taken up again in the
wrong place gives different text. A prompt that ends with the beginning of an answer is continued: ids
after the last header of the chat template count as answer.

What is said is drawn from the tokens that are whole words or signs of the script which dominates the last
thing that the user said (Latin, Cyrillic, Han, or code). It means nothing, but it looks like an answer.
How long it gets is drawn from the prompt's hash too: log-normal around a configurable mean, then the end
of turn.

Real vocabularies hold tokens that are only a part of a character. With `fragments` above zero some
characters are said byte by byte: a lead byte, then the continuation bytes that make a valid character, so
that the text as a whole is UTF-8 and no part of it may be decoded alone. If `max_tokens` falls inside such
a character the text ends with a piece of it, as it does on a real engine.
"""

import hashlib
import re
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import NormalDist
from typing import Literal

from backends.simulated.tokens import Detokenizer, EngineTokenizer

__all__ = ["Recital", "Script", "Speaker", "Speech", "Transcript", "dominant_script"]

Script = Literal["latin", "cyrillic", "han", "code"]

_CODE_SIGNS = re.compile(r"```|[{}();=<>_\[\]#\\]|\b(?:def|return|import|const|function|struct|fn|let)\b")
_LEADS: dict[Script, tuple[bytes, ...]] = {
    # Lead bytes whose every completion by `_CONTINUATIONS` is an assigned character.
    "latin": (b"\xc3", b"\xf0"),  # U+00C0..U+00FF, U+1F300..U+1F33F
    "cyrillic": (b"\xd0", b"\xf0"),  # U+0410..U+043F
    "han": (b"\xe5", b"\xe6", b"\xe7"),  # U+5000..U+7FFF
    "code": (b"\xf0",),
}


def dominant_script(text: str) -> Script:
    """The script of most letters in `text`; code if signs of code are more than one in twenty characters."""
    latin = cyrillic = han = 0
    for character in text:
        point = ord(character)
        if 0x4E00 <= point <= 0x9FFF:
            han += 2  # a Han character says about as much as two letters, and is outnumbered by less
        elif 0x0400 <= point <= 0x04FF:
            cyrillic += 1
        elif character.isalpha():
            latin += 1
    if 20 * len(_CODE_SIGNS.findall(text)) > len(text):
        return "code"
    best = max(latin, cyrillic, han)
    if best == han and han:
        return "han"
    return "cyrillic" if best == cyrillic and cyrillic else "latin"


@dataclass(frozen=True, slots=True)
class _Lexicon:
    """The tokens of one script. All are whole pre-tokens, so that the text encodes to the same ids again
    (for Han this holds only where neighbours do not merge)."""

    openers: tuple[int, ...]
    """Words for the first place of an answer: no space before them."""
    words: tuple[int, ...]
    pauses: tuple[int, ...]
    pause_every: int
    """One word in so many is followed by a pause."""


def _lexicons(tokenizer: EngineTokenizer) -> dict[Script, _Lexicon]:
    texts: list[tuple[int, str]] = []
    for token_id, piece in enumerate(tokenizer.pieces):
        if token_id in tokenizer.special_ids:
            continue
        try:
            texts.append((token_id, piece.decode()))
        except UnicodeDecodeError:
            continue  # a part of a character, never said on its own

    plain = [(token_id, text) for token_id, text in texts if text.isascii()]
    foreign = [(token_id, text) for token_id, text in texts if not text.isascii()]

    def matching(pattern: str) -> tuple[int, ...]:
        matches = re.compile(pattern).fullmatch
        within = plain if pattern.isascii() else foreign
        return tuple(token_id for token_id, text in within if matches(text))

    def anything() -> tuple[int, ...]:
        return tuple(token_id for token_id, text in texts if text and text.isprintable())

    def lexicon(openers: str, words: str, pauses: str, pause_every: int) -> _Lexicon:
        found = matching(words) or matching(" ?[A-Za-z]+") or anything()
        return _Lexicon(matching(openers) or found, found, matching(pauses), pause_every)

    return {
        "latin": lexicon("[A-Z][a-z]+", " [a-z]{2,}| a", r"[.,;]", 9),
        "cyrillic": lexicon("[А-Я][а-я]+", " [а-яё]{2,}", r"[.,;]", 8),
        "han": lexicon("[\u4e00-\u9fff]{2,4}", "[\u4e00-\u9fff]{1,4}", "[，。、；]", 6),
        "code": lexicon("[a-z]{3,}", " ?[a-z]{2,}| [A-Z][a-z]+", r"[ (){}\[\];:=.,<>+\-*/\n]+", 2),
    }


class Speaker:
    """The voice of one model. Immutable once built; share it between engines.

    seed: another seed, another model.
    mean_tokens, spread: mean and shape (sigma of the logarithm) of the length of an answer in tokens.
    fragments: the share of places at which a character is said byte by byte, 0 to 1. It needs a
        vocabulary with a token for every byte, as byte-level BPE has.
    """

    def __init__(
        self,
        tokenizer: EngineTokenizer,
        *,
        seed: int = 0,
        mean_tokens: float = 120.0,
        spread: float = 0.6,
        fragments: float = 0.0,
    ) -> None:
        if mean_tokens < 1 or spread < 0 or not 0 <= fragments <= 1:
            raise ValueError("mean_tokens must be at least 1, spread at least 0, fragments within 0 and 1")
        self.tokenizer = tokenizer
        self.seed = seed
        self._median = mean_tokens / exp(spread * spread / 2)
        self._spread = spread
        self.fragments = fragments
        self._header_end = tokenizer.token_to_id("<|end_header_id|>")
        self._header_start = tokenizer.token_to_id("<|start_header_id|>")
        self._lexicons = _lexicons(tokenizer)
        if fragments and not tokenizer.byte_ids.keys() >= {*range(0x80, 0xC0), *b"\xc3\xd0\xe5\xe6\xe7\xf0"}:
            raise ValueError("fragments need a vocabulary with a token for every byte")

    def speak(self, prompt: Sequence[int], *, seed: int | None = None, choice: int = 0) -> "Speech":
        """Begin to answer. `seed` is the request's own, if any; `choice` tells the `n` answers apart."""
        return Speech(self, prompt, seed, choice)

    def _turn(self, ids: Sequence[int]) -> tuple[int, str]:
        """Where the answer begins in `ids`, and the last text of the user."""
        if self._header_end is None or self._header_end not in ids:
            return len(ids), self.tokenizer.decode(ids[-512:])
        last = len(ids) - 1 - list(reversed(ids)).index(self._header_end)
        start = min(last + 2, len(ids))  # the header is followed by one token of blank line
        for header in range(last - 1, -1, -1):
            if ids[header] == self._header_end and self._role(ids, header) == "user":
                return start, self.tokenizer.decode(ids[header + 1 : last])
        return start, self.tokenizer.decode(ids[:start])

    def _role(self, ids: Sequence[int], header_end: int) -> str:
        begin = header_end
        while begin > 0 and ids[begin] != self._header_start:
            begin -= 1
        return self.tokenizer.decode(ids[begin + 1 : header_end]).strip()


class Speech:
    """One answer, token by token."""

    def __init__(self, speaker: Speaker, prompt: Sequence[int], seed: int | None, choice: int) -> None:
        self._speaker = speaker
        self._pieces = speaker.tokenizer.pieces
        start, asked = speaker._turn(prompt)
        self._script: Script = dominant_script(asked)
        self._lexicon = speaker._lexicons[self._script]
        self._opens = speaker._header_end in prompt
        key = struct.pack("<qqq", speaker.seed, -1 if seed is None else seed % (1 << 63), choice)
        self._hash = hashlib.blake2b(key, digest_size=24)
        self._hash.update(array("I", prompt[:start]).tobytes())
        self._length = self._draw_length(self._hash.digest())
        self._hash.update(array("I", prompt[start:]).tobytes())
        self._position = len(prompt) - start
        self._last = prompt[-1] if self._position else None
        self._tail = b"".join(self._pieces[i] for i in prompt[start:][-3:])[-3:]
        self.logprob = 0.0
        """The log-probability that the engine claims for the token said last: below 0, made of the hash."""

    def _draw_length(self, digest: bytes) -> int:
        share = (int.from_bytes(digest[:6], "little") + 0.5) / (1 << 48)
        return max(1, round(self._speaker._median * exp(self._speaker._spread * NormalDist().inv_cdf(share))))

    def next(self, *, may_end: bool = True) -> int:
        """The next token. The end-of-turn token comes when the answer is long enough, unless `may_end` is
        False (`ignore_eos`); a tokenizer without such a token never ends."""
        first, second, third = struct.unpack("<QQQ", self._hash.digest())
        self.logprob = -(third % 4096) / 1024 - 1e-3
        token_id = self._pick(first, second, may_end)
        self._hash.update(struct.pack("<I", token_id))
        self._position += 1
        self._last = token_id
        self._tail = (self._tail + self._pieces[token_id])[-3:]
        return token_id

    def _pick(self, first: int, second: int, may_end: bool) -> int:
        speaker, lexicon = self._speaker, self._lexicon
        if self._tail and self._tail[-1] >= 0x80 and (byte := _continuation(self._tail, first)) is not None:
            return speaker.tokenizer.byte_ids[byte]
        if may_end and self._position >= self._length and speaker.tokenizer.eos_id is not None:
            return speaker.tokenizer.eos_id
        if second % 10_000 < speaker.fragments * 10_000:
            leads = _LEADS[self._script]
            return speaker.tokenizer.byte_ids[leads[first % len(leads)][0]]
        if self._last is None and self._opens:
            return lexicon.openers[first % len(lexicon.openers)]
        paused = self._last in lexicon.pauses
        if lexicon.pauses and not paused and (second >> 20) % lexicon.pause_every == 0:
            return lexicon.pauses[first % len(lexicon.pauses)]
        return lexicon.words[first % len(lexicon.words)]


class Recital:
    """An answer whose words are given: what a grammar leaves, or what the engine was told to say.

    `spelled`: byte by byte, each a token of its own, so that characters, words and stop strings are cut at
    every place where a token can cut them. It needs a vocabulary with a token for every byte of `text`.
    """

    def __init__(self, tokenizer: EngineTokenizer, text: str, *, spelled: bool = False) -> None:
        if spelled:
            ids = [tokenizer.byte_ids[byte] for byte in text.encode()]
        else:
            ids = tokenizer.encode(text, add_special_tokens=False)
        self._ids = iter(ids if tokenizer.eos_id is None else [*ids, tokenizer.eos_id])
        self._last = ids[-1] if ids else 0
        self.logprob = -0.125

    def next(self, *, may_end: bool = True) -> int:
        """The next token; a text that is at its end ends, whatever `may_end` says."""
        return next(self._ids, self._last)


def _continuation(tail: bytes, choice: int) -> int | None:
    """The next byte of the character that `tail` leaves open, or None if it leaves none open."""
    for length in range(1, min(3, len(tail)) + 1):
        lead = tail[-length]
        if lead >= 0xC0:
            need = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            if length >= need:
                return None
            if lead >= 0xF0 and length == 1:
                return 0x9F  # F0 9F 8C xx: weather and landscape pictographs
            if lead >= 0xF0 and length == 2:
                return 0x8C
            if lead == 0xD0:
                return 0x90 + choice % 0x30
            return 0x80 + choice % 0x40
    return None


class Transcript:
    """The text of an answer as it grows, and where a stop string ends it.

    Engines match stop strings on text here; those that cut them off must hold back whatever could still
    become one, and those that leave them in need not.
    """

    def __init__(self, tokenizer: EngineTokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = tuple(text for text in stop if text)
        self._longest = max((len(text) for text in self._stop), default=0)
        self._pending = ""
        self.stopped_by: str | None = None

    def add(self, token_id: int, *, last: bool = False) -> tuple[str, str]:
        """(text, visible): what the token completes, and what a client may see once stop strings are cut.

        With `last` nothing is held back any more, and an incomplete character is dropped. After the call
        `stopped_by` names the stop string that was completed, if one was.
        """
        text = self._detokenizer.add(token_id)
        if not self._stop:
            return text, text
        buffer = self._pending + text
        found = [(buffer.find(stop), stop) for stop in self._stop if stop in buffer]
        if found:
            position, self.stopped_by = min(found)
            self._pending = ""
            return text, buffer[:position]
        keep = 0 if last else self._held_back(buffer)
        self._pending = buffer[len(buffer) - keep :]
        return text, buffer[: len(buffer) - keep]

    def _held_back(self, buffer: str) -> int:
        """Length of the longest end of `buffer` that begins a stop string."""
        for length in range(min(self._longest - 1, len(buffer)), 0, -1):
            end = buffer[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
