"""Kinds of text, and their bytes."""

import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tokens import scripts
from gateway.tokens.scripts import EXACT, SAMPLE, measure

ENGLISH = "The gate at the head of the canal decides how much water enters, and which way it goes. "
RUSSIAN = "Шлюз в голове канала решает, сколько воды войдёт и по какому руслу она пойдёт. "
CODE = "def count(self, text: str) -> int:\n    return len(self._ids[text])  # {0: 1}\n"
SHUFFLED = random.Random(1)

KINDS = {
    "words:latin": ENGLISH,
    "symbols:latin": CODE,
    "figures:latin": "Q3 2024: 17,203.55 EUR (+4.1 %), NOx 12 ug/m3; ",
    "cyrillic:4": RUSSIAN,
    "cyrillic:2": RUSSIAN + CODE + CODE,
    "han:4": "渠首的闸门决定有多少水进入以及流入哪条渠道。",
    "hangul:4": "수문은얼마나많은물이들어올지결정한다",
    "arabic:4": "البوابةتقرركميةالماء",
    "emoji:4": "👩‍👩‍👧‍👦😀",
    "blank": "\n" * 50,
}
DENSE = {
    "base64": base64.b64encode(SHUFFLED.randbytes(3000)).decode(),
    "hex": SHUFFLED.randbytes(3000).hex(),
    "an endless word": "a" * 4000,
    "random letters in words": "".join(SHUFFLED.choices("bcdfghjklmnpqrstvwxz     aei", k=4000)),
    "one line of JSON": '{"id":12,"x":[1,2,3]}' * 200,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [1, 10, 1000])
def test_kinds(kind, times):
    """The same whether a text is read whole or in slices."""
    assert measure(KINDS[kind] * times, lambda: 0.5).kind == kind


@pytest.mark.parametrize("name", DENSE)
def test_dense_text_is_not_taken_for_words(name):
    """Its tokens are short."""
    assert measure(DENSE[name], lambda: 0.5).kind == "dense:latin"


@given(text=st.text(max_size=3 * SAMPLE), phase=st.floats(0, 1, exclude_max=True))
def test_bytes_of_texts_that_are_not_long_are_counted(text, phase):
    """Lone surrogates too, as three."""
    measured = measure(text, lambda: phase)
    assert measured.size == len(text.encode("utf-8", "surrogatepass"))
    assert measured.kind


@given(phase=st.floats(0, 1, exclude_max=True))
def test_bytes_of_long_texts_are_projected(phase):
    """Within two percent here."""
    text = RUSSIAN * (2 * EXACT // len(RUSSIAN))
    assert measure(text, lambda: phase).size == pytest.approx(len(text.encode()), rel=0.02)


def test_nothing_hides_between_the_slices():
    """Where they begin is not known beforehand."""
    slices = [ENGLISH[:60] + DENSE["base64"][index * 100 : index * 100 + 200] for index in range(16)]
    hidden = "".join(slices) * 20
    kinds = {measure(hidden, random.Random(seed).random).kind for seed in range(20)}
    assert kinds == {"dense:latin"}


def test_no_text():
    assert measure("", lambda: 0.0).size == 0


@given(st.binary(max_size=300), st.sampled_from([1, 4 * SAMPLE]))
def test_bits_count_what_bytes_are(data, fill):
    """Up to the longest sample, of characters of four bytes."""
    data += b"e" * (fill - len(data))
    classes = int.from_bytes(data.translate(scripts.CLASSES), "little")
    masks = {
        scripts.IS_BLANK: scripts.BLANKS,
        scripts.IS_LETTER: scripts.LETTERS,
        scripts.IS_VOWEL: scripts.VOWELS,
    }
    for mask, members in masks.items():
        assert (classes & mask).bit_count() == sum(byte in members for byte in data)
