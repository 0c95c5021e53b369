"""The SSE framer: any split gives the one-shot events, and no byte is lost."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.sse import SseEvent, SseFramer


def frame(pieces: list[bytes], **options: int) -> tuple[list[SseEvent], bool]:
    framer = SseFramer(**options)
    events = [event for piece in pieces for event in framer.feed(piece)]
    return events + framer.end(), framer.overflowed


def payloads(body: bytes) -> list[bytes]:
    return [event.data for event in frame([body])[0] if event.data]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'data: {"a":1}\n\n', [b'{"a":1}']),
        (b"data:no space\n\n", [b"no space"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"data: a\ndata: b\ndata\n\n", [b"a\nb\n"]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [b"a", b"b", b"c"]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\n\n", [b"a"]),
        (b": keep-alive\n\n:\n\ndata: a\n\n", [b"a"]),
        (b":comment\ndata: a\n\n", [b"a"]),
        (b"\n\n\ndata: a\n\n", [b"a"]),
        (b"data: a \n\n", [b"a "]),
        (b"dataset: a\n\n", []),
        (b"data: a\n\ndata: cut", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
        ("data: \u2028\u0085\x0c\x1c漢\n\n".encode(), ["\u2028\u0085\x0c\x1c漢".encode()]),
    ],
)
def test_lines_are_read_as_the_standard_says(body: bytes, expected: list[bytes]) -> None:
    """One space after the colon goes; comments and other fields are skipped; only CR, LF, CRLF end a line."""
    assert payloads(body) == expected


def test_a_comment_is_an_event_without_data() -> None:
    """So that a relay which writes `raw` loses no byte."""
    assert frame([b": ping\n\n"])[0] == [SseEvent(b": ping\n\n", None)]


def test_the_usual_event_comes_out_at_once() -> None:
    """Neither LF nor CRLF frames wait for the next byte."""
    framer = SseFramer()
    assert framer.feed(b"data: a\n\n") == [SseEvent(b"data: a\n\n", b"a")]
    assert framer.feed(b"data: b\r\n\r\n") == [SseEvent(b"data: b\r\n\r\n", b"b")]
    assert not framer.pending


def test_a_last_cr_waits_for_the_byte_that_decides() -> None:
    """A CR may be half of a CRLF; the end of the body decides, too."""
    framer = SseFramer()
    assert framer.feed(b"data: a\r\n\r") == []
    assert framer.feed(b"\ndata: b\r\r") == [SseEvent(b"data: a\r\n\r\n", b"a")]
    assert framer.end() == [SseEvent(b"data: b\r\r", b"b")]
    assert framer.end() == []


def test_pending_tells_of_an_event_that_was_cut() -> None:
    """White space that waits is no event."""
    for body, pending in ((b"\n \r", False), (b"data: a\n\n", False), (b"data: a\n\ndata", True)):
        framer = SseFramer()
        framer.feed(body)
        framer.end()
        assert framer.pending is pending


sse_bytes = st.lists(
    st.sampled_from(
        [
            b"\r",
            b"\n",
            b"\r\n",
            b"\n\n",
            b"data:",
            b"data: ",
            b"data",
            b":",
            b" ",
            b"x",
            b"\xef\xbb\xbf",
            "漢".encode(),
        ]
    ),
    max_size=30,
).map(b"".join)


@settings(deadline=None)
@given(body=sse_bytes, places=st.lists(st.integers(0, 100)), limit=st.sampled_from([4, 9, 10_000]))
def test_any_split_equals_the_one_shot_parse(body: bytes, places: list[int], limit: int) -> None:
    """Also where an event passes the limit; and `raw` is the input, up to what is incomplete."""
    whole, overflowed = frame([body], max_event_bytes=limit)
    bounds = [0, *sorted(min(place, len(body)) for place in places), len(body)]
    pieces = [body[a:b] for a, b in pairwise(bounds)]
    assert frame(pieces, max_event_bytes=limit) == (whole, overflowed)
    assert frame([body[at : at + 1] for at in range(len(body))], max_event_bytes=limit) == (whole, overflowed)
    raw = b"".join(event.raw for event in whole)
    assert body.startswith(raw)
    if limit > len(body):
        assert not overflowed
        rest = SseFramer()
        assert [event for event in rest.feed(body[len(raw) :]) if event.data] == []


@settings(deadline=None)
@given(body=sse_bytes)
def test_the_parse_equals_one_by_lines(body: bytes) -> None:
    """Against the standard's own algorithm, written line by line."""
    text = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    expected: list[bytes] = []
    data: list[bytes] = []
    for line in text.split(b"\n")[:-1]:
        if not line:
            if any(data) or len(data) > 1:
                expected.append(b"\n".join(data))
            data = []
        elif line.partition(b":")[0] == b"data":
            data.append(line.partition(b":")[2].removeprefix(b" "))
    assert payloads(body) == expected


def test_an_event_over_the_limit_is_not_buffered() -> None:
    """Events before it still come out; after it nothing does."""
    framer = SseFramer(max_event_bytes=100)
    assert [event.data for event in framer.feed(b"data: a\n\ndata: " + b"x" * 200)] == [b"a"]
    assert framer.overflowed
    assert framer.feed(b"\n\ndata: b\n\n") == []
    assert framer.end() == []


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_large_event_costs_linear_time(line_end: bytes) -> None:
    """1 MiB, byte by byte: seconds if each byte is looked at once, hours if the buffer is searched anew."""
    body = b"data: " + b"x" * (1024 * 1024) + line_end * 2
    framer = SseFramer()
    began = time.perf_counter()
    events = [event for at in range(len(body)) for event in framer.feed(body[at : at + 1])]
    assert time.perf_counter() - began < 30
    assert [event.raw for event in events] == [body]


def test_many_events_in_one_piece_cost_linear_time() -> None:
    """The buffer is not copied for each event."""
    body = b"data: x\n\n" * 100_000
    began = time.perf_counter()
    assert len(frame([b"\n", body])[0]) == 100_000
    assert time.perf_counter() - began < 10
