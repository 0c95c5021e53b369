"""What prefix affinity costs a request on the event loop.

    python -m tests.benchmarks.prefixes [--smoke]

Per chat of so many KB (2 KB a message): hashing its leading blocks of 128 tokens; looking them up in an index
that holds them; noting them as sent. Best of several runs: a shared machine only ever adds.
"""

import sys
import time
from collections.abc import Callable

from backends.contract import GenerateRequest
from gateway.queueing.prefixes import PrefixIndex
from gateway.tokens.leading import leading

BLOCK_TOKENS = 128
SIZES_KB = (1, 4, 16, 64, 256, 1024)
RUNS = 7


def chat(size: int, word: str) -> GenerateRequest:
    """A chat of `size` KB of ASCII, or as many characters of another script."""
    messages = max(1, size // 2)
    length = size * 1024 // messages
    text = (word * (length // len(word) + 1))[:length]
    roles = ("user", "assistant")
    return GenerateRequest(
        request_id="benchmark",
        model="m",
        stream=True,
        messages=[{"role": roles[number % 2], "content": text} for number in range(messages)],
    )


def microseconds(work: Callable[[], object], times: int) -> float:
    best = float("inf")
    for _ in range(RUNS):
        began = time.perf_counter()
        for _ in range(times):
            work()
        best = min(best, (time.perf_counter() - began) / times)
    return best * 1e6


def measure(size: int, word: str) -> tuple[int, float, float, float]:
    """Blocks; microseconds to hash, to look up, to note."""
    request, tokens = chat(size, word), size * 256
    opening = leading(request, tokens, BLOCK_TOKENS, "m")
    index = PrefixIndex(BLOCK_TOKENS)
    index.sent("r1", tokens, opening.blocks, None)
    times = max(3, 2000 // size)
    return (
        len(opening.blocks),
        microseconds(lambda: leading(request, tokens, BLOCK_TOKENS, "m"), times),
        microseconds(lambda: index.hits(tokens, opening.blocks, None, opening.tokens), times),
        microseconds(lambda: index.sent("r1", tokens, opening.blocks, None), times),
    )


def main() -> None:
    print("KB     script    blocks  hash us  look up us  note us")
    for size in SIZES_KB[:2] if "--smoke" in sys.argv else SIZES_KB:
        for script, word in (("Latin", "canal "), ("Cyrillic", "канал ")):
            blocks, hashing, looking, noting = measure(size, word)
            print(f"{size:<6} {script:<9} {blocks:<7} {hashing:<8.1f} {looking:<11.1f} {noting:.1f}")


if __name__ == "__main__":
    main()
