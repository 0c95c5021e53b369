"""tiktoken instead of `tokenizers`: equal where it was proved, and not used where it was not."""

import re

import pytest
import tiktoken
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from gateway.tokens import counters, ranks
from gateway.tokens.counters import HuggingFaceCounter, RankedCounter
from gateway.tokens.ranks import NotProved, encoding_of, nasty_text, same_classes
from tests.conftest import REPO
from tests.gateway.tokens import tiny

FRAGMENTS = [
    *tiny.CONTROL, "<|im_", "end|>", "<|endoftext|>", "<|normalé|>", "<|normal" + "e\u0301|>", "<think>",
    " ", "  ", "\n", "\r\n",
    "'s", "'LL", "'ſ", "e\u0301", "\u0301", "\u212b", "\ud800", "👩‍👩‍👧‍👦",
    "渠首的", "шлюз", "Water", "123", "1", "\u3000", "\x85", "\x1c",
    "ǅ", "ʰ", "\u200d", "the gate", "!!", "/", "_", "\0", "\u1100\u1161\u11a8",
]  # fmt: skip
TEXTS = st.one_of(
    st.text(), st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=30).map("".join)
)


@pytest.mark.parametrize("form", tiny.PROVED)
def test_the_usual_forms_are_proved(form):
    counter = HuggingFaceCounter.of(tiny.proved(form), "tiny")
    assert isinstance(counter, RankedCounter), counter.slow_because
    assert counter.source == "tokenizer tiny (tiktoken)"


def test_the_demos_tokenizer_is_proved():
    counter = HuggingFaceCounter.from_directory(REPO / "deploy" / "tokenizers" / "headgate-mini")
    assert isinstance(counter, RankedCounter)


@pytest.mark.parametrize("form", tiny.PROVED)
@given(text=TEXTS, added=st.booleans())
@example(text="<|end|>>" * 3 + "<|im_ends|>", added=True)
@example(text="a" * 40_000 + " " * 40_000, added=False)
@example(text="\n".join(nasty_text()), added=False)
@settings(deadline=None, max_examples=300)
def test_both_engines_count_the_same(form, text, added):
    """On any text: as it comes, and put together from what is treated specially somewhere."""
    fast = _fast(form)
    slow = HuggingFaceCounter(tiny.proved(form), "slow")
    assert fast.count(text, add_special_tokens=added) == slow.count(text, add_special_tokens=added)


_made: dict[str, HuggingFaceCounter] = {}


def _fast(form: str) -> HuggingFaceCounter:
    if form not in _made:
        _made[form] = HuggingFaceCounter.of(tiny.proved(form), "tiny")
    return _made[form]


@pytest.mark.parametrize("text", nasty_text())
def test_the_tokens_are_the_same_not_only_their_number(text):
    """Token by token, for every form."""
    for form in tiny.PROVED:
        tokenizer = tiny.proved(form)
        encoding = encoding_of(tokenizer)
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        ours = b"".join(map(encoding.decode_single_token_bytes, encoding.encode_ordinary(text)))
        assert ours == text.encode()
        theirs = map(ranks.token_bytes, tokenizer.encode(text, add_special_tokens=False).tokens)
        assert [encoding.decode_single_token_bytes(rank) for rank in encoding.encode_ordinary(text)] == list(
            theirs
        )


# ------------------------------------------------------------------------------ what is not proved


def _flag(name):
    return lambda file: file["added_tokens"][0].update({name: True})


def _model(**fields):
    return lambda file: file["model"].update(fields)


def _pattern(pattern):
    return lambda file: file["pre_tokenizer"]["pretokenizers"][0].update({"pattern": {"Regex": pattern}})


def _apart(file):
    """A second pair for the first merged token, at the end of the list."""
    vocabulary, merges = file["model"]["vocab"], file["model"]["merges"]
    tokens = [left + right for left, right in merges[:-1]]
    pairs = ([token[:at], token[at:]] for token in tokens for at in range(1, len(token)))
    merges.append(next(pair for pair in pairs if pair not in merges and set(pair) <= set(vocabulary)))


def _without_a_byte(file):
    model = file["model"]
    del model["vocab"]["ĉ"]
    model["merges"] = [pair for pair in model["merges"] if "ĉ" not in "".join(pair)]
    file["model"]["vocab"] = {t: i for t, i in model["vocab"].items() if "ĉ" not in t or t == "ĉ"}


REFUSED = {
    "lstrip": (_flag("lstrip"), "stands beside it"),
    "rstrip": (_flag("rstrip"), "stands beside it"),
    "single_word": (_flag("single_word"), "stands beside it"),
    "dropout": (_model(dropout=0.1), "dropout"),
    "byte_fallback": (_model(byte_fallback=True), "byte_fallback"),
    "suffix": (_model(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    "missing byte": (_without_a_byte, "not every byte"),
    "merges apart": (_apart, "apart"),
    "possessive": (_pattern(r"\p{N}{1,3}+|\s+|\S+"), "regex engines"),
    "unknown class": (_pattern(r"\w+|\s+|\S"), "regex engines"),
    "a gap": (_pattern(r"\p{L}+|\s+"), "between the pieces"),
    "lowercase": (lambda file: file.update(normalizer={"type": "Lowercase"}), "normalizer"),
    "removed": (
        lambda file: file["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "pre-tokenizer",
    ),
    "prefix space": (
        lambda file: file["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "pre-tokenizer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_differ_is_left_to_tokenizers(name):
    """And says why; the count is the library's own."""
    change, why = REFUSED[name]
    tokenizer = tiny.changed(tiny.trained(tiny.split(tiny.LLAMA3), size=400), change)
    with pytest.raises(NotProved, match=why):
        encoding_of(tokenizer)
    counter = HuggingFaceCounter.of(tokenizer, "tiny")
    assert not isinstance(counter, RankedCounter)
    assert re.search(why, counter.slow_because or "")


def test_other_models_are_left_to_tokenizers():
    for tokenizer in (
        tiny.sentencepiece(),
        Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")),
        Tokenizer(models.Unigram([("a", 0.0)], 0, False)),
    ):
        with pytest.raises(NotProved):
            encoding_of(tokenizer)


def _add_token(token):
    def change(file):
        file["model"]["vocab"][token] = len(file["model"]["vocab"]) + len(file["added_tokens"]) + 7

    return change


@pytest.mark.parametrize("form", ["gpt2", "llama3"])
def test_a_token_that_no_merges_make(form):
    """A piece that is this token counts as one where the file says so, and in no other place."""
    three = tiny.changed(tiny.proved(form), _add_token("qzxj"))
    counter = HuggingFaceCounter.of(three, "tiny")
    assert isinstance(counter, RankedCounter)
    alone = counter.count("qzxj", add_special_tokens=False)
    assert alone == (1 if form == "llama3" else 4)
    for text in ("qzxj", "qzxjq", "aqzxj qzxj"):
        assert counter.count(text, add_special_tokens=False) == len(
            three.encode(text, add_special_tokens=False)
        )


def test_a_token_of_two_parts_that_no_merge_joins():
    """tiktoken would join them in any word: out of the vocabulary, or not proved."""
    two = tiny.changed(tiny.proved("llama3"), _add_token("qz"))
    with pytest.raises(NotProved, match="'qz'"):
        encoding_of(two)
    counter = HuggingFaceCounter.of(tiny.changed(tiny.proved("gpt2"), _add_token("qz")), "tiny")
    assert isinstance(counter, RankedCounter)
    assert counter.count("qz", add_special_tokens=False) == 2


def test_the_last_check_sees_a_wrong_rank(monkeypatch):
    """The proof by structure apart: engines that differ are found by trying them."""
    right = ranks._ranks

    def wrong(*args):
        found = right(*args)
        longest = max(found, key=len)
        return {token: rank for token, rank in found.items() if len(token) < 3 or token == longest}

    monkeypatch.setattr(ranks, "_ranks", wrong)
    with pytest.raises(NotProved, match="differ"):
        encoding_of(tiny.proved("gpt2"))


# ------------------------------------------------------------------------------------ the engines


def test_character_classes_are_the_same_over_all_of_unicode():
    """What `COMPARED` says of the installed versions, where it says anything."""
    same_classes("|".join((ranks._GPT2, tiny.LLAMA3, counters._O200K)), compared=frozenset())


def test_a_class_that_differs_is_seen(monkeypatch):
    monkeypatch.setattr(ranks, "_same_matches", lambda atom: atom != r"\p{L}")
    with pytest.raises(NotProved, match=r"\\p\{L\}"):
        same_classes(tiny.LLAMA3, compared=frozenset())


def test_the_comparison_of_classes_can_fail(monkeypatch):
    """A class that is read otherwise here than there."""
    monkeypatch.setattr(ranks, "_bytes_by", lambda _: tiktoken.Encoding(
        "x", pat_str=r"\p{N}", mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={}
    ))  # fmt: skip
    assert not ranks._same_matches.__wrapped__(r"\p{L}")
    assert not ranks._same_matches.__wrapped__(ranks._CONTRACTIONS)


def test_what_nfc_leaves_alone():
    """The characters that are not normalized again: starters, composed, and no second half of anything."""
    import unicodedata

    everything = list(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    halves = {part for one in everything for part in _canonical(one)[1:]}
    for one in everything:
        if counters._COMPOSED.match(one) is None:
            assert unicodedata.normalize("NFC", one) == one
            assert unicodedata.combining(one) == 0
            assert one not in halves


def _canonical(character: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFD", character)


def test_text_with_an_overlong_piece_is_left_to_tokenizers(monkeypatch):
    """A million spaces overflow the stack of tiktoken's regex engine."""
    counter = _fast("llama3")
    asked = []
    plain = HuggingFaceCounter.count
    monkeypatch.setattr(
        HuggingFaceCounter, "count", lambda *args, **more: asked.append(len(args[1])) or plain(*args, **more)
    )
    text = "a b" + " " * 1_000_000 + "c"
    assert counter.count(text, add_special_tokens=False) == len(tiny.proved("llama3").encode(text)) - 1
    assert asked == [len(text)]
    counter.count("the gate " * 100_000, add_special_tokens=False)
    assert len(asked) == 1


@given(st.integers(0, 200_000), st.integers(65_536, 90_000), st.sampled_from("a ^\n中"))
def test_an_overlong_piece_is_never_overlooked(before, length, character):
    text = "ab " * (before // 3) + character * length + " cd ef" * 20_000
    assert counters.unbroken(text)


def test_added_tokens_beside_each_other():
    """Leftmost, of those the longest; and a `normalized` one only after those that are not."""
    tokenizer = tiny.trained(pre_tokenizers.ByteLevel(add_prefix_space=False), size=300)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("ab", "abc", "cd", "bcde")])
    tokenizer.add_tokens([AddedToken("xab", normalized=True)])
    counter = HuggingFaceCounter.of(tokenizer, "tiny")
    assert isinstance(counter, RankedCounter)
    for text in ("abcd", "abcde", "abbcde", "xabcd", "xab", "ababcabcdbcde", "xxab xab"):
        assert counter.count(text, add_special_tokens=False) == len(
            tokenizers.Tokenizer.encode(tokenizer, text, add_special_tokens=False)
        ), text
