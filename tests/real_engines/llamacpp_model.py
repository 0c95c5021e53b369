"""A llama of random weights in a GGUF file, with the tokenizer and template of a directory.

What it says means nothing, and is the same for the same seed and prompt. It is written by hand, by the
description of the format (docs/gguf.md of ggml), so that no package is wanted for it: header, key-value
pairs, one line for each tensor, then their bytes, each aligned.
"""

import array
import json
import random
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["BF16", "F32", "TINY", "Shape", "write_model"]

F32, BF16 = 0, 30
_BYTES = {F32: 4, BF16: 2}
_ALIGNMENT = 32
_NORMAL, _CONTROL = 1, 3
_U32, _F32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    context: int
    """What it says it was trained for."""
    vocabulary: int
    """At least that of the tokenizer; beyond it, tokens are filled in that no text has."""


TINY = Shape(layers=8, width=256, feed_forward=512, heads=4, kv_heads=2, context=4096, vocabulary=4096)
"""About a millisecond a token on a core: slow enough to be left in the middle."""

Weights = Callable[[str, int, int], bytes]
"""(name, rows, columns) -> the bytes of a matrix, of the type that was named."""


def write_model(
    path: Path, tokenizer: Path, shape: Shape = TINY, *, weights: Weights | None = None, kind: int = F32
) -> None:
    """Write it; `weights` are of `kind`, by default small and random. Norms are always F32."""
    weights = weights or _random_weights()
    tensors = list(_tensors(shape, kind))
    with path.open("wb") as file:
        metadata = list(_metadata(tokenizer, shape))
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
        for key, value in metadata:
            file.write(_string(key) + value)
        offset = 0
        for name, rows, columns, of in tensors:
            sides = (columns,) if rows == 0 else (columns, rows)
            file.write(_string(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, of, offset))
            offset += _aligned(max(rows, 1) * columns * _BYTES[of])
        _pad(file)
        for name, rows, columns, _ in tensors:
            file.write(weights(name, rows, columns) if rows else _ones(columns))
            _pad(file)


def _tensors(shape: Shape, kind: int) -> Iterator[tuple[str, int, int, int]]:
    """(name, rows, columns, type); no rows: a vector."""
    head = shape.width // shape.heads
    yield "token_embd.weight", shape.vocabulary, shape.width, kind
    for number in range(shape.layers):
        layer = f"blk.{number}."
        yield layer + "attn_norm.weight", 0, shape.width, F32
        yield layer + "attn_q.weight", shape.heads * head, shape.width, kind
        yield layer + "attn_k.weight", shape.kv_heads * head, shape.width, kind
        yield layer + "attn_v.weight", shape.kv_heads * head, shape.width, kind
        yield layer + "attn_output.weight", shape.width, shape.heads * head, kind
        yield layer + "ffn_norm.weight", 0, shape.width, F32
        yield layer + "ffn_gate.weight", shape.feed_forward, shape.width, kind
        yield layer + "ffn_up.weight", shape.feed_forward, shape.width, kind
        yield layer + "ffn_down.weight", shape.width, shape.feed_forward, kind
    yield "output_norm.weight", 0, shape.width, F32
    yield "output.weight", shape.vocabulary, shape.width, kind


def _random_weights(seed: int = 0) -> Weights:
    """256 levels are enough; the scale makes some tokens likelier than others, and none certain."""
    numbers = random.Random(seed)
    levels = [(level - 127.5) / 510 for level in range(256)]

    def weights(name: str, rows: int, columns: int) -> bytes:
        return _floats(map(levels.__getitem__, numbers.randbytes(rows * columns)))

    return weights


def _ones(columns: int) -> bytes:
    return _floats([1.0] * columns)


def _floats(values: Iterable[float]) -> bytes:
    packed = array.array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


# -------------------------------------------------------------------------------------- key-value pairs


def _metadata(tokenizer: Path, shape: Shape) -> Iterator[tuple[str, bytes]]:
    document = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    special = {each["content"]: each["id"] for each in document["added_tokens"]}
    ids = {**document["model"]["vocab"], **special}
    tokens = sorted(ids, key=ids.__getitem__)
    tokens += [f"Ġfill{number}" for number in range(shape.vocabulary - len(tokens))]
    yield "general.architecture", _text("llama")
    yield "general.name", _text("tiny")
    for key, number in {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.width,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "rope.dimension_count": shape.width // shape.heads,
        "vocab_size": shape.vocabulary,
    }.items():
        yield f"llama.{key}", _number(number)
    yield "llama.attention.layer_norm_rms_epsilon", struct.pack("<If", _F32, 1e-5)
    yield "llama.rope.freq_base", struct.pack("<If", _F32, 500_000.0)
    yield "tokenizer.ggml.model", _text("gpt2")
    yield "tokenizer.ggml.pre", _text("llama-bpe")
    yield "tokenizer.ggml.tokens", _array(_STRING, [_string(token) for token in tokens])
    types = [_CONTROL if token in special else _NORMAL for token in tokens]
    yield "tokenizer.ggml.token_type", _array(5, [struct.pack("<i", each) for each in types])
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in document["model"]["merges"])
    yield "tokenizer.ggml.merges", _array(_STRING, [_string(pair) for pair in merges])
    yield "tokenizer.ggml.bos_token_id", _number(special["<|begin_of_text|>"])
    yield "tokenizer.ggml.eos_token_id", _number(special["<|eot_id|>"])
    yield "tokenizer.ggml.add_bos_token", struct.pack("<I?", _BOOL, True)
    template = (tokenizer / "chat_template.jinja").read_text(encoding="utf-8")
    yield "tokenizer.chat_template", _text(template)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _text(text: str) -> bytes:
    return struct.pack("<I", _STRING) + _string(text)


def _number(number: int) -> bytes:
    return struct.pack("<II", _U32, number)


def _array(of: int, items: list[Any]) -> bytes:
    return struct.pack("<IIQ", _ARRAY, of, len(items)) + b"".join(items)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_aligned(file.tell()) - file.tell()))
