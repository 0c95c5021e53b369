"""Which engine is behind a URL: cheap questions, and who recognises the answers.

Each engine says what it wants to know and by which answers it knows itself (`metadata.py`); here they take
turns. The order matters: engines with an interface of their own come first, then those of OpenAI's dialect
whose model list names its owner, and the plain OpenAI dialect, which takes anybody, comes last.

Pure, like the rest: whoever does the asking (`gateway.examining.discovery`) repeats

    questions(answers) -> ask them, and put each answer under its path

until there are none left, and then calls identify(answers).

Most upstreams take one round; Triton takes three (server, models, each model), SGLang two.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from backends.contract import Answers, HttpRequest, Identified

__all__ = ["Recogniser", "identify", "questions"]


class Recogniser(Protocol):
    """An engine's `metadata` module."""

    def questions(self, answers: Answers, /) -> Sequence[HttpRequest]:
        """All that this engine would like to have asked, given the answers so far."""

    def recognise(self, answers: Answers, /) -> Identified | None:
        """What it is, if it is this engine."""


def questions(recognisers: Iterable[Recogniser], answers: Answers) -> Sequence[HttpRequest]:
    """Everybody's questions that were not asked yet, each once."""
    asked = {
        question.path: question for recogniser in recognisers for question in recogniser.questions(answers)
    }
    return [question for path, question in asked.items() if path not in answers]


def identify(recognisers: Iterable[Recogniser], answers: Answers) -> Identified | None:
    """What the first one that recognises the answers makes of them."""
    found = (recogniser.recognise(answers) for recogniser in recognisers)
    return next((identified for identified in found if identified is not None), None)
