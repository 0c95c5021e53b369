"""A Hugging Face byte-level BPE counted by tiktoken, where it can be proved that both give the same tokens.

tiktoken needs a sixth of the time. It knows less of a tokenizer: a pattern that cuts text into pieces, and a
rank for each token; in a piece it merges, again and again, the two neighbours that together are the token of
the lowest rank. Hugging Face has a list of merges instead, and merges only the pairs that are on it. When is
that the same, for every text?

**Merging.** What happens inside a stretch of a piece that ends up as one token is what would have happened to
that stretch alone, because nothing outside it takes part. So a token only ever comes about by one pair: the
last one when it is encoded alone. Therefore:

- Every token of the vocabulary is encoded alone, by merges only. One that does not come out as itself is
  never made by merges. It gets no rank; or where the file says `ignore_merges` (a piece that is a token is
  that token) the last rank, if alone it ends in three parts or more, because then tiktoken never finds it as
  two neighbours. Two parts: not proved.
- Ranks follow the order of the merges. A token with several merges (Llama 3's file lists every pair) needs
  them next to each other in that order, so that it does not matter which of them is the one.

With this, on equal parts both engines have the same pairs to choose from and choose the same, the lowest rank
and of equals the leftmost; by induction they agree to the end.

**Cutting.** The pattern is accepted if it is made of constructs that Oniguruma (there) and fancy-regex (here)
read alike; every character class it uses is compared over all of Unicode, once for each pair of library
versions; and it must cut any text without leaving something out, which tiktoken would drop.

**The rest.** No normalizer or NFC, all 256 bytes in the vocabulary, no dropout, no prefixes and suffixes,
added tokens without `lstrip`, `rstrip` and `single_word`. At last both engines encode `nasty_text`.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import tiktoken
import tokenizers
from tokenizers import normalizers

from gateway.tokens.segments import Splitter

__all__ = ["NotProved", "encoding_of", "harmless_normalizer", "nasty_text", "same_classes", "token_bytes"]

COMPARED = frozenset({("0.23.3", "0.14.0")})
"""Versions of tokenizers and tiktoken whose character classes a test has compared over all of Unicode. For
others it is done at load, which takes some seconds."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` cuts by (tokenizers, pre_tokenizers/byte_level.rs)."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PROPERTY = r"\\p\{(?:L|N|M|Lu|Ll|Lt|Lm|Lo)\}"
_CLASS = rf"(?:\\[sS]|{_PROPERTY}|\[\^?(?:\\[srn]|{_PROPERTY}|/)+\])"
_ATOM = rf"(?:{re.escape(_CONTRACTIONS)}|\(\?!\\S\)|\\[rn]|{_CLASS}|[ 'a-z/])"
_UNDERSTOOD = re.compile(rf"(?:{_ATOM}(?:(?:[?*+]|\{{1,[1-9]\}})(?![?*+{{]))?|\|)+")
"""Patterns that both engines read alike: no possessive or lazy quantifiers (`x{1,3}+` means two things), no
groups but the contractions."""

_KINDS = (
    "a",
    "A",
    "ǅ",
    "ʰ",
    "中",
    "\u0301",
    "1",
    "Ⅷ",
    " ",
    "\t",
    "\n",
    "\r",
    "\u3000",
    "'",
    "!",
    "/",
    "\0",
    "😀",
)
"""One character or more of each kind that a pattern may tell apart."""


class NotProved(Exception):
    """tiktoken may or may not give the same tokens; the message says why, in a few words."""


# ------------------------------------------------------------------------------------ the encoding


def encoding_of(tokenizer: tokenizers.Tokenizer) -> tiktoken.Encoding:
    """Counts text between added tokens, once normalized, as `tokenizer` does. Its ids are its own.

    Synchronous; a second or two for a vocabulary of 128k. Raises NotProved.
    """
    text = tokenizer.to_str()
    file = json.loads(text)
    model = file["model"]
    if model["type"] != "BPE":
        raise NotProved(f"its model is {model['type']}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise NotProved(f"its model has {name}")
    pattern = _pattern_of(file["pre_tokenizer"])
    if not harmless_normalizer(file["normalizer"]):
        raise NotProved("its normalizer is not NFC")
    added = [token["content"] for token in file["added_tokens"]]
    for token in file["added_tokens"]:
        if any(token[flag] for flag in ("lstrip", "rstrip", "single_word")):
            raise NotProved(f"its added token {token['content']!r} takes what stands beside it into account")
    same_classes(pattern)
    _check_cutting(pattern)
    never = frozenset(added) if file["normalizer"] is None else frozenset()
    ranks = _ranks(model, text, never)
    encoding = tiktoken.Encoding("proved", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    _check_differences(tokenizer, encoding, added)
    return encoding


def harmless_normalizer(normalizer: Mapping[str, Any] | None) -> bool:
    """Whether it is none, or NFC."""
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(harmless_normalizer, normalizer["normalizers"]))
    return bool(normalizer["type"] == "NFC")


# ---------------------------------------------------------------------------------------- cutting


def _pattern_of(pre_tokenizer: Mapping[str, Any] | None) -> str:
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return _GPT2
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": behavior, "invert": invert},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if (behavior, invert) in (("Isolated", False), ("Removed", True)):
            if _UNDERSTOOD.fullmatch(pattern) is None:
                raise NotProved("its pattern has what the two regex engines may read differently")
            return str(pattern)
    raise NotProved("its pre-tokenizer is none that tiktoken can do")


def same_classes(pattern: str, *, compared: frozenset[tuple[str, str]] = COMPARED) -> None:
    """Raises NotProved where a character class of `pattern` differs between the two engines."""
    if (tokenizers.__version__, tiktoken.__version__) in compared:
        return
    for atom in {*re.findall(_CLASS, pattern), *([_CONTRACTIONS] if _CONTRACTIONS in pattern else [])}:
        if not _same_matches(atom):
            raise NotProved(f"{atom} is not the same in both regex engines")


@lru_cache(maxsize=64)
def _same_matches(atom: str) -> bool:
    """Over all of Unicode: what one engine leaves out, the other finds."""
    text = "".join(map(chr, itertools.chain(range(0xD800), range(0xE000, 0x110000))))
    if atom == _CONTRACTIONS:
        # Letters beside ASCII's have cases that fold to these, alone or two at a time.
        near = [
            one for one in text if {*one.casefold(), *one.lower(), *one.upper()} & set("sdmtrevlSDMTREVL")
        ]
        text = "".join(f"'{first}{second} " for first in near for second in ("", *near))
    left = normalizers.Replace(tokenizers.Regex(atom), "").normalize_str(text)
    found = bytes(_bytes_by(atom).encode_ordinary(text)).decode()
    if atom == _CONTRACTIONS:
        return Counter(left) + Counter(found) == Counter(text)
    return set(left).isdisjoint(found) and len(left) + len(found) == len(text)


def _bytes_by(pattern: str) -> tiktoken.Encoding:
    """Every byte that `pattern` matches, as its value."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    return tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def _check_cutting(pattern: str) -> None:
    """Every character of any kind, before any other and at the end, is in some piece."""
    cut = _bytes_by(pattern)
    for text in (*_KINDS, *map("".join, itertools.product(_KINDS, repeat=2))):
        if bytes(cut.encode_ordinary(text)) != text.encode():
            raise NotProved("its pattern leaves text between the pieces")


# ---------------------------------------------------------------------------------------- merging


@lru_cache(maxsize=1)
def _alphabet() -> Mapping[str, int]:
    """Byte-level BPE's character for each byte (GPT-2's encoder.py, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + n): byte for n, byte in enumerate(others)},
    }


def token_bytes(token: str) -> bytes | None:
    """What a token of a byte-level vocabulary stands for; None where it is no such token."""
    try:
        return bytes(map(_alphabet().__getitem__, token))
    except KeyError:
        return None


def _ranks(model: Mapping[str, Any], text: str, never: Collection[str]) -> dict[bytes, int]:
    """`text`: the whole tokenizer. `never`: tokens that no piece can be."""
    order = _order_of_merges(model["merges"])
    known = {
        token: spelled
        for token in model["vocab"]
        if token not in never and (spelled := token_bytes(token))
    }  # fmt: skip
    if sum(len(spelled) == 1 for spelled in known.values()) != 256:
        raise NotProved("its vocabulary has not every byte")
    ranks = {bytes([byte]): byte for byte in range(256)}
    last = 256 + len(model["merges"])
    for (token, spelled), parts in zip(known.items(), _parts_alone(text, list(known)), strict=True):
        if len(spelled) == 1:
            continue
        if parts == 1:
            ranks[spelled] = 256 + order[token]
        elif model.get("ignore_merges"):
            if parts == 2:
                raise NotProved(f"its merges do not make its token {token!r}, and tiktoken might")
            ranks[spelled] = last
            last += 1
    return ranks


def _order_of_merges(merges: Sequence[Any]) -> dict[str, int]:
    """Where in the list the merges of each token begin."""
    order: dict[str, int] = {}
    before = None
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        token = left + right
        if token != before and token in order:
            raise NotProved(f"the merges that make its token {token!r} are apart from each other")
        order.setdefault(token, rank)
        before = token
    return order


def _parts_alone(text: str, tokens: list[str]) -> list[int]:
    """How many parts each of `tokens` has when encoded alone, by merges only."""
    # A copy, because a tokenizer and its model share their settings.
    model = tokenizers.Tokenizer.from_str(text).model
    model.ignore_merges = False
    bare = tokenizers.Tokenizer(model)
    parts: list[int] = []
    for start in range(0, len(tokens), 4096):
        encodings = bare.encode_batch_fast(tokens[start : start + 4096], add_special_tokens=False)
        parts += map(len, encodings)
    return parts


# ------------------------------------------------------------------------------------- differences


def nasty_text() -> list[str]:
    """Texts in which tokenizers are known to differ: scripts, marks, joiners, white space, line ends, digits,
    apostrophes, control characters, and any three kinds of characters in a row."""
    return [
        "",
        "The quick brown fox's 12345678901 tokens; don't, DON'T, we'LL, I'Ve, it'ſ, O'Neill's\r\n\r\nEnd.\n",
        "Шлюз в голове канала. Η πύλη. بوابة القناة. שער התעלה. 渠首的闸门决定，有多少水进入。수문은 열린다.",
        "नहर का द्वार ๐๑๒ ประตูน้ำ မြစ် ខ្មែរ తెలుగు ತುಂಬ മലയാളം অসমীয়া ᠮᠣᠩᠭᠣᠯ ⴰⵎⴰⵣⵉⵖ ꦗꦮ 𐍈𐌿𐌽𐌸 𒀭 𞤀𞤣",
        "e\u0301 e\u0301\u0323 o\u0308\u0304 \u0301\u0302 a" + "\u0300\u0316" * 20
        + " A\u030a \u212b \u1100\u1161\u11a8 ﬁ ﷺ ǅ ǆ",
        "👩‍👩‍👧‍👦👍🏽🏳️‍🌈🇩🇪🇫🇷0️⃣ \u200d\u200b\u2060\ufeff\u00ad x\ufe0fy",
        "a  b   c    d" + " " * 130 + "e\t\tf \t \n\n\n  "
        "g\r\r\n \r\n\u00a0\u2003\u3000h\u2028i\u2029j\u0085k \x0b\x0c\x1c\x1f ",
        "1 12 123 1234 12345 " + "7" * 100 + " ½ ² Ⅷ ٣٤٥ ３４ 1.234,56e-7 0xFF 1_000",
        "".join(map(chr, range(0x180))) + "\ufffd\uffff\U0001f9ff\U0010ffff\ue000",
        "def f(x):\n\treturn {'a': [1], \"b\": x}  # ''' ```\nhttps://a.b/c?d=e&f=%20#g //// ---- ==== \\\\n",
        "A" * 300 + "a" * 300 + "^" * 300 + "ab" * 150 + "Ab" * 150 + "日" * 300 + "\n" * 300 + "!?" * 150,
        "".join(map("".join, itertools.product(_KINDS, repeat=3))),
    ]  # fmt: skip


def _check_differences(
    tokenizer: tokenizers.Tokenizer, encoding: tiktoken.Encoding, added: Sequence[str]
) -> None:
    """Token by token, over `nasty_text` and what is nearly an added token."""
    normalizer, splitter = tokenizer.normalizer, Splitter(added)
    for text in (*nasty_text(), *(f"{content[1:]} {content[:-1]}" for content in added[:64])):
        data = (text if normalizer is None else normalizer.normalize_str(text)).encode()
        edges = [0, *itertools.chain.from_iterable(splitter.matches(data)), len(data)]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            segment = data[start:end].decode()
            ours = [encoding.decode_single_token_bytes(rank) for rank in encoding.encode_ordinary(segment)]
            theirs = map(token_bytes, tokenizer.encode(segment, add_special_tokens=False).tokens)
            if ours != list(theirs):
                raise NotProved("both engines were tried, and they differ")
