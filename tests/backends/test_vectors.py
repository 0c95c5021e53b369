"""The wire vectors: recorded answers of real engines, and what a right adapter makes of them.

How each is checked: `vectors.py`. The table of results: `python -m tests.backends.vector_table`.
"""

from pathlib import Path

import pytest

from tests.backends.vectors import check, names


def test_the_vectors_are_there(shared_dir: Path) -> None:
    """A missing folder would make this module pass without a check."""
    assert len(names()) == 79


@pytest.mark.parametrize("name", names())
def test_an_answer_is_read_as_expected(name: str) -> None:
    """Wherever TCP cuts an answer, it means the same, and what the vector says."""
    check(name)
