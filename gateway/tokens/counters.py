"""Counters: who turns text into a number of tokens. Synchronous, thread-safe, local files only.

    TokenCounter            the contract
      HuggingFaceCounter    `tokenizers` on a tokenizer.json
        RankedCounter       the same by tiktoken, where that is proved to give the same tokens (`ranks`)
      TransformersCounter   `transformers` on a directory without one (imported only then)
      TiktokenCounter       a local vocabulary file in tiktoken's format, under a known encoding's rules
      EstimateCounter       bytes divided by a ratio; says that it is an estimate

Counting answers with a length, not with ids: making a Python list of a million ids would hold the GIL for
tens of milliseconds. For the same reason `tokenizers` is driven through `encode_batch_fast`, which
frees the GIL where plain `encode` holds it (64 KB: 20 ms), even for a single text.

Control tokens written out in a text count as one token each, because that is what engines make of them.

Hostile text: the libraries merge in n log n (a megabyte of one letter: 0.4 s), but fancy-regex, below
tiktoken, keeps a stack of where it could go back to, and panics where white space goes on for a million
characters. Text with an overlong piece (`unbroken`) is therefore left to `tokenizers`, and where there is
none, to the estimate.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tiktoken
import tokenizers

from gateway.tokens.ranks import NotProved, encoding_of
from gateway.tokens.segments import Splitter, utf8

__all__ = [
    "AddedToken", "EstimateCounter", "HuggingFaceCounter", "RankedCounter", "TiktokenCounter", "TokenCounter",
    "TokenizerError", "TransformersCounter", "tiktoken_file", "unbroken", "utf8_length",
]  # fmt: skip


class TokenizerError(ValueError):
    """A tokenizer or its chat template cannot be loaded; the message names the file."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the learned vocabulary: matched in the raw text, before any merging."""

    content: str
    id: int
    special: bool
    normalized: bool = False
    """Matched in the text after the tokenizer's normalizer, not before it."""


class TokenCounter(Protocol):
    source: str
    """What `PromptCount.source` says, e.g. `tokenizer llama3`."""
    exact: bool
    vocabulary: int | None
    """Tokens that there are, added ones too; None for an estimate."""
    added_tokens: Sequence[AddedToken]

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        """Tokens of `text`; `add_special_tokens` as engines add them around a plain prompt (BOS)."""

    def ids(self, text: str, *, add_special_tokens: bool = False) -> Sequence[int]:
        """Token ids of a short text. For those who ask for them, not for counting."""

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as its vocabulary writes it, e.g. `Ġwater`."""

    def normalize(self, text: str) -> str:
        """`text` as the tokenizer sees it when it looks for `normalized` added tokens."""


def utf8_length(text: str) -> int:
    """Bytes of `text` in UTF-8; a lone surrogate counts as three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _replaced_surrogates(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot carry, replaced as tiktoken does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_OVERLONG = 32 * 1024


def unbroken(text: str) -> bool:
    """Whether `text` may have a piece of more than 64 Ki characters before merging. May err on the safe side.

    Such a piece would fill one of these blocks without a word that ends and another that begins. Reads each
    block only as far as its first two words.
    """
    if len(text) < 2 * _OVERLONG:
        return False
    blocks = (text[start : start + _OVERLONG] for start in range(0, len(text) - _OVERLONG + 1, _OVERLONG))
    return any(len(block.split(None, 1)) < 2 for block in blocks)


# ------------------------------------------------------------------------------------ Hugging Face

_LOCAL = frozenset({
    "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend",
    "Replace", "Strip", "StripAccents",  # normalizers
    "BertPreTokenizer", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Split",
    "UnicodeScripts", "Whitespace", "WhitespaceSplit",  # pre-tokenizers
    "BertProcessing", "RobertaProcessing", "TemplateProcessing",  # post-processors
})  # fmt: skip
"""Parts of a tokenizer that see nothing but the segment they are given; `Metaspace` unless it asks where that
begins. Post-processors: they put around a text what does not depend on it."""


def _is_local(part: Any) -> bool:
    """Whether a normalizer, pre-tokenizer or post-processor works segment by segment."""
    if part is None:
        return True
    state: dict[str, Any] = part if isinstance(part, dict) else json.loads(part.__getstate__())
    if state["type"] == "Sequence":
        (members,) = (state[name] for name in ("normalizers", "pretokenizers", "processors") if name in state)
        return all(map(_is_local, members))
    return state["type"] in _LOCAL and state.get("prepend_scheme") != "first"


class HuggingFaceCounter:
    """Counts with a `tokenizers.Tokenizer`. Truncation and padding that its file may ask for are undone."""

    exact = True

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.source = f"tokenizer {name}"
        self.vocabulary: int | None = tokenizer.get_vocab_size()
        self.added_tokens: Sequence[AddedToken] = tuple(
            AddedToken(token.content, token_id, token.special, token.normalized)
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        )
        self.around: int = tokenizer.num_special_tokens_to_add(False)
        """Tokens that `add_special_tokens` adds to any text."""
        self.slow_because: str | None = None
        """Why tiktoken does not count instead, where that was tried."""

    @property
    def cuts(self) -> Sequence[str] | None:
        """Added tokens between which counts add up, whatever the text; None where that is not known."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        parts = (self._tokenizer.normalizer, self._tokenizer.pre_tokenizer, self._tokenizer.post_processor)
        if any(token.lstrip or token.rstrip or token.single_word for token in added):
            return None
        return (
            [token.content for token in added if not token.normalized] if all(map(_is_local, parts)) else None
        )

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer, name: str) -> "HuggingFaceCounter":
        """The fastest counter that is proved to count as `tokenizer` does."""
        try:
            return RankedCounter(tokenizer, name, encoding_of(tokenizer))
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is one
            counter = HuggingFaceCounter(tokenizer, name)
            counter.slow_because = (
                str(error) if isinstance(error, NotProved) else f"{type(error).__name__} at load"
            )
            return counter

    @classmethod
    def from_directory(cls, path: Path) -> "HuggingFaceCounter":
        file = path / "tokenizer.json"
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{file}: {error}") from error
        return cls.of(tokenizer, path.name)

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        return len(self._encode(text, add_special_tokens))

    def ids(self, text: str, *, add_special_tokens: bool = False) -> Sequence[int]:
        ids: list[int] = self._encode(text, add_special_tokens).ids
        return ids

    def strings(self, ids: Sequence[int]) -> list[str]:
        return [self._tokenizer.id_to_token(each) or "" for each in ids]

    def _encode(self, text: str, add_special_tokens: bool) -> tokenizers.Encoding:
        try:
            encodings = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError:  # the library's word for a text that is not UTF-8
            return self._encode(_replaced_surrogates(text), add_special_tokens)
        return encodings[0]

    def normalize(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(_replaced_surrogates(text)))


_COMPOSED = re.compile(
    "[^\0-\u02ff\u0400-\u0482\u048a-\u052f\u2010-\u2027\u2030-\u205e\u3001-\u3029\u3041-\u3096\u30a1-\u30fa"
    "\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff60]"
)
"""What NFC may change: anything but these, which stay as they are in every version of Unicode (they are
starters, composed, and no second halves)."""


class RankedCounter(HuggingFaceCounter):
    """Counts by a tiktoken encoding that is proved to give the same tokens as the `tokenizers.Tokenizer`.

    Ids and their strings come from the latter.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str, encoding: tiktoken.Encoding) -> None:
        super().__init__(tokenizer, name)
        self.source = f"tokenizer {name} (tiktoken)"
        self._encoding = encoding
        # Those that are not `normalized` are looked for first, in the raw text (added_vocabulary.rs).
        self._raw = Splitter([token.content for token in self.added_tokens if not token.normalized])
        self._normal = Splitter(
            [self.normalize(token.content) for token in self.added_tokens if token.normalized]
        )

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        tokens = self.around if add_special_tokens else 0
        data, at = utf8(text), 0
        for start, end in self._raw.matches(data):
            tokens += 1 + self._segment(data[at:start].decode())
            at = end
        return tokens + self._segment((data[at:] if at else data).decode())

    def _segment(self, text: str) -> int:
        if self._tokenizer.normalizer is not None and not text.isascii() and _COMPOSED.search(text):
            text = str(self._tokenizer.normalizer.normalize_str(text))
        if not self._normal.longest:
            return self._plain(text)
        tokens, data, at = 0, text.encode(), 0
        for start, end in self._normal.matches(data):
            tokens += 1 + self._plain(data[at:start].decode())
            at = end
        return tokens + self._plain(data[at:].decode())

    def _plain(self, text: str) -> int:
        if not text:
            return 0
        if unbroken(text):
            return super().count(text, add_special_tokens=False)
        return len(self._encoding.encode_ordinary(text))


class TransformersCounter:
    """Counts with a `transformers` tokenizer that has no `tokenizers` backend. Pure Python: slow."""

    exact = True

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer = tokenizer
        self.source = f"tokenizer {name}"
        self.vocabulary: int | None = len(tokenizer)
        self.added_tokens: Sequence[AddedToken] = tuple(
            AddedToken(token.content, token_id, token.special, token.normalized)
            for token_id, token in tokenizer.added_tokens_decoder.items()
        )

    @staticmethod
    def from_directory(path: Path) -> "TransformersCounter | HuggingFaceCounter":
        """The directory's tokenizer; by its `tokenizers` backend where `transformers` builds one.

        Never fetches anything and never runs code from the directory.
        """
        with _quiet_transformers():
            from transformers import AutoTokenizer  # 0.9 s and 50 MiB: only for those who need it

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False, verbose=False
            )
        except Exception as error:  # OSError, ValueError, ImportError, KeyError: all mean "cannot load"
            raise TokenizerError(f"{path}: {error}") from error
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if isinstance(backend, tokenizers.Tokenizer):
            return HuggingFaceCounter.of(backend, path.name)
        return TransformersCounter(tokenizer, path.name)

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        return len(self._encode(text, add_special_tokens))

    def ids(self, text: str, *, add_special_tokens: bool = False) -> Sequence[int]:
        return self._encode(text, add_special_tokens)

    def strings(self, ids: Sequence[int]) -> list[str]:
        strings: list[str] = self._tokenizer.convert_ids_to_tokens(list(ids))
        return strings

    def normalize(self, text: str) -> str:
        return text

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keeps the import of transformers from printing that it found no PyTorch."""
    name = "TRANSFORMERS_VERBOSITY"
    before = os.environ.get(name)
    os.environ[name] = before or "error"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


# ---------------------------------------------------------------------------------------- tiktoken

_PANICS = 256 * 1024
"""Characters up to which one piece is harmless; the stack of fancy-regex lasts for three times as many."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """How an encoding cuts text before merging, its control tokens, and its vocabulary file's SHA-256."""

    pattern: str
    special_tokens: Mapping[str, int]
    sha256: str


# Patterns, ids and digests: tiktoken_ext/openai_public.py, tiktoken 0.14.
# fmt: off
_R50K = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENCODINGS: Mapping[str, _Rules] = {
    "r50k_base": _Rules(_R50K, {"<|endoftext|>": 50256},
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
    "p50k_base": _Rules(_R50K, {"<|endoftext|>": 50256},
        "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"),
    "cl100k_base": _Rules(_CL100K, {
        "<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276,
    }, "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
    "o200k_base": _Rules(_O200K, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
}
# fmt: on


_PUBLISHED = "https://openaipublic.blob.core.windows.net/encodings/"
"""Where tiktoken would fetch vocabularies; here only part of the name under which it keeps them."""


def tiktoken_file(encoding: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The vocabulary file of `encoding` in tiktoken's own cache, TIKTOKEN_CACHE_DIR. Nothing is fetched.

    Raises TokenizerError, naming the file that is missing.
    """
    if encoding not in _ENCODINGS:
        raise TokenizerError(f"tiktoken encoding {encoding!r} is unknown; known are {', '.join(_ENCODINGS)}")
    directory = environment.get("TIKTOKEN_CACHE_DIR")
    if not directory:
        raise TokenizerError(
            f"tiktoken encoding {encoding} needs a path to its vocabulary file, or TIKTOKEN_CACHE_DIR set"
        )
    # tiktoken/load.py, `read_file_cached`.
    key = hashlib.sha1(f"{_PUBLISHED}{encoding}.tiktoken".encode(), usedforsecurity=False).hexdigest()
    path = Path(directory) / key
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise TokenizerError(
            f"{path} ({encoding}.tiktoken in TIKTOKEN_CACHE_DIR) cannot be read: {error.strerror}; put the "
            "vocabulary there, it is never downloaded"
        ) from error
    if digest != _ENCODINGS[encoding].sha256:
        raise TokenizerError(f"{path}: not the vocabulary of {encoding}: its SHA-256 is {digest}")
    return path


class TiktokenCounter:
    """Counts with a `tiktoken.Encoding` built from a local file: tiktoken itself would fetch the file."""

    exact = True

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding
        self.vocabulary: int | None = encoding.n_vocab
        self._special = encoding.special_tokens_set
        self.source = f"tiktoken {encoding.name}"
        self.added_tokens: Sequence[AddedToken] = tuple(
            AddedToken(content, encoding.encode_single_token(content), special=True)
            for content in sorted(self._special)
        )

    @classmethod
    def from_file(cls, path: Path, encoding: str) -> "TiktokenCounter":
        """`path` in tiktoken's format, a base64 token and its rank per line; `encoding` a known name."""
        rules = _ENCODINGS.get(encoding)
        if rules is None:
            raise TokenizerError(
                f"tiktoken encoding {encoding!r} is unknown; known are {', '.join(_ENCODINGS)}"
            )
        try:
            lines = path.read_bytes().splitlines()
            ranks = {
                base64.b64decode(token, validate=True): int(rank) for token, rank in map(bytes.split, lines)
            }
            built = tiktoken.Encoding(
                encoding,
                pat_str=rules.pattern,
                mergeable_ranks=ranks,
                special_tokens=dict(rules.special_tokens),
            )
        except (OSError, binascii.Error, ValueError) as error:
            raise TokenizerError(f"{path}: not a tiktoken vocabulary: {error}") from error
        return cls(built)

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        # Encodings of this family put nothing around a prompt, so `add_special_tokens` changes nothing.
        if unbroken(text) and len(text) > _PANICS:
            raise OverflowError("a piece is too long for tiktoken")
        return len(self.ids(text))

    def ids(self, text: str, *, add_special_tokens: bool = False) -> Sequence[int]:
        return self._encoding.encode(text, allowed_special=self._special, disallowed_special=())

    def strings(self, ids: Sequence[int]) -> list[str]:
        return [self._encoding.decode_single_token_bytes(each).decode("utf-8", "replace") for each in ids]

    def normalize(self, text: str) -> str:
        return text


# ---------------------------------------------------------------------------------------- estimate


class EstimateCounter:
    """Bytes of UTF-8 divided by `bytes_per_token`, rounded up. Cheap enough for the event loop."""

    exact = False
    vocabulary: int | None = None
    added_tokens: Sequence[AddedToken] = ()

    def __init__(self, bytes_per_token: float) -> None:
        self._bytes_per_token = bytes_per_token
        self.source = f"estimate {bytes_per_token} bytes/token"

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        return math.ceil(utf8_length(text) / self._bytes_per_token) + add_special_tokens

    def ids(self, text: str, *, add_special_tokens: bool = False) -> Sequence[int]:
        raise NotImplementedError("an estimate knows no ids")

    def strings(self, ids: Sequence[int]) -> list[str]:
        raise NotImplementedError("an estimate knows no ids")

    def normalize(self, text: str) -> str:
        return text
