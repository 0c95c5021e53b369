"""Triton over HTTP and over gRPC, side by side: what a client pays, and what is computed for one that left.

    python -m tests.benchmarks.triton_grpc [--smoke]

A real tritonserver (`tests/real_triton`) with models in Python, of which each response is a token. Over HTTP
the client is the gateway's own: `backends.transport` and the adapter's decoder. Over gRPC it is
`ModelStreamInfer` of grpc.aio with Triton's generated messages, and nothing around them: text and ends are
read, no more, so that an adapter would cost more than this. Both send the same tensors. CPU is that of the
client's process, all threads, and of Triton's; the best of three rounds, in turn.

A client leaves 0.2 s after its request began, or while it waits behind another. A token takes 50 ms. `told`:
milliseconds until the model could see it (`is_cancelled`); `wasted`: tokens made after that the client left.

Decision: docs/decisions/010-triton-grpc.md.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import itertools
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from backends.client import EngineClient
from backends.contract import Delta, Done, Endpoint, EngineError, GenerateRequest
from backends.transport import AiohttpTransport
from backends.triton.adapter import TritonAdapter, TritonOptions
from tests.benchmarks.measuring import cpu_seconds
from tests.real_triton.server import TritonServer, running, why_not

try:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc
except ImportError:
    grpc = None

NOT_RUN = "NOT RUN: "
DIRECT, QUEUE, LLMAPI = "tensorrt_llm_bls", "small_queue", "tensorrt_llm"
TOKENS = 60
TOKEN_SECONDS = 0.05
PERIOD = 0.2
OVER = {"ended", "cancelled", "failed"}


# ---------------------------------------------------------------------------------------------- clients


Ask = Callable[[str, str, int, bool], Awaitable[int]]
"""model, prompt, max_tokens, stream -> characters of the answer. Cancelling it is leaving."""


@contextlib.asynccontextmanager
async def over_http(server: TritonServer) -> AsyncIterator[Ask]:
    transport, numbers = AiohttpTransport(), itertools.count()
    endpoint = Endpoint(server.url)
    classic = EngineClient(TritonAdapter(TritonOptions(text_mode="delta")), transport, endpoint)
    llmapi = EngineClient(TritonAdapter(TritonOptions(vocabulary="llmapi")), transport, endpoint)

    async def ask(model: str, prompt: str, max_tokens: int, stream: bool) -> int:
        request = GenerateRequest(
            request_id=f"http-{next(numbers)}",
            model=model,
            stream=stream,
            prompt=prompt,
            max_tokens=max_tokens,
        )
        generation = await (llmapi if model == LLMAPI else classic).generate(request)
        characters, done = 0, False
        try:
            while not done:
                for event in await generation.events():
                    characters += len(event.text) if isinstance(event, Delta) else 0
                    done |= isinstance(event, Done)
        finally:
            generation.cancel()
        return characters

    try:
        yield ask
    finally:
        await transport.aclose()


@contextlib.asynccontextmanager
async def over_grpc(server: TritonServer) -> AsyncIterator[Ask]:
    """One call for each request: on a stream that requests share, none of them can be cancelled alone."""
    assert server.grpc is not None
    numbers = itertools.count()
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        async def ask(model: str, prompt: str, max_tokens: int, stream: bool) -> int:
            message = infer_request(f"grpc-{next(numbers)}", model, prompt, max_tokens, stream)
            call = stub.ModelStreamInfer()
            characters = 0
            try:
                await call.write(message)
                async for answer in call:
                    if answer.error_message:
                        raise RuntimeError(answer.error_message)
                    response = answer.infer_response
                    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
                        if output.name == "text_output":
                            characters += len(
                                raw[4:].decode(errors="replace")
                            )  # one element, after its length
                    if response.parameters["triton_final_response"].bool_param:
                        await call.done_writing()  # only then does Triton end the stream
            finally:
                call.cancel()  # of one that is over: nothing
            return characters

        yield ask


def infer_request(number: str, model: str, prompt: str, max_tokens: int, stream: bool) -> Any:
    """The tensors that the adapter sends over HTTP."""
    request = service_pb2.ModelInferRequest(model_name=model, id=number)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    text = prompt.encode()
    raw = len(text).to_bytes(4, "little") + text
    if model == LLMAPI:
        tensors = [
            ("text_input", "BYTES", raw), ("streaming", "BOOL", bytes([stream])),
            ("sampling_param_max_tokens", "INT32", max_tokens.to_bytes(4, "little")),
            ("sampling_param_exclude_input_from_output", "BOOL", b"\1"),
            ("return_finish_reason", "BOOL", b"\1"),
        ]  # fmt: skip
    else:
        tensors = [
            ("text_input", "BYTES", raw), ("max_tokens", "INT32", max_tokens.to_bytes(4, "little")),
            ("stream", "BOOL", bytes([stream])), ("exclude_input_in_output", "BOOL", b"\1"),
            ("return_num_input_tokens", "BOOL", b"\1"), ("return_num_output_tokens", "BOOL", b"\1"),
            ("top_p", "FP32", b"\0\0\x80\x3f"),
        ]  # fmt: skip
    shape = [1] if model == LLMAPI else [1, 1]
    for name, datatype, content in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(content)
    return request


OVERS: dict[str, Callable[[TritonServer], Any]] = {"http": over_http, "grpc": over_grpc}


# --------------------------------------------------------------------------------------------------- CPU


def _who(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["id"].partition("-")[0], entry["event"]


class Cost(NamedTuple):
    """CPU microseconds for each unit."""

    client: float
    server: float


async def cost(
    server: TritonServer, ask: Ask, *, requests: int, tokens: int, stream: bool, at_once: int
) -> Cost:
    """Of one request of `tokens` tokens."""
    prompt = "x" * (4 * tokens)
    left = iter(range(requests))

    async def work() -> None:
        for _ in left:
            said = await ask(DIRECT, prompt, tokens, stream)
            if said != len(prompt):
                raise RuntimeError(f"{said} of {len(prompt)}: {Counter(map(_who, server.journal('')))}")

    client, its = time.process_time(), cpu_seconds(server.pid)
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    return Cost(
        1e6 * (time.process_time() - client) / requests, 1e6 * (cpu_seconds(server.pid) - its) / requests
    )


async def costs(server: TritonServer, clients: dict[str, Ask], smoke: bool) -> None:
    requests, rounds, tokens = (4, 1, 20) if smoke else (200, 3, 100)
    kinds = {"a whole answer": (1, False), "a stream of one token": (1, True), f"of {tokens}": (tokens, True)}
    best: dict[tuple[str, str], Cost] = {}
    for _, (kind, (count, stream)), (name, ask) in itertools.product(
        range(rounds), kinds.items(), clients.items()
    ):
        seen = await cost(server, ask, requests=requests, tokens=count, stream=stream, at_once=16)
        before = best.get((kind, name), seen)
        best[kind, name] = Cost(min(before.client, seen.client), min(before.server, seen.server))
    print(f"{'CPU, µs':28} {'http':>9} {'grpc':>9} {'grpc/http':>10}    {'Triton: http':>13} {'grpc':>9}")
    for kind in kinds:
        row(f"{kind}, a request", best[kind, "http"], best[kind, "grpc"])
    (one, many) = list(kinds)[1:]
    per_token = [
        Cost(*((more - less) / (tokens - 1) for more, less in zip(best[many, n], best[one, n], strict=True)))
        for n in clients
    ]
    row("a token of a stream", *per_token)


def row(what: str, http: Cost, rpc: Cost) -> None:
    ratio = f"{rpc.client / http.client:.2f}x" if http.client else "-"
    print(
        f"{what:28} {http.client:9.1f} {rpc.client:9.1f} {ratio:>10}    {http.server:13.1f} {rpc.server:9.1f}"
    )


# ----------------------------------------------------------------------------------------------- leaving


class Left(NamedTuple):
    told: float | None
    """Seconds until the model could see it; None: never."""
    tokens: int
    """Made after the client had left."""


NUMBERS = itertools.count()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.005)


async def leave(server: TritonServer, ask: Ask, model: str, stream: bool, word: str, queued: bool) -> Left:
    prompt = f"{word} !slow {next(NUMBERS)} {time.monotonic_ns()}".ljust(TOKENS * 4, ".")
    loop = asyncio.get_running_loop()
    ahead = None
    if queued:
        await asyncio.sleep(1)
        other = prompt.replace(" !slow", " !slow ahead")
        ahead = loop.create_task(ask(model, other, 20, True))
        await until(lambda: ahead.done() or bool(server.journal(other)))
        if ahead.done():
            await ahead  # refused: the queue is full, of nobody
    asking = loop.create_task(ask(model, prompt, TOKENS, stream))
    await until(
        lambda: asking.done() or (server.pending(model) > 0 if queued else bool(server.journal(prompt)))
    )
    if asking.done():
        await asking  # refused: the queue is full, of nobody
    await asyncio.sleep(PERIOD)
    so_far = server.journal(prompt)
    left_at = time.monotonic()
    asking.cancel()
    await asyncio.wait([asking])
    if ahead is not None:
        await ahead
        with contextlib.suppress(TimeoutError):  # a count that is never put right, see `report_queue`
            await until(lambda: bool(server.journal(prompt)) or server.pending(model) == 0)
        await asyncio.sleep(0.5)
        if not server.journal(prompt):  # dropped from the queue
            return Left(None, 0)
    await until(lambda: bool(OVER & set(server.events(prompt))))
    journal = server.journal(prompt)
    told = next((entry["at"] - left_at for entry in journal if entry["event"] == "told"), None)
    seconds = 0.0 if queued or not so_far else left_at - so_far[0]["at"] - (0.5 if word else 0.0)
    return Left(told, max(0, journal[-1]["tokens"] - int(max(0.0, seconds) / TOKEN_SECONDS)))


PHASES = {
    "decoding": (DIRECT, "", False),
    "prefilling (0.5 s)": (DIRECT, "!prefill", False),
    "llmapi, decoding": (LLMAPI, "", False),
    "BLS as shipped, decoding": ("shipped_bls", "", False),
    "ensemble, decoding": ("ensemble", "", False),
    "queued": (QUEUE, "", True),
}


async def leavings(server: TritonServer, clients: dict[str, Ask], smoke: bool) -> None:
    """One client after the other: what gRPC leaves in a queue would be in the way of HTTP."""
    rows = [*itertools.product(PHASES, (True, False))][: 1 if smoke else None]
    cells: dict[tuple[str, bool], list[str]] = {row: [] for row in rows}
    stuck = 0
    for ask in clients.values():
        for phase, stream in rows:
            model, word, queued = PHASES[phase]
            try:
                left = await leave(server, ask, model, stream, word, queued)
            except (EngineError, RuntimeError) as refused:
                cells[phase, stream].append(f"{'(refused)':>19}")
                print(f"{phase}: {refused}; {server.pending(model)} counted as waiting")
                continue
            told = "-" if left.told is None else f"{1e3 * left.told:.0f} ms"
            cells[phase, stream].append(f"{told:>11} {left.tokens:7}")
    for number in range(0 if smoke else 5):
        with contextlib.suppress(RuntimeError):
            await leave(server, clients["grpc"], QUEUE, True, "", True)
        await asyncio.sleep(1)
        if server.pending(QUEUE):
            stuck = number + 1
            break
    head = f"left, of {TOKENS} tokens"
    print(f"\n{head:38} {'http: told':>11} {'wasted':>7} {'grpc: told':>11} {'wasted':>7}")
    for (phase, stream), pair in cells.items():
        print(f"{phase + (', streamed' if stream else ', whole'):38} {' '.join(pair)}")
    if not smoke:
        await report_queue(server, clients["http"], stuck)


async def report_queue(server: TritonServer, ask: Ask, after: int) -> None:
    if not after:
        print("five cancelled over gRPC while queued: the queue is empty afterwards")
        return
    await asyncio.sleep(5)
    counted = server.pending(QUEUE)
    print(f"cancelled over gRPC while queued, {after} times: {counted} still counted after 6 s idle")
    try:
        await ask(QUEUE, "Is there room?", 4, True)
        print("a request to that queue (max_queue_size 1): served")
    except EngineError as error:
        print(f"a request to that queue (max_queue_size 1): {error.message}")


# --------------------------------------------------------------------------------------------- dependency


def sizes() -> None:
    print("\ninstalled, MiB:")
    total = 0.0
    for name in ("grpcio", "protobuf", "tritonclient", "numpy"):
        files = importlib.metadata.files(name) or []
        size = sum(each.size or 0 for each in files) / 2**20
        needed = "(the client's; with generated messages of our own it is not needed)"
        total += size if name in ("grpcio", "protobuf") else 0
        print(f"  {name:14} {size:6.1f} {'' if name in ('grpcio', 'protobuf') else needed}")
    print(f"  the least: {total:.1f}")
    before = (
        "import os, time, backends.transport, tests.benchmarks.measuring as m; start = time.perf_counter();"
    )
    after = "print(f'{1e3 * (time.perf_counter() - start):.0f} ms, "
    after += "{m.resident_mib(os.getpid()):.0f} MiB resident')"
    for what, code in (("nothing", ""), ("grpc.aio", "import grpc.aio, google.protobuf.message;")):
        told = subprocess.run([sys.executable, "-c", before + code + after], capture_output=True, text=True)
        print(f"  importing {what} beside the transport: {told.stdout.strip()}")


async def measure(server: TritonServer, smoke: bool) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(over(server)) for name, over in OVERS.items()}
        await costs(server, clients, smoke)
        await leavings(server, clients, smoke)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a few requests, one that leaves")
    smoke = parser.parse_args().smoke
    reason = why_not() or ("tritonclient[grpc] is not installed" if grpc is None else None)
    if reason is not None:
        print(f"{NOT_RUN}Triton over gRPC: {reason}")
        return
    with tempfile.TemporaryDirectory() as directory, running(Path(directory), grpc=True) as server:
        uvloop.run(measure(server, smoke))
    sizes()


if __name__ == "__main__":
    main()
