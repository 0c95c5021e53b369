"""Traffic made from published figures, for those who have no trace: seeded, the same everywhere.

Each source is described by what its public trace shows: quantiles of the prompt's tokens, quantiles of the
output's tokens in each fifth of the prompts (lengths of neighbours in time are independent: lag-1 correlation
of log lengths below 0.1 in all of them), requests in each minute of the hour, and how unevenly they fall
within a minute. For the last, a minute is divided into six parts, each of these into ten seconds, each second
into ten, with shares drawn from a symmetric Dirichlet distribution whose parameter was fitted to the counts
of the trace (variance of a Dirichlet-multinomial); `inf` is even.

Sources: Azure LLM inference traces 2023, conversation and code (CC-BY-4.0; Patel et al., Splitwise, ISCA
2024); Mooncake conversation trace (Apache-2.0; Qin et al., Mooncake, FAST 2025), prompts cut at 60,000
tokens.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.replay.requests import TraceRequest

__all__ = ["DOCS_CAP", "DOCS_REQUESTS", "SOURCES", "Source", "mixed", "requests_of"]

DOCS_CAP = 60_000
"""Longest prompt of the documents in the mix, tokens."""
DOCS_REQUESTS = 3_087
"""A quarter of the Mooncake conversation trace, as the mix takes it; 31,272 requests in all."""

PROMPT_LEVELS = (
    0, 1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95, 98, 99, 99.5, 100,
)  # fmt: skip
OUTPUT_LEVELS = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 100)
"""Percent, for the quantiles below."""


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of traffic; a tenant of the mix."""

    name: str
    prompts: tuple[int, ...]
    """Quantiles at PROMPT_LEVELS."""
    outputs: tuple[tuple[int, ...], ...]
    """Quantiles at OUTPUT_LEVELS, for each fifth of the prompts."""
    minutes: tuple[int, ...]
    """Requests in each minute of the trace."""
    unevenness: tuple[float, float, float]
    """Dirichlet parameters: parts of ten seconds, of one, of a tenth."""


# fmt: off
CONVERSATION = Source(
    "conv",
    (2, 29, 91, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130, 1189, 1315, 1876,
     2734, 4083, 4098, 4142, 4831, 14050),
    ((7, 12, 16, 24, 63, 75, 87, 106, 133, 162, 179, 212, 217, 261, 1000),
     (24, 51, 72, 80, 86, 90, 93, 97, 101, 107, 117, 135, 148, 184, 739),
     (10, 40, 76, 95, 375, 390, 396, 399, 409, 415, 429, 461, 532, 639, 1000),
     (26, 44, 79, 139, 375, 388, 396, 401, 411, 418, 429, 479, 550, 654, 1000),
     (15, 27, 34, 39, 48, 56, 67, 78, 92, 108, 133, 168, 202, 407, 918)),
    (191, 265, 329, 353, 307, 273, 268, 261, 322, 298, 301, 302, 345, 326, 283, 279, 280, 308, 343, 351, 351,
     343, 408, 396, 386, 398, 432, 480, 476, 453, 448, 507, 438, 413, 423, 418, 465, 311, 329, 316, 333, 355,
     319, 360, 334, 375, 330, 249, 221, 249, 265, 280, 256, 254, 242, 260, 246, 225, 37),
    (262.0, 54.5, 35.6),
)
CODE = Source(
    "code",
    (3, 17, 35, 75, 147, 232, 385, 578, 770, 938, 1075, 1261, 1469, 1690, 1909, 2163, 2433, 2744, 3192, 3920,
     5187, 7303, 7436, 7436, 7436, 7437),
    ((6, 6, 6, 7, 8, 10, 12, 14, 16, 19, 28, 54, 88, 232, 1899),
     (6, 6, 6, 7, 8, 9, 11, 13, 16, 21, 30, 57, 89, 250, 841),
     (6, 6, 6, 7, 8, 9, 11, 13, 16, 21, 30, 55, 85, 233, 824),
     (6, 6, 6, 7, 8, 9, 11, 12, 14, 18, 26, 52, 89, 254, 940),
     (6, 6, 6, 7, 8, 10, 11, 13, 16, 21, 30, 58, 100, 288, 928)),
    (63, 0, 0, 531, 187, 130, 15, 42, 38, 476, 421, 63, 0, 0, 632, 299, 0, 20, 396, 315, 116, 78, 306, 447,
     252, 34, 128, 111, 406, 234, 118, 169, 130, 306, 158, 0, 339, 55, 285, 191, 0, 28, 205, 245, 99, 0, 0,
     32, 0, 0, 0, 97, 212, 22, 32, 113, 47, 196),
    (0.85, 1.6, 4.5),
)
DOCUMENTS = Source(
    "docs",
    (891, 894, 896, 901, 964, 1261, 1662, 2306, 3263, 4251, 4993, 5870, 6909, 8186, 9570, 11237, 13196, 15367,
     17869, 21464, 27367, 39550, 60000, 60000, 60000, 60000),
    ((1, 3, 9, 21, 55, 137, 223, 300, 363, 421, 482, 574, 657, 882, 2000),
     (1, 3, 12, 29, 111, 219, 295, 352, 405, 457, 520, 629, 737, 1127, 2000),
     (1, 3, 10, 26, 114, 217, 293, 352, 400, 442, 495, 567, 661, 970, 2000),
     (1, 3, 12, 28, 141, 249, 312, 361, 405, 446, 495, 576, 671, 1044, 2000),
     (1, 1, 8, 20, 103, 246, 318, 371, 417, 465, 526, 634, 772, 1991, 2000)),
    (162, 177, 207, 175, 197, 164, 135, 192, 162, 179, 218, 186, 186, 193, 180, 177, 189, 169, 190, 212, 211,
     196, 228, 202, 178, 230, 189, 210, 216, 209, 235, 186, 192, 192, 234, 208, 238, 185, 228, 234, 207, 234,
     190, 240, 205, 228, 196, 230, 227, 226, 228, 247, 222, 216, 200, 228, 212, 241, 203),
    (140.5, math.inf, math.inf),
)
# fmt: on

SOURCES = {source.name: source for source in (CONVERSATION, CODE, DOCUMENTS)}


def requests_of(source: Source, count: int | None, rng: random.Random) -> list[TraceRequest]:
    """`count` requests, or as many as the trace has, in order of time."""
    return sorted(_requests(source, count, rng), key=lambda request: request.at)


def mixed(rng: random.Random, count: int | None = None) -> list[TraceRequest]:
    """Conversation, code and documents in one hour: 31,272 requests, or about `count`, 72 % of them short."""
    whole = {"conv": sum(CONVERSATION.minutes), "code": sum(CODE.minutes), "docs": DOCS_REQUESTS}
    share = 1.0 if count is None else count / sum(whole.values())
    requests: list[TraceRequest] = []
    for name, amount in whole.items():
        requests += _requests(SOURCES[name], max(1, round(amount * share)), rng)
    return sorted(requests, key=lambda request: request.at)


def _requests(source: Source, count: int | None, rng: random.Random) -> Iterator[TraceRequest]:
    for at in _arrivals(source, sum(source.minutes) if count is None else count, rng):
        level = rng.random() * 100
        prompt = _quantile(PROMPT_LEVELS, source.prompts, level)
        fifth = source.outputs[min(int(level / 20), 4)]
        output = _quantile(OUTPUT_LEVELS, fifth, rng.random() * 100)
        yield TraceRequest(at, source.name, prompt, output)


def _arrivals(source: Source, count: int, rng: random.Random) -> Iterator[float]:
    """By minutes in their proportions, to the request; then by lot, part by part."""
    whole = sum(source.minutes)
    before = due = 0
    for minute, requests in enumerate(source.minutes):
        due += requests
        here = round(due * count / whole)
        yield from _spread(minute * 60.0, 60.0, here - before, source.unevenness, (6, 10, 10), rng)
        before = here


def _spread(
    start: float,
    length: float,
    count: int,
    unevenness: tuple[float, ...],
    parts: tuple[int, ...],
    rng: random.Random,
) -> Iterator[float]:
    if not count:
        return
    if not parts or math.isinf(unevenness[0]):
        for _ in range(count):
            yield start + length * rng.random()
        return
    weights = [rng.gammavariate(unevenness[0], 1.0) for _ in range(parts[0])]
    counts = [0] * parts[0]
    for part in rng.choices(range(parts[0]), weights, k=count):
        counts[part] += 1
    length /= parts[0]
    for part, some in enumerate(counts):
        yield from _spread(start + part * length, length, some, unevenness[1:], parts[1:], rng)


def _quantile(levels: tuple[float, ...], values: tuple[int, ...], level: float) -> int:
    """Between two quantiles, evenly."""
    above = min(max(bisect_right(levels, level), 1), len(levels) - 1)
    low, high = levels[above - 1], levels[above]
    share = (level - low) / (high - low)
    return round(values[above - 1] + share * (values[above] - values[above - 1]))
