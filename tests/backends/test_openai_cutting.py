"""Cutting OpenAI's answers at stop strings: any division gives what the whole gives."""

import json

from hypothesis import given
from hypothesis import strategies as st

from backends.openai_cutting import CuttingDecoder
from backends.openai_errors import OPENAI
from tests.backends.folding import decode_body, fold


def _event(text: str, *, index: int = 0, finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def _read(body: bytes, stops: tuple[str, ...], choices: int = 1):
    return fold(decode_body(CuttingDecoder(choices, OPENAI, stops), body))


def test_the_stop_string_and_what_follows_are_cut() -> None:
    """Also where it straddles events; the reason is then `stop`, whatever the engine thought."""
    body = (
        _event("one S") + _event("TO") + _event("P two") + _event("", finish="length") + b"data: [DONE]\n\n"
    )
    result = _read(body, ("STOP",))
    assert (result.choices[0].text, result.choices[0].finish_reason) == ("one ", "stop")
    assert result.complete


def test_choices_are_cut_apart() -> None:
    body = _event("a#b", index=0) + _event("a", index=1) + _event("b", index=1, finish="stop")
    result = _read(body + b"data: [DONE]\n\n", ("#",), choices=2)
    assert {index: choice.text for index, choice in result.choices.items()} == {0: "a", 1: "ab"}


def test_held_text_is_released_at_any_end() -> None:
    """A reason, the end marker alone, an error: what only looked like a stop string is shown."""
    for end in (_event("", finish="stop") + b"data: [DONE]\n\n", b"data: [DONE]\n\n"):
        assert _read(_event("ST") + end, ("STOP",)).choices[0].text == "ST"
    result = _read(_event("a") + _event("ST") + b'data: {"error":{"message":"x","code":500}}\n\n', ("STOP",))
    assert result.choices[0].text == "aST"
    assert result.error is not None


def test_an_unstreamed_answer_is_cut() -> None:
    choice = {"index": 0, "message": {"content": "one STOP two"}, "finish_reason": "length"}
    result = _read(json.dumps({"choices": [choice]}).encode(), ("STOP",))
    assert (result.choices[0].text, result.choices[0].finish_reason) == ("one ", "stop")


@given(st.text(alphabet="abST", max_size=12), st.data())
def test_any_division_gives_the_same(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    end = _event("", finish="stop") + b"data: [DONE]\n\n"
    result = _read(b"".join(map(_event, pieces)) + end, ("ST", "aa"))
    cuts = [at for stop in ("ST", "aa") if (at := text.find(stop)) >= 0]
    assert result.choices[0].text == text[: min(cuts, default=len(text))]
