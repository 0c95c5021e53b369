"""What an answer under way is taken to cost while no engine says so."""

import pytest

from backends.contract import Delta, Usage
from gateway.answer import Answer
from gateway.call import PromptCount
from gateway.errors import EngineFailed
from gateway.routing.router import Target
from tests.gateway.builders import a_call


class Books:
    """A slot and a generation, as far as an answer uses them."""

    def __init__(self) -> None:
        self.tokens = 0

    def progress(self, tokens: int) -> None:
        self.tokens += tokens


def an_answer(sent: int | None = 4096) -> tuple[Answer, Books]:
    books = Books()
    target = Target(None, None, "m", None, None)  # type: ignore[arg-type]  # not looked at
    prompt = PromptCount(tokens=10, exact=True, source="test", longest=10)
    return Answer(a_call(), target, books, books, sent, prompt), books  # type: ignore[arg-type]


def test_an_event_of_one_token_is_one_token():
    answer, books = an_answer()
    for word in ("The ", "internationalisation", " of", " 水", "."):
        answer.note([Delta(text=word, tokens=1)])
    assert answer.counted_tokens == books.tokens == 5
    assert not answer.guessed


def test_an_event_with_the_text_of_many_tokens_is_not_one():
    """A client must not pay less for asking for a stream of an engine that gathers its tokens."""
    answer, books = an_answer()
    answer.note([Delta(text="water " * 400, tokens=1)])
    assert answer.counted_tokens == books.tokens == (2400 - 64) // 8
    assert answer.guessed
    answer.note([Delta(text="water", tokens=1)])
    assert answer.counted_tokens == 292 + 1


def test_the_engines_own_figure_wins_at_the_end():
    answer, _ = an_answer()
    answer.note([Delta(text="water " * 400, tokens=1), Usage(prompt_tokens=10, completion_tokens=401)])
    assert answer.completion_tokens == 401


def test_text_without_end_is_no_answer():
    answer, _ = an_answer(sent=10)
    with pytest.raises(EngineFailed):
        answer.note([Delta(text="x" * 100_000, tokens=1)])
