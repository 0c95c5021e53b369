"""What kind of text it is, and how long in bytes: the two things that a number of tokens hangs on.

Texts of one kind have about the same number of bytes in a token; of different kinds, up to ten times as many.
The kind is found without a loop over characters: a few slices are turned into bytes, each byte into bits that
say what it is, and the bits are counted all at once. 2,000 characters are looked at, evenly spread, from a
starting point that nobody can foresee, so that nothing hides between them. That costs 10 us, whatever the
length.

    words:latin      most is in lower case, some are vowels, every few letters there is a space
    code:latin, symbols:latin, figures:latin
                     the same, with more and more digits, capitals and punctuation: code, tables, logs
    dense:latin      no spaces, or no vowels: base64, hashes, one endless word, random letters
    blank            mostly spaces and line ends
    cyrillic:4, han:3, ...   other scripts, and how many quarters of the bytes are outside ASCII

The kinds need not be right, only alike within: what is learned of a kind has its spread measured
(`learning`), and a kind that mixes unlike texts has a wide one.
"""

from collections.abc import Callable, Sequence

import msgspec

from gateway.tokens.counters import utf8_length

__all__ = ["SAMPLE", "Measured", "measure"]

SAMPLE = 2048
"""Characters that are looked at."""
SLICES = 16
EXACT = 16 * 1024
"""Characters outside ASCII up to which bytes are counted (10 us); of longer texts they are projected."""

VOWELS = b"aeiouyAEIOUY"
LETTERS = bytes(range(ord("a"), ord("z") + 1))
BLANKS = b" \t\r\n"
CLASSES = bytes((byte in BLANKS) + 2 * (byte in LETTERS) + 4 * (byte in VOWELS) for byte in range(256))
"""What a byte is, as bits. A text translated by this table and read as one number tells how many there are of
each by its population count. To delete or count bytes takes four times as long: that branches at every one of
them, and a processor cannot foresee text."""
IS_BLANK, IS_LETTER, IS_VOWEL = (
    int.from_bytes(bytes([bit]) * 4 * SAMPLE, "little") for bit in (1, 2, 4)
)  # of as many bytes as a sample may have
ASCII = bytes(range(128))
TAILS = bytes(range(0x80, 0xC0))
"""Bytes of a character after its first."""

LEADS: Sequence[tuple[str, bytes]] = (
    ("latin", bytes(range(0xC2, 0xCA))),
    ("greek", b"\xcd\xce\xcf"),
    ("cyrillic", b"\xd0\xd1\xd2\xd3"),
    ("hebrew", b"\xd6\xd7"),
    ("arabic", b"\xd8\xd9\xda\xdb"),
    ("indic", b"\xe0"),
    ("symbols", b"\xe2\xef"),
    ("kana", b"\xe3"),
    ("han", bytes(range(0xE4, 0xEA))),
    ("hangul", b"\xea\xeb\xec\xed"),
    ("emoji", b"\xf0"),
)
"""Scripts by the first bytes of their characters in UTF-8; about, for blocks are not cut at these bytes."""


class Measured(msgspec.Struct, frozen=True, gc=False):
    """A text as far as its length in tokens hangs on it."""

    kind: str
    """One of a closed set."""
    size: int
    """Bytes in UTF-8; of a long text outside ASCII, as projected from a sample."""


def measure(text: str, random: Callable[[], float]) -> Measured:
    """Look at `text`. `random` gives numbers from 0 up to 1."""
    seen = text if len(text) <= SAMPLE else _sample(text, random())
    encoded = seen.encode("utf-8", "surrogatepass")
    if text.isascii() or len(text) <= EXACT:
        size = utf8_length(text)
    else:
        size = round(len(text) * len(encoded) / len(seen))
    return Measured(_kind(encoded), size)


def _sample(text: str, phase: float) -> str:
    stride, width = len(text) / SLICES, SAMPLE // SLICES
    first = phase * (stride - width)
    starts = [int(first + index * stride) for index in range(SLICES)]
    return "".join([text[start : start + width] for start in starts])


def _kind(encoded: bytes) -> str:
    length = len(encoded)
    if not length:
        return "blank"
    plain = length if encoded.isascii() else length - len(encoded.translate(None, ASCII))
    quarters = 4 - 4 * plain // length  # 0: all ASCII, or but for less than a quarter
    if quarters == 0 or (quarters == 1 and 8 * plain >= 7 * length):
        return _latin(encoded, plain)
    outside = encoded.translate(None, ASCII + TAILS)
    script, most = "other", 0
    for name, leads in LEADS:
        count = len(outside) - len(outside.translate(None, leads))
        if count > most:
            script, most = name, count
    return f"{script}:{quarters}"


def _latin(encoded: bytes, plain: int) -> str:
    """Of text in ASCII, an accent here and there."""
    classes = int.from_bytes(encoded.translate(CLASSES), "little")
    blanks = (classes & IS_BLANK).bit_count()
    if 2 * blanks > plain:
        return "blank"
    letters = (classes & IS_LETTER).bit_count()
    vowels = (classes & IS_VOWEL).bit_count()
    if 10 * blanks < plain or 4 * vowels < letters:
        return "dense:latin"
    others = plain - blanks - letters
    if 6 * others <= letters:
        return "words:latin"
    if 3 * others <= letters:
        return "code:latin"
    return "symbols:latin" if 3 * others <= 2 * letters else "figures:latin"
