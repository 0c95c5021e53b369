"""docs/errors.md: printed from the tables, and fit for clients."""

import pytest

from backends.contract import ErrorKind
from gateway.api.passing import stream_failure
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


def test_how_streams_end_is_told_as_it_is() -> None:
    """`[DONE]` is the end of chats and completions alone, and the page's rows are of every door."""
    (row, *_) = (row for row in rows("vllm") if row.begun)
    for door in ("responses", "messages"):
        assert b"[DONE]" not in stream_failure(door, gateway_error_for(row.error, door))
    told = [line for line in page().splitlines() if "an error event" in line]
    assert told
    assert not any(line.endswith("`[DONE]` |") for line in told)
