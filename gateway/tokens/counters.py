"""Counters: who turns text into a number of tokens. Synchronous, thread-safe, local files only.

    TokenCounter            the contract
      HuggingFaceCounter    `tokenizers` on a tokenizer.json
      TransformersCounter   `transformers` on a directory without one (imported only then)
      TiktokenCounter       a local vocabulary file in tiktoken's format, under a known encoding's rules
      EstimateCounter       bytes divided by a ratio; says that it is an estimate

Counting answers with a length, not with ids: making a Python list of a million ids would hold the GIL for
tens of milliseconds. For the same reason `tokenizers` is driven through `encode_batch_fast`, which
frees the GIL where plain `encode` holds it (64 KB: 20 ms), even for a single text.

Control tokens written out in a text count as one token each, because that is what engines make of them.
"""

import base64
import binascii
import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tiktoken
import tokenizers

__all__ = [
    "AddedToken", "EstimateCounter", "HuggingFaceCounter", "TiktokenCounter", "TokenCounter",
    "TokenizerError", "TransformersCounter", "utf8_length",
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


# ------------------------------------------------------------------------------------ Hugging Face


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

    @classmethod
    def from_directory(cls, path: Path) -> "HuggingFaceCounter":
        file = path / "tokenizer.json"
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{file}: {error}") from error
        return cls(tokenizer, path.name)

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
            return HuggingFaceCounter(backend, path.name)
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


@dataclass(frozen=True, slots=True)
class _Rules:
    """How an encoding cuts text before merging, and its control tokens."""

    pattern: str
    special_tokens: Mapping[str, int]


# Patterns and ids: tiktoken_ext/openai_public.py, tiktoken 0.14.
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
    "r50k_base": _Rules(_R50K, {"<|endoftext|>": 50256}),
    "p50k_base": _Rules(_R50K, {"<|endoftext|>": 50256}),
    "cl100k_base": _Rules(_CL100K, {
        "<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276,
    }),
    "o200k_base": _Rules(_O200K, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
}
# fmt: on


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
