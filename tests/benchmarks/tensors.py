"""What a tensor that nobody wants costs: logits in a Triton answer, passed over unread.

    python -m tests.benchmarks.tensors [--smoke]

An answer of a few tokens with 10 MB of `context_logits` beside them, decoded as it comes (64 KiB at a time),
whole and as one event of a stream. CPU is the best of five; memory is the peak of what Python allocates.
For comparison: what decoding every number of it takes.
"""

import argparse
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from backends.contract import Done, Event
from backends.triton.wire import TritonDecoder

CHUNK = 64 * 1024


class Cost(NamedTuple):
    milliseconds: float
    peak: float
    """Bytes at the most, as a multiple of those of the answer."""


def logits(size: int) -> bytes:
    """A JSON list of about that many bytes."""
    some = random.Random(1)
    numbers = ",".join(f"{some.gauss(0, 5):.6f}" for _ in range(20_000))
    return f"[{','.join([numbers] * max(1, size // len(numbers)))}]".encode()


def answer(tensor: bytes, *, stream: bool, name: str = "context_logits") -> bytes:
    document = (
        b'{"model_name":"ensemble","%b":%b,"text_output":"hi there",'
        b'"num_input_tokens":3,"num_output_tokens":2}' % (name.encode(), tensor)
    )
    return b"data: " + document + b"\n\n" if stream else document


def decode(body: bytes) -> list[Event]:
    decoder = TritonDecoder(stops=(), max_tokens=12, text_mode="delta")
    decoder.head(200, {})
    events = [event for at in range(0, len(body), CHUNK) for event in decoder.feed(body[at : at + CHUNK])]
    events += decoder.end()
    assert isinstance(events[-1], Done), events[-1]
    return events


def cost(work: Callable[[], object], size: int, rounds: int = 5) -> Cost:
    taken = []
    for _ in range(rounds):
        before = time.process_time()
        work()
        taken.append(time.process_time() - before)
    tracemalloc.start()
    try:
        work()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return Cost(1e3 * min(taken), peak / size)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a tenth of the size, once")
    smoke = parser.parse_args().smoke
    tensor = logits(1_000_000 if smoke else 10_000_000)
    print(f"{len(tensor) / 1e6:.1f} MB of logits: {'':18} {'CPU ms':>8} {'peak, x its bytes':>18}")
    for stream in (False, True):
        body = answer(tensor, stream=stream)
        its = cost(lambda: decode(body), len(body), 1 if smoke else 5)  # noqa: B023 - called at once
        what = "one event of a stream" if stream else "a whole answer"
        print(f"{what:40} {its.milliseconds:8.1f} {its.peak:18.1f}")
    body = answer(tensor, stream=False)
    its = cost(lambda: msgspec.json.decode(body), len(body), 1 if smoke else 5)
    print(f"{'every number decoded':40} {its.milliseconds:8.1f} {its.peak:18.1f}")


if __name__ == "__main__":
    main()
