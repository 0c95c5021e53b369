"""docs/errors.md: printed from the tables, and fit for clients."""

import pytest

from backends.contract import ErrorKind
from gateway.cli.error_page import COLUMNS, main, page, rows
from gateway.engine_errors import MEANINGS, gateway_error_for
from gateway.errors import engine_text
from tests.conftest import REPO


def test_the_page_is_printed_from_the_tables() -> None:
    """`python -m gateway.cli.error_page > docs/errors.md`."""
    assert (REPO / "docs" / "errors.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("engine", COLUMNS)
def test_what_a_client_reads_is_sanitised(engine: str) -> None:
    """No traceback, path or address of any row; words of engines only where the request is at fault."""
    for row in rows(engine):
        seen = gateway_error_for(row.error, "chat")
        assert seen.status in (400, 502, 503, 504), row
        assert engine_text(seen.message) == seen.message, row
        meaning = MEANINGS[row.error.kind]
        if not meaning.quotes:
            assert seen.message == meaning.words, row


def test_every_kind_means_something() -> None:
    assert set(MEANINGS) == set(ErrorKind)


def test_the_count_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--count"])
    assert capsys.readouterr().out.count("\n") == len(COLUMNS) + 2
