"""The wire vectors: recorded answers of real engines, and what a right adapter makes of them.

How each is checked: `vectors.py`. The table of results: `python -m tests.backends.vector_table`.
"""

from pathlib import Path

import pytest

from tests.backends.vector_table import main
from tests.backends.vectors import VECTORS, check, names


def test_the_vectors_are_there(shared_dir: Path) -> None:
    """A missing folder would make this module pass without a check."""
    assert len(names()) == 79
    assert len(names()) == len(list(VECTORS.rglob("*.json"))), "a vector in a folder that nobody reads"


def test_the_count_is_of_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m tests.backends.vector_table --count`, which the closing note quotes."""
    assert main(["--count"]) == 0
    assert capsys.readouterr().out.startswith("79 of 79 vectors pass\n")


@pytest.mark.parametrize("name", names())
def test_an_answer_is_read_as_expected(name: str) -> None:
    """Wherever TCP cuts an answer, it means the same, and what the vector says."""
    check(name)
