"""What counting costs, and how long it holds the event loop.

    python -m tests.benchmarks.counting [--smoke] [--json FILE]

1. A conversation of 40 turns that grows: thread CPU of each request's count, rendering included, with the
   library alone (`tokenizers`), with tiktoken where it is proved equal, and remembered (tokens/caching.py).
2. CPU per KB of text that was never seen, tiktoken against `tokenizers`.
3. The longest callback on the loop of a real gateway while 16 clients send prompts of 600 KB, each fresh and
   most hostile. A callback is timed by its CPU clock: wall time would blame it for what other threads
   and processes did. Clients and engine are processes of their own.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import platform
import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tokenizers

from backends.contract import GenerateRequest
from gateway.cli.serve import freeze_the_furniture
from gateway.config.snapshot import TokenizerSpec
from gateway.tokens.counters import HuggingFaceCounter
from gateway.tokens.tokenizing import Tokenizer
from tests.benchmarks import stub_engine
from tests.benchmarks.measuring import cpus
from tests.end_to_end.world import KEY, TOKENIZER, world

CORPUS = TOKENIZER.parent / "corpus"
TARGET_MS = 20.0


@dataclass(frozen=True, slots=True)
class Sizes:
    turns: int
    rounds: int
    clients: int
    requests: int
    """Of each form, by each client."""
    prompt: int
    """Bytes."""


FULL = Sizes(turns=40, rounds=5, clients=16, requests=3, prompt=600_000)
SMOKE = Sizes(turns=6, rounds=1, clients=2, requests=1, prompt=60_000)


# ------------------------------------------------------------------------------- a growing conversation


def words_of(name: str) -> list[str]:
    return (CORPUS / f"{name}.txt").read_text(encoding="utf-8").split()


def requests(turns: int, seed: int) -> list[GenerateRequest]:
    """Each with one more question, and the answer to the one before."""
    rng, words = random.Random(seed), words_of("english")

    def text(length: int) -> str:
        return " ".join(rng.choices(words, k=length))

    messages = [{"role": "system", "content": text(200)}]
    made = []
    for _ in range(turns):
        messages.append({"role": "user", "content": text(rng.randint(20, 120))})
        copy = [dict(message) for message in messages]
        made.append(GenerateRequest(request_id="b", model="m", stream=True, messages=copy))
        messages.append({"role": "assistant", "content": text(rng.randint(40, 200))})
    return made


def cpu_of(work: Callable[[], Any]) -> tuple[float, Any]:
    """Thread CPU in microseconds, and what came out."""
    start = time.thread_time()
    result = work()
    return 1e6 * (time.thread_time() - start), result


def conversation(sizes: Sizes) -> dict[str, Any]:
    fast = Tokenizer.load(TokenizerSpec("huggingface", path=str(TOKENIZER)))
    library = tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    ways = {
        "tokenizers": Tokenizer(HuggingFaceCounter(library, "library"), fast.template),
        "tiktoken": Tokenizer(fast.counter, fast.template),
    }
    each: dict[str, list[list[float]]] = {"tokenizers": [], "tiktoken": [], "cached": [], "rendering": []}
    for round_ in range(sizes.rounds):
        ways["cached"] = Tokenizer.load(TokenizerSpec("huggingface", path=str(TOKENIZER)))
        figures: dict[str, list[float]] = {name: [] for name in each}
        for request in requests(sizes.turns, round_):
            found = set()
            for name, tokenizer in ways.items():
                # As the service does: at once on the loop where that is cheap, else in a thread.
                cost, count = cpu_of(lambda t=tokenizer, r=request: t.remembered(r) or t.count(r))  # type: ignore[misc]
                figures[name].append(cost)
                found.add(count.tokens)
            assert len(found) == 1, f"counts differ: {found}"
            figures["rendering"].append(cpu_of(lambda r=request: fast._render(r, neutralise=False))[0])  # type: ignore[misc]
        for name, row in figures.items():
            each[name].append(row)
    per_turn = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in each.items()
    }
    return {
        "us_per_request": {name: round(statistics.fmean(row), 1) for name, row in per_turn.items()},
        "us_last_turn": {name: round(row[-1], 1) for name, row in per_turn.items()},
        "plain_by_cached": {
            name: round(sum(per_turn[name]) / sum(per_turn["cached"]), 1)
            for name in ("tokenizers", "tiktoken")
        },
        "turns": sizes.turns,
    }


# --------------------------------------------------------------------------------------- cost per KB


def per_kilobyte(sizes: Sizes) -> dict[str, dict[str, float]]:
    """{text: {engine: microseconds per KB}}, of text that was never seen."""
    fast = HuggingFaceCounter.from_directory(TOKENIZER)
    slow = HuggingFaceCounter(tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")), "library")
    rng, rows = random.Random(1), {}
    for name in ("english", "russian", "chinese", "code"):
        words = words_of(name)
        for kilobytes in (1, 64) if sizes.rounds > 1 else (1,):
            costs: dict[str, list[float]] = {"tokenizers": [], "tiktoken": []}
            for _ in range(sizes.rounds * 2):
                text = ""
                while len(text.encode()) < 1024 * kilobytes:
                    text += " ".join(rng.choices(words, k=20)) + "\n"
                length = len(text.encode()) / 1024
                for engine, counter in (("tokenizers", slow), ("tiktoken", fast)):
                    cost, _ = cpu_of(lambda c=counter, t=text: c.count(t, add_special_tokens=False))  # type: ignore[misc]
                    costs[engine].append(cost / length)
            row = {engine: round(statistics.median(each), 1) for engine, each in costs.items()}
            rows[f"{name}, {kilobytes} KB"] = {**row, "ratio": round(row["tokenizers"] / row["tiktoken"], 1)}
    return rows


# ---------------------------------------------------------------------------------------- the loop


def fresh(rng: random.Random, text: str, size: int) -> str:
    """`text` again and again, cut to `size`, with something of its own before and in it."""
    mark = f"{rng.getrandbits(64):016x} "
    return mark + (text * (size // len(text) + 1))[rng.randrange(len(text)) :][: size - len(mark)]


def _words(rng: random.Random, size: int) -> Any:
    common = words_of("english")
    return " ".join(rng.choices(common, k=size // 6))[:size]


def _parts(rng: random.Random, size: int) -> Any:
    return [{"type": "text", "text": rng.choice("abcdef ")} for _ in range(size // 29)]


CONTENTS: dict[str, Callable[[random.Random, int], Any]] = {
    "words": _words,
    "one word": lambda rng, size: "".join(rng.choices(string.ascii_lowercase, k=size)),
    "one letter": lambda rng, size: rng.choice(string.ascii_letters) * size,
    "signs": lambda rng, size: rng.choice("^-=*#") * size,
    "spaces": lambda rng, size: fresh(rng, " " * 1000, size),
    "line ends": lambda rng, size: fresh(rng, " \n\r\n", size),
    "chinese": lambda rng, size: "".join(map(chr, rng.choices(range(0x4E00, 0x9FFF), k=size // 3))),
    "marks": lambda rng, size: fresh(rng, "a\u0301\u0323\u1100\u1161\u212b", size // 3),
    "control tokens": lambda rng, size: fresh(rng, "<|eot_id|>", size),
    "half control tokens": lambda rng, size: fresh(rng, "<|start_header_i<|", size),
    "lone surrogates": lambda rng, size: fresh(rng, "a\ud800", size // 7),
    "many parts": _parts,
}
"""What one message holds, fresh each time."""


def body_of(form: str, rng: random.Random, size: int) -> bytes:
    body: dict[str, Any] = {"model": "m", "max_tokens": 4}
    if form == "many messages":
        body["messages"] = [
            {"role": ("user", "assistant")[turn % 2], "content": f"{rng.random():.3f}"}
            for turn in range(size // 40)
        ]
    elif form == "tools":
        nested: Any = {"type": "string"}
        for _ in range(20):
            nested = {
                "type": "object",
                "properties": {f"p{rng.randrange(99)}": nested, "q": {"type": "number"}},
            }
        tool = {"type": "function", "function": {"name": "f", "parameters": nested}}
        body |= {
            "tools": [tool] * (size // len(json.dumps(tool))),
            "messages": [{"role": "user", "content": "Hi"}],
        }
    else:
        body["messages"] = [{"role": "user", "content": CONTENTS[form](rng, size)}]
    return json.dumps(body, ensure_ascii=form == "lone surrogates").encode()


FORMS = (*CONTENTS, "many messages", "tools")


async def _client(port: int, bodies: Sequence[bytes]) -> list[int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    statuses = []
    for body in bodies:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % (KEY.encode(), len(body))
        )
        writer.write(body)
        async with asyncio.timeout(60):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        statuses.append(int(head[9:12]))
    writer.close()
    return statuses


def clients(jobs: Connection) -> None:
    """A process: sends what it is told to, (port, form, seed), until it is told None."""
    while (job := jobs.recv()) is not None:
        port, form, sizes, seed = job
        rng = random.Random(f"{form}{seed}")
        bodies = [
            [body_of(form, rng, sizes.prompt) for _ in range(sizes.requests)] for _ in range(sizes.clients)
        ]

        async def send(port: int = port, bodies: list[list[bytes]] = bodies) -> list[int]:
            found = await asyncio.gather(*(_client(port, each) for each in bodies))
            return [status for statuses in found for status in statuses]

        jobs.send(asyncio.run(send()))


@dataclass(slots=True)
class Longest:
    """Callbacks of the running loop since the last `clear`."""

    cpu: float = 0.0
    what: str = ""
    over: int = 0
    """Those above 5 ms."""
    collecting: float = 0.0
    """Longest run of the garbage collector, in any thread; part of a callback if it was in the loop's."""

    def clear(self) -> None:
        self.cpu, self.what, self.over, self.collecting = 0.0, "", 0, 0.0


@contextlib.contextmanager
def timed_callbacks() -> Iterator[Longest]:
    """Every callback of asyncio's own loop in this thread, by its thread CPU."""
    longest, clock = Longest(), time.thread_time
    plain = asyncio.Handle._run

    def run(handle: Any) -> None:
        callback = handle._callback
        start = clock()
        plain(handle)
        spent = clock() - start
        longest.over += spent > 0.005
        if spent > longest.cpu:
            longest.cpu, longest.what = spent, name_of(callback)

    began = 0.0

    def collecting(phase: str, _: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = clock()
        else:
            longest.collecting = max(longest.collecting, clock() - began)

    asyncio.Handle._run = run  # type: ignore[method-assign,assignment]
    gc.callbacks.append(collecting)
    try:
        yield longest
    finally:
        gc.callbacks.remove(collecting)
        asyncio.Handle._run = plain  # type: ignore[method-assign]


def name_of(callback: Any) -> str:
    """Whose step a callback is: a task's coroutine, else the function."""
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        return f"task {getattr(task.get_coro(), '__qualname__', task.get_name())}"
    return str(getattr(callback, "__qualname__", repr(callback)))


@contextlib.contextmanager
def process(target: Callable[..., None], *more: Any) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(theirs, *more), daemon=True)
    child.start()
    try:
        yield ours
    finally:
        child.kill()
        child.join()


async def loop_figures(sizes: Sizes, directory: Path) -> dict[str, dict[str, Any]]:
    """{form: its longest callback}"""
    rows: dict[str, dict[str, Any]] = {}
    with (
        process(stub_engine.serve, cpus()[1]) as engine,
        process(clients) as sender,
        timed_callbacks() as longest,
    ):
        url = f"http://127.0.0.1:{engine.recv()}"
        models = {"m": {"context": 4_000_000}}
        async with world(directory, {"pool": {"kind": "openai", "url": url}}, models=models) as here:
            freeze_the_furniture()
            port = int(here.addresses.data.rpartition(":")[2])
            for seed, form in enumerate(("words", *FORMS)):  # the first is a warm-up
                await asyncio.sleep(0)
                longest.clear()
                sender.send((port, form, sizes, seed))
                start = time.perf_counter()
                statuses = await asyncio.to_thread(_received, sender)
                seconds = time.perf_counter() - start
                rows[form] = {
                    "ms": round(1e3 * longest.cpu, 2),
                    "what": longest.what,
                    "over_5_ms": longest.over,
                    "gc_ms": round(1e3 * longest.collecting, 2),
                    "requests": len(statuses),
                    "statuses": {str(status): statuses.count(status) for status in sorted(set(statuses))},
                    "seconds": round(seconds, 2),
                }
            told = here.gateway.runtime.counting.statistics()
            assert told.abandoned == 0 or sizes is SMOKE
    return rows


def _received(sender: Connection) -> list[int]:
    assert sender.poll(300), "the clients do not answer"
    statuses: list[int] = sender.recv()
    return statuses


# ---------------------------------------------------------------------------------------- reporting


def show(result: dict[str, Any]) -> None:
    talk = result["conversation"]
    print(f"A conversation of {talk['turns']} turns, thread CPU of a request's count, us")
    print(f"  {'':12} {'mean':>8} {'last turn':>10} {'x cached':>9}")
    for name in ("tokenizers", "tiktoken", "cached", "rendering"):
        times = talk["plain_by_cached"].get(name)
        mean, last = talk["us_per_request"][name], talk["us_last_turn"][name]
        print(f"  {name:12} {mean:8.0f} {last:10.0f} {f'{times:.1f}' if times else '':>9}")
    print("  (rendering is part of the three above)")
    print("\nText never seen before, us per KB")
    print(f"  {'':16} {'tokenizers':>11} {'tiktoken':>9} {'ratio':>6}")
    for text, row in result["per_kb"].items():
        print(f"  {text:16} {row['tokenizers']:11.1f} {row['tiktoken']:9.1f} {row['ratio']:6.1f}")
    sizes = result["sizes"]
    print(
        "\nLongest callback on the loop, thread CPU; "
        f"{sizes['clients']} clients, {sizes['prompt'] // 1000} KB each; garbage collector in any thread"
    )
    print(f"  {'form':20} {'ms':>7} {'>5 ms':>6} {'gc ms':>6}  {'statuses':14} whose")
    for form, row in result["loop"].items():
        statuses = " ".join(f"{status}x{count}" for status, count in row["statuses"].items())
        print(
            f"  {form:20} {row['ms']:7.2f} {row['over_5_ms']:6} {row['gc_ms']:6.1f}  {statuses:14} "
            f"{row['what']}"
        )
    worst = max(row["ms"] for row in result["loop"].values())
    print(f"  worst {worst:.1f} ms; target: below {TARGET_MS:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    sizes = SMOKE if arguments.smoke else FULL
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as directory:
        result = {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "sizes": asdict(sizes),
            "conversation": conversation(sizes),
            "per_kb": per_kilobyte(sizes),
            # asyncio's own loop: uvloop's callbacks cannot be timed from outside.
            "loop": asyncio.run(loop_figures(sizes, Path(directory))),
        }
    show(result)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
