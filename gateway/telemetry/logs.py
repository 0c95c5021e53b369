"""Logs: JSON lines on standard error, or text where a person watches. One line per finished request.

Prompts, keys and query strings are never logged. A value is cut at MAX_VALUE characters.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

MAX_VALUE = 1024

LogFormat = Literal["json", "text", "auto"]

request_log = logging.getLogger("headgate.request")


def log_request(outcome: str | None, fields: dict[str, Any]) -> None:
    """Write the line of a finished request.

    `Logger.info` would also find out where in the code it was called, which no line shows.
    """
    if request_log.isEnabledFor(logging.INFO):
        record = logging.LogRecord(request_log.name, logging.INFO, __file__, 0, outcome, None, None)
        record.fields = fields
        request_log.handle(record)


_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
"""Escaped in text: no value starts a line of its own or speaks to the terminal."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line. `extra={"fields": {...}}` is merged into it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MAX_VALUE],
        }
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        if fields:
            line |= {
                name: value[:MAX_VALUE] if isinstance(value, str) else value
                for name, value in fields.items()
                if value is not None
            }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))[-4 * MAX_VALUE :]
        try:
            return orjson.dumps(line, default=str).decode()
        except orjson.JSONEncodeError:  # half a surrogate pair, a number beyond 64 bits: rare, never lost
            return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:00 info headgate.request completed pool=short-pool ...`"""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = f"{when} {record.levelname.lower()} {record.name} {record.getMessage()[:MAX_VALUE]}"
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        if fields:
            line += "".join(f" {name}={_short(value)}" for name, value in fields.items() if value is not None)
        line = line.translate(_CONTROLS)
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(record.exc_info[1]))
            line = "\n".join((line, *(each.translate(_CONTROLS) for each in trace.rstrip().split("\n"))))
        return line


def configure(level: str = "info", form: LogFormat = "auto") -> None:
    """Send all logs of the process to standard error in `form`; `auto` is text on a terminal."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    # No line shows these, and each record would look them up ("Optimization" in the logging HOWTO).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx", "httpcore", "uvicorn.access", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of each malformed request


def _short(value: object) -> object:
    return value[:MAX_VALUE] if isinstance(value, str) else value
