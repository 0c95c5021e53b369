"""Tiny tokenizers in the forms that real models have, trained on the project's own corpus in milliseconds."""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from gateway.tokens.counters import _O200K
from tests.conftest import REPO

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

CONTROL = ["<|begin|>", "<|end|>", "<|end|>>", "<|im_start|>", "<|im_end|>", "<|im_ends|>", "[INST]", "é|"]
"""Two are beginnings of others, one is not ASCII."""


@lru_cache(maxsize=1)
def corpus() -> tuple[str, ...]:
    files = sorted((REPO / "deploy" / "tokenizers" / "corpus").glob("*.txt"))
    nasty = [
        "it's don't we'll  I'VE",
        "a\u0301e\u0301 \u1100\u1161",
        "   \n\n\t  x\r\n",
        "1234 12 1 ½",
        "''' ``` ====",
    ]
    return (*(file.read_text() for file in files), *nasty * 4)


def trained(
    pre_tokenizer: Any, *, size: int = 900, normalizer: Any = None, ignore_merges: bool = False
) -> Tokenizer:
    """A byte-level BPE with `CONTROL` as special tokens."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in CONTROL])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    return tokenizer


def split(pattern: str) -> Any:
    """How Llama 3 and those after it cut text."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def gpt2() -> Tokenizer:
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=True)])
    return tokenizer


def llama3() -> Tokenizer:
    """With every pair that makes a token in the list of merges, as the converter writes Llama 3's."""
    file = json.loads(trained(split(LLAMA3), ignore_merges=True).to_str())
    model = file["model"]
    rank = {token: at for at, token in enumerate(sorted(model["vocab"], key=model["vocab"].__getitem__))}
    merges = []
    for token in rank:
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [pair for pair in pairs if pair[0] in rank and pair[1] in rank]
        merges += sorted(pairs, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    assert len(merges) > len(model["merges"])
    model["merges"] = merges
    return Tokenizer.from_str(json.dumps(file))


def qwen() -> Tokenizer:
    tokenizer = trained(split(QWEN), normalizer=normalizers.NFC())
    tokenizer.add_special_tokens([AddedToken("<|normalé|>", special=True, normalized=True)])
    return tokenizer


def o200k() -> Tokenizer:
    return trained(split(_O200K), ignore_merges=True)


def sentencepiece(prepend: str = "first") -> Tokenizer:
    """Llama 2's form: no bytes but as a fallback, and spaces belong to the word after them."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=120,
        show_progress=False,
    )
    tokenizer.train_from_iterator([line for text in corpus() for line in text.splitlines()], trainer)
    tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in CONTROL])
    return tokenizer


def changed(tokenizer: Tokenizer, change: Callable[[dict[str, Any]], Any]) -> Tokenizer:
    """A copy with another file."""
    file = json.loads(tokenizer.to_str())
    change(file)
    return Tokenizer.from_str(json.dumps(file))


PROVED = {"gpt2": gpt2, "llama3": llama3, "qwen": qwen, "o200k": o200k}


@lru_cache(maxsize=8)
def proved(form: str) -> Tokenizer:
    return PROVED[form]()
