"""Counters against the libraries that they stand for, and files that are not what they should be."""

import base64
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.config.snapshot import TokenizerSpec
from gateway.tokens import counters
from gateway.tokens.counters import (
    EstimateCounter,
    HuggingFaceCounter,
    TiktokenCounter,
    TokenizerError,
    TransformersCounter,
    tiktoken_file,
    utf8_length,
)
from gateway.tokens.tokenizing import Tokenizer
from tests.gateway.tokens.conftest import CORPUS

TEXTS = ["", " ", "hello", *CORPUS, "<s>a<|im_end|>", "👩‍👩‍👧‍👦" * 20, "\n" * 50, "12345678"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_hugging_face_counts_what_encode_gives(bpe, text, add_special_tokens):
    """By another way through the library than the plain one, which holds the GIL."""
    ids = bpe.encode(text, add_special_tokens=add_special_tokens).ids
    assert HuggingFaceCounter(bpe, "test").count(text, add_special_tokens=add_special_tokens) == len(ids)


def test_truncation_and_padding_of_the_file_are_undone(bpe, tmp_path: Path):
    """Some tokenizer.json truncate at 512 tokens: every long prompt would count 512."""
    copy = tokenizers.Tokenizer.from_str(bpe.to_str())
    copy.enable_truncation(8)
    copy.enable_padding(length=16)
    copy.save(str(tmp_path / "tokenizer.json"))
    counter = HuggingFaceCounter.from_directory(tmp_path)
    assert counter.count("hello " * 100, add_special_tokens=False) > 100
    assert counter.count("", add_special_tokens=False) == 0


def test_lone_surrogates_are_counted(bpe):
    """JSON may carry them, UTF-8 may not."""
    assert HuggingFaceCounter(bpe, "test").count("a\ud800b", add_special_tokens=False) >= 3
    assert utf8_length("a\ud800b") == 5


def test_a_directory_without_tokenizer_json_is_left_to_transformers(bpe, tmp_path: Path):
    """GPT-2's form, vocab.json and merges.txt; nothing is fetched."""
    model = json.loads(bpe.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    counter = TransformersCounter.from_directory(tmp_path)
    text = CORPUS[0]
    assert counter.count(text, add_special_tokens=False) == len(bpe.encode(text, add_special_tokens=False))


def test_a_tokenizer_of_pure_python(bpe):
    """Whatever `transformers` offers without a `tokenizers` backend, through its public call."""

    class Characters:
        def __init__(self):
            self.added_tokens_decoder = {3: tokenizers.AddedToken("<s>", special=True)}

        def __len__(self):
            return 0x110000

        def __call__(self, text, *, add_special_tokens):
            return {"input_ids": [0] * add_special_tokens + [ord(character) for character in text]}

    counter = TransformersCounter(Characters(), "characters")
    assert counter.count("abc", add_special_tokens=True) == 4
    assert [token.content for token in counter.added_tokens] == ["<s>"]


def test_importing_transformers_is_quiet_and_late(tokenizer_dirs):
    """Not with the module, and without the banner about PyTorch."""
    program = (
        "import sys, os; from gateway.tokens import counting, counters\n"
        "assert 'transformers' not in sys.modules\n"
        "with counters._quiet_transformers(): from transformers import AutoTokenizer\n"
        "assert 'TRANSFORMERS_VERBOSITY' not in os.environ\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_directory_that_is_no_tokenizer_is_named(tmp_path: Path, content):
    """Missing, not JSON, or JSON of something else."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=str(tmp_path)):
        HuggingFaceCounter.from_directory(tmp_path)


def test_transformers_never_goes_looking_elsewhere(tmp_path: Path):
    """An empty directory is an error, not a name on a hub."""
    with pytest.raises(TokenizerError, match=str(tmp_path)):
        TransformersCounter.from_directory(tmp_path)


# ---------------------------------------------------------------------------------------- tiktoken


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Path:
    """All single bytes and a few merges, in tiktoken's format."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b"hello", b" w", b"or", b"ld"]
    path = tmp_path_factory.mktemp("tiktoken") / "small.tiktoken"
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.mark.parametrize("encoding", ["cl100k_base", "o200k_base", "p50k_base", "r50k_base"])
def test_tiktoken_counts_from_the_local_file(vocabulary, encoding):
    """Control tokens count as one, as engines read them; a plain prompt gets nothing added."""
    counter = TiktokenCounter.from_file(vocabulary, encoding)
    assert counter.source == f"tiktoken {encoding}"
    assert counter.count("hello world", add_special_tokens=True) == 4
    assert counter.count("hello<|endoftext|>hello", add_special_tokens=False) == 3
    assert "<|endoftext|>" in {token.content for token in counter.added_tokens}
    assert counter.count("a\ud800b", add_special_tokens=False) >= 3


def test_tiktoken_never_loads_by_itself(vocabulary, monkeypatch):
    """`tiktoken.load` would fetch the file, without a timeout, or cache a copy."""

    def touched(*_: object, **__: object) -> None:
        raise AssertionError("went looking for the file")

    monkeypatch.setattr("tiktoken.load.read_file_cached", touched)
    monkeypatch.setattr("tiktoken.load.read_file", touched)
    assert TiktokenCounter.from_file(vocabulary, "cl100k_base").count("hello", add_special_tokens=False) == 1


def test_the_rules_are_those_of_tiktoken(vocabulary, monkeypatch):
    """Patterns and control tokens against tiktoken's own tables, with the files left out."""
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {b"a": 0})
    for name, rules in counters._ENCODINGS.items():
        theirs = openai_public.ENCODING_CONSTRUCTORS[name]()
        assert (rules.pattern, dict(rules.special_tokens)) == (theirs["pat_str"], theirs["special_tokens"]), (
            name
        )


@given(st.text())
def test_tiktoken_counts_as_a_plain_encoding_does(vocabulary, text):
    """Where a text spells no control token."""
    counter = TiktokenCounter.from_file(vocabulary, "cl100k_base")
    assume(not any(token.content in text for token in counter.added_tokens))
    rules = counters._ENCODINGS["cl100k_base"]
    lines = vocabulary.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    plain = tiktoken.Encoding("plain", pat_str=rules.pattern, mergeable_ranks=ranks, special_tokens={})
    assert counter.count(text, add_special_tokens=False) == len(plain.encode_ordinary(text))


@pytest.mark.parametrize("content", [b"not a vocabulary", b"a b c d", b"\xff\xfe 1", b"YQ==\n", b""])
def test_a_file_that_is_no_vocabulary_is_named(tmp_path: Path, content):
    """A page of HTML, for instance, where a download went wrong."""
    path = tmp_path / "x.tiktoken"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match="not a tiktoken vocabulary"):
        TiktokenCounter.from_file(path, "cl100k_base")
    with pytest.raises(TokenizerError, match="missing"):
        TiktokenCounter.from_file(tmp_path / "missing", "cl100k_base")


def test_an_unknown_encoding_lists_the_known_ones(vocabulary):
    """So that a typing error is seen at once."""
    with pytest.raises(TokenizerError, match=r"'cl100k'.*r50k_base.*o200k_base"):
        TiktokenCounter.from_file(vocabulary, "cl100k")


def test_a_vocabulary_in_tiktokens_own_cache(vocabulary, tmp_path: Path, monkeypatch):
    """Air-gapped: under the name that tiktoken itself looks for, checked, never fetched."""
    from tiktoken import load
    from tiktoken_ext import openai_public

    asked = {}
    monkeypatch.setattr(
        openai_public, "load_tiktoken_bpe", lambda url, **more: asked.update({url: more}) or {b"a": 0}
    )
    openai_public.ENCODING_CONSTRUCTORS["cl100k_base"]()
    ((url, more),) = asked.items()
    assert counters._ENCODINGS["cl100k_base"].sha256 == more["expected_hash"]
    content = vocabulary.read_bytes()
    rules = replace(counters._ENCODINGS["cl100k_base"], sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(counters, "_ENCODINGS", {"cl100k_base": rules})
    # Where tiktoken keeps what it fetched from there.
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(load, "read_file", lambda _: content)
    load.read_file_cached(url)
    (kept,) = tmp_path.iterdir()
    assert tiktoken_file("cl100k_base") == kept
    tokenizer = Tokenizer.load(TokenizerSpec("tiktoken", encoding="cl100k_base"))
    assert tokenizer.counter.count("hello", add_special_tokens=False) == 1
    kept.write_bytes(b"<html>")
    with pytest.raises(TokenizerError, match=f"{kept}.*SHA-256"):
        tiktoken_file("cl100k_base")
    kept.unlink()
    with pytest.raises(TokenizerError, match=f"{kept} .cl100k_base.tiktoken .*never downloaded"):
        tiktoken_file("cl100k_base")
    with pytest.raises(TokenizerError, match="path to its vocabulary file, or TIKTOKEN_CACHE_DIR"):
        tiktoken_file("cl100k_base", {})
    with pytest.raises(TokenizerError, match="unknown"):
        tiktoken_file("cl100k", {})


def test_a_piece_too_long_for_tiktoken_is_no_panic(vocabulary):
    """The service estimates such a prompt."""
    counter = TiktokenCounter.from_file(vocabulary, "o200k_base")
    assert counter.count(" " * 200_000, add_special_tokens=False) == 200_000
    with pytest.raises(OverflowError):
        counter.count(" " * 1_000_000, add_special_tokens=False)


# ---------------------------------------------------------------------------------------- estimate


@given(st.text(), st.sampled_from([1.0, 3.5, 4.0]))
def test_an_estimate_is_bytes_by_a_ratio(text, ratio):
    """Rounded up, so that a text is never free."""
    counter = EstimateCounter(ratio)
    tokens = counter.count(text, add_special_tokens=False)
    assert (tokens - 1) * ratio < len(text.encode()) <= tokens * ratio or (tokens, text) == (0, "")
    assert not counter.exact
    assert str(ratio) in counter.source


def test_ids_and_their_strings(bpe):
    """As many ids as are counted, special tokens added where asked for, each with its own writing."""
    counter = HuggingFaceCounter(bpe, "bpe")
    text = CORPUS[0]
    for added in (False, True):
        ids = counter.ids(text, add_special_tokens=added)
        assert list(ids) == bpe.encode(text, add_special_tokens=added).ids
        assert len(ids) == counter.count(text, add_special_tokens=added)
        assert counter.strings(ids) == bpe.encode(text, add_special_tokens=added).tokens
    assert counter.vocabulary == bpe.get_vocab_size()
