"""Logs: one line per record, whatever is in it."""

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.logs import MAX_VALUE, JsonFormatter, TextFormatter, configure, log_request


def a_line(formatter: logging.Formatter, message: str = "hi", *, fields=None, error=None, **more) -> str:
    record = logging.LogRecord("headgate.x", logging.WARNING, "x.py", 1, message, None, None)
    record.created = 1700000000.5
    if fields is not None:
        record.fields = fields
    if error is not None:
        try:
            raise error
        except type(error):
            record.exc_info = sys.exc_info()
    return formatter.format(record)


def test_a_line_of_json():
    line = json.loads(a_line(JsonFormatter(), fields={"pool": "short", "status": 200, "replica": None}))
    assert line == {
        "time": "2023-11-14T22:13:20.500+00:00",
        "level": "warning",
        "logger": "headgate.x",
        "message": "hi",
        "pool": "short",
        "status": 200,
    }


def test_a_line_of_text():
    line = a_line(TextFormatter(), fields={"pool": "short", "replica": None})
    assert line.endswith(" warning headgate.x hi pool=short")


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_values_are_cut(formatter):
    line = a_line(formatter, "m" * 10**6, fields={"path": "p" * 10**6})
    assert len(line) < 2 * MAX_VALUE + 200


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
@pytest.mark.parametrize("bad", ["a\nb", "a\r\nb", "\x1b[2J", "\x9b31m", "\x00", "\x85", "\u2028", "\x7f"])
def test_no_value_starts_a_line_or_speaks_to_the_terminal(formatter, bad):
    """S9: forged lines and escape sequences come out as text."""
    line = a_line(formatter, f"m {bad} m", fields={"path": f"/x{bad}y"})
    assert "\n" not in line
    assert "\r" not in line
    assert "\x1b" not in line
    if isinstance(formatter, TextFormatter):
        assert line.isprintable()
    else:
        assert json.loads(line)["path"] == f"/x{bad}y"


def test_an_exception_is_in_the_line():
    line = json.loads(a_line(JsonFormatter(), error=ValueError("boom\nforged line")))
    assert "ValueError: boom" in line["exception"]
    text = a_line(TextFormatter(), error=ValueError("boom \x1b[2J"))
    assert "ValueError: boom \\x1b[2J" in text
    assert "Traceback" in text


@pytest.mark.parametrize("odd", ["\ud800", 2**70, object(), {1, 2}, b"x", {"a": "\ud800"}])
def test_an_odd_value_never_costs_the_line(odd):
    line = json.loads(a_line(JsonFormatter(), fields={"odd": odd, "pool": "short"}))
    assert line["pool"] == "short"
    assert "odd" in line


@given(
    st.text(max_size=50), st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=20), max_size=3)
)
def test_any_text_is_one_line_of_json(message, fields):
    line = a_line(JsonFormatter(), message, fields=fields)
    assert "\n" not in line
    assert isinstance(json.loads(line), dict)


@pytest.fixture
def _root_logger():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


@pytest.mark.usefixtures("_root_logger")
@pytest.mark.parametrize(
    ("form", "kind"), [("json", JsonFormatter), ("text", TextFormatter), ("auto", JsonFormatter)]
)
def test_configure(form, kind, capsys):
    """`auto` is JSON where nobody watches. The chatty libraries speak up only when something is wrong."""
    configure("debug", form)
    logging.getLogger("headgate.test").debug("hello")
    logging.getLogger("httpx").info("HTTP Request: POST http://gpu1:8000/secret")
    assert [type(handler.formatter) for handler in logging.getLogger().handlers] == [kind]
    told = capsys.readouterr().err
    assert "hello" in told
    assert "secret" not in told


@pytest.mark.parametrize(("level", "lines"), [(logging.INFO, 1), (logging.WARNING, 0)])
def test_a_request_has_its_line_where_the_level_lets_it(caplog, level, lines):
    with caplog.at_level(level, logger="headgate.request"):
        log_request("completed", {"pool": "short"})
    assert [(record.getMessage(), record.fields) for record in caplog.records] == [
        ("completed", {"pool": "short"})
    ] * lines
