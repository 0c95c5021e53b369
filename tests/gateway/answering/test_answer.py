"""An answer under way: what it is taken to cost while no engine says so, and that it is released once."""

import pytest

from backends.contract import Delta, Done, Usage
from gateway.answering.answer import Answer
from gateway.call import PromptCount
from gateway.errors import EngineFailed
from gateway.routing.router import Target
from tests.gateway.builders import a_call, a_pool
from tests.gateway.engines import GOOD, an_answer


class Books:
    """A slot and a generation, as far as an answer uses them."""

    def __init__(self) -> None:
        self.tokens = 0
        self.ends: list[str] = []

    def progress(self, tokens: int) -> None:
        self.tokens += tokens

    def cancel(self) -> None:
        """As a generation."""

    def release(self) -> None:
        """As a slot."""


def an_answer_and_books(sent: int | None = 4096) -> tuple[Answer, Books]:
    books = Books()
    target = Target(None, None, "m", None, None)  # type: ignore[arg-type]  # not looked at
    prompt = PromptCount(tokens=10, exact=True, source="test", longest=10)
    answer = Answer(a_call(), target, books, books, sent, prompt, books.ends.append)  # type: ignore[arg-type]
    return answer, books


def test_an_event_of_one_token_is_one_token():
    answer, books = an_answer_and_books()
    for word in ("The ", "internationalisation", " of", " 水", "."):
        answer.note([Delta(text=word, tokens=1)])
    assert answer.counted_tokens == books.tokens == 5
    assert not answer.guessed


def test_an_event_with_the_text_of_many_tokens_is_not_one():
    """A client must not pay less for asking for a stream of an engine that gathers its tokens."""
    answer, books = an_answer_and_books()
    answer.note([Delta(text="water " * 400, tokens=1)])
    assert answer.counted_tokens == books.tokens == (2400 - 64) // 8
    assert answer.guessed
    answer.note([Delta(text="water", tokens=1)])
    assert answer.counted_tokens == 292 + 1


@pytest.mark.parametrize(
    ("text", "reason", "tokens"),
    [
        ("internationalisation " * 5, "stop", 12),
        ("internationalisation " * 5, "length", 12),
        ("A b c d e f g", "length", 12),
        ("A b c d e f g", "stop", 3),
        ("A b", "length", 3),
    ],
)
def test_a_guess_stays_within_the_bound(text: str, reason: str, tokens: int):
    """And is the bound where that ended the answer, unless there are not even so many bytes."""
    answer, _ = an_answer_and_books(sent=12)
    answer.note([Delta(text=text), Delta(finish_reason=reason), Done()])
    assert answer.guessed
    assert answer.completion_tokens == tokens


def test_what_no_engine_bounds_is_as_it_was_guessed():
    answer, _ = an_answer_and_books(sent=None)
    answer.note([Delta(text="internationalisation " * 5), Delta(finish_reason="length"), Done()])
    assert answer.completion_tokens == 105 // 4


def test_the_engines_own_figure_wins_at_the_end():
    answer, _ = an_answer_and_books()
    answer.note([Delta(text="water " * 400, tokens=1), Usage(prompt_tokens=10, completion_tokens=401)])
    assert answer.completion_tokens == 401


@pytest.mark.parametrize(
    ("events", "lost_by", "outcome"),
    [
        ([Delta(text="x"), Done()], "client", "ok"),
        ([Delta(text="x")], "client", "abandoned"),
        ([Delta(text="x")], "failed", "error"),
        ([Delta(text="x")], "timeout", "error"),
        ([Delta(text="x")], "shutdown", "shutdown"),
    ],
)
def test_how_it_ended_is_told_once(events, lost_by, outcome):
    """A client that left is no fault of the engine, and no success either."""
    answer, books = an_answer_and_books()
    with answer:
        answer.note(events)
        answer.lost_by = lost_by
    answer.release()
    assert books.ends == [outcome]


def test_a_limit_that_cuts_an_answer_ends_it_well():
    answer, books = an_answer_and_books()
    with answer:
        answer.cut("stop-after")
    assert books.ends == ["ok"]


def test_text_without_end_is_no_answer():
    answer, _ = an_answer_and_books(sent=10)
    with pytest.raises(EngineFailed):
        answer.note([Delta(text="x" * 100_000, tokens=1)])


def test_an_answer_is_released_once():
    answer = an_answer(a_call(), a_pool(), GOOD)
    ledger = answer.slot.ledger
    with answer:
        answer.note([Delta(text="a", tokens=3)])
        assert ledger.outstanding_tokens == 2
    answer.release()
    assert (ledger.in_flight, ledger.outstanding_tokens) == (0, 0)
    assert answer.generation.cancelled


def test_an_answer_keeps_the_latest_usage():
    """aigw#1633: a later event that tells less takes nothing away. Zero is a figure."""
    answer = an_answer(a_call(), a_pool())
    answer.note([Delta(text="a", tokens=2), Usage(prompt_tokens=5, completion_tokens=1)])
    answer.note([Usage(completion_tokens=2), Usage(cached_tokens=0)])
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (5, 2, 0)
    assert not answer.ended
    answer.note([Usage(completion_tokens=0), Done()])
    assert (answer.completion_tokens, answer.counted_tokens, answer.ended) == (0, 2, True)


@pytest.mark.parametrize(
    ("usage", "cached"),
    [
        (Usage(prompt_tokens=16, cached_tokens=16), 16),
        (Usage(prompt_tokens=16, cached_tokens=17), None),
        (Usage(prompt_tokens=16, cached_tokens=10**9), None),
        (Usage(prompt_tokens=10**9, cached_tokens=10**9), None),
        (Usage(cached_tokens=10**9), None),
        (Usage(cached_tokens=3), 3),
    ],
)
def test_no_more_of_a_prompt_is_cached_than_there_is(usage: Usage, cached: int | None):
    answer = an_answer(a_call(), a_pool())
    answer.note([usage])
    assert answer.cached_tokens == cached
