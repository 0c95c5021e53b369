"""Asking the engines of a configuration about themselves: health, limits, token counts, streaming.

Control plane, for `headgate tokenizers verify` and `headgate doctor`: few questions, over httpx, with the
pool's own credentials. What is asked and how it is read is the adapters'
business. Nothing here raises because of an engine: an answer that did not come, or makes no sense, is None.

Token counts are compared as requests are counted: text as it is, a chat in the model's template; and for an
engine that takes only text, the chat as the gateway renders it for that engine. The engine's word is its
tokenize route, or where it has none (or not for this question) the usage of a request with `max_tokens: 1`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import httpx
import msgspec

from backends.contract import (
    Answer,
    Delta,
    Endpoint,
    Failure,
    GenerateRequest,
    HttpRequest,
    Metadata,
    Usage,
)
from gateway import asking
from gateway.asking import NoAnswer, ask_all, client_for, sent
from gateway.config.snapshot import Model, Pool, Replica, Snapshot, TokenizerSpec
from gateway.errors import GatewayError
from gateway.fleet.engine_limits import first_name
from gateway.fleet.fleet import endpoint_of
from gateway.tokens.counters import TokenizerError
from gateway.tokens.counting import Counting
from gateway.tokens.engine_counts import Askable, EngineCounts
from gateway.tokens.tokenizing import Tokenizer

__all__ = [
    "SAMPLES", "Comparison", "LoadedTokenizer", "ReplicaReport", "Streaming", "ask", "compare_tokenizer",
    "compare_tokenizers", "counting_of", "inspect_replica", "is_well", "load_tokenizers", "try_streaming",
    "upstream",
]  # fmt: skip

TIMEOUT = 10.0
"""Seconds for one question. A generated token of a busy engine is among them."""
MAX_ANSWER = 4 * 1024 * 1024
"""Bytes of an answer; TGI tells some 60 bytes for each token of a text."""

SAMPLES: Mapping[str, str] = {
    "English": "The headgate measures what may enter the canal, and where it goes.",
    "English, short": "Hi",
    "English, capitals": "DON'T OPEN THE GATE! It's John's, isn't it? WE'LL SEE.",
    "Russian": "Шлюз измеряет, сколько воды войдёт в канал, и направляет её на поля.",
    "Russian, mixed": "Сервер GPU-03 обработал 1 204 запроса за 3,5 с — это на 12% быстрее.",
    "Chinese": "水闸决定多少水可以进入运河,以及水流向哪里。",
    "Japanese": "水門は、どれだけの水が運河に入るかを決めます。",
    "Korean": "수문은 운하로 들어가는 물의 양을 조절합니다.",
    "Arabic": "تقيس البوابة كمية المياه التي تدخل القناة.",
    "Hindi": "जलद्वार तय करता है कि नहर में कितना पानी जाएगा।",
    "German": "Die Schleusenwärterin prüft täglich die Größe der Öffnung; übermäßig ist sie nie.",
    "Python": "def gate(level: float) -> bool:\n    # open it\n    return level < 0.5 and not closed\n",
    "JSON": '{"gates": [{"id": 1, "open": true, "level": 0.75}, {"id": 2, "open": false}], "n": null}',
    "markup": "# Title\n\n- one\n- **two**\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<p class='x'>&nbsp;</p>\n",
    "numbers": "3.14159265358979 1,000,000 0xDEADBEEF 2024-02-29T23:59:59Z 192.168.0.1 1e-9",
    "emoji": "🚀 ship it 👩‍👩‍👧‍👦 🇳🇱 👍🏽 ❤️ done ✅",
    "white space": "a  b   c\t\td\n\n\n  e \r\n f",
    "combining": "e\u0301 n\u0303 Z\u0351\u036b\u0343 \u00bd \ufb01 \u200b\u00a0x",
    "URL": "https://example.org/a/b?q=%D0%B2%D0%BE%D0%B4%D0%B0&x[]=1#frag-ment_2",
    "long": "Water runs downhill; the gate decides when. Вода течёт вниз. 水往低处流。\n" * 60,
}
"""What is counted on both sides: twenty texts on which tokenizers, normalizers and templates differ."""


# ------------------------------------------------------------------------------------------ our side


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A model's tokenizer, loaded, or why it cannot be."""

    model: str
    spec: TokenizerSpec
    tokenizer: Tokenizer | None
    seconds: float
    """What loading took; 0 where another model had loaded it already."""
    error: str | None = None


def load_tokenizers(snapshot: Snapshot) -> list[LoadedTokenizer]:
    """Of every model, in the file's order. Synchronous and slow: call it in a thread."""
    loaded: dict[TokenizerSpec, Tokenizer] = {}
    found = []
    for model in snapshot.models.values():
        start, error = time.perf_counter(), None
        if model.tokenizer not in loaded:
            try:
                loaded[model.tokenizer] = Tokenizer.load(model.tokenizer)
            except TokenizerError as problem:
                error = str(problem)
        seconds = time.perf_counter() - start
        found.append(
            LoadedTokenizer(model.name, model.tokenizer, loaded.get(model.tokenizer), seconds, error)
        )
    return found


@asynccontextmanager
async def counting_of(loaded: list[LoadedTokenizer], snapshot: Snapshot) -> AsyncIterator[Counting]:
    """A Counting for the models whose tokenizers could be loaded; engines that count are asked over httpx."""
    counting = Counting({each.spec: each.tokenizer for each in loaded if each.tokenizer is not None})
    pools = {name: _askable(pool) for name, pool in snapshot.pools.items()}
    counting = counting.asking(EngineCounts(pools, _answer, time.monotonic))
    try:
        yield counting
    finally:
        await counting.aclose()


# ------------------------------------------------------------------------------------------- asking


def upstream(pool: Pool) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    """A client for the replicas of `pool`. Raises OSError or ValueError for a CA file that is none."""
    return client_for(endpoint_of(pool, pool.replicas[0]))


async def ask(client: httpx.AsyncClient, endpoint: Endpoint, question: HttpRequest) -> Answer | None:
    """The whole answer; None where none came, or one too large."""
    try:
        return await asking.ask(client, endpoint, question, seconds=TIMEOUT, most=MAX_ANSWER)
    except NoAnswer:
        return None


async def _answer(pool: Pool, replica: Replica, question: HttpRequest) -> Answer | None:
    """A question of the counting engines, each over a connection of its own."""
    try:
        async with upstream(pool) as client:
            return await ask(client, endpoint_of(pool, replica), question)
    except (OSError, ValueError):
        return None


def _askable(pool: Pool) -> Askable:
    return Askable(pool, lambda: pool.replicas)


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a replica says of itself."""

    pool: str
    replica: str
    ready: bool
    why: str
    metadata: Metadata | None = None
    """None where nothing answers there."""


async def inspect_replica(client: httpx.AsyncClient, pool: Pool, replica: Replica) -> ReplicaReport:
    """Its health, and what it tells of itself."""
    endpoint, adapter = endpoint_of(pool, replica), pool.adapter
    health = await ask(client, endpoint, adapter.health_request())
    if health is None:
        return ReplicaReport(pool.name, replica.id, False, f"no answer from {replica.url}")
    questions = adapter.metadata_requests(first_name(pool.serves.values()))
    answers = await ask_all(client, endpoint, questions, seconds=TIMEOUT, most=MAX_ANSWER)
    return ReplicaReport(
        pool.name,
        replica.id,
        adapter.read_health(health.status, health.body).ready,
        f"its health answers {health.status}",
        adapter.read_metadata(answers),
    )


async def is_well(client: httpx.AsyncClient, pool: Pool, replica: Replica) -> bool:
    """Whether its health is good."""
    health = await ask(client, endpoint_of(pool, replica), pool.adapter.health_request())
    return health is not None and pool.adapter.read_health(health.status, health.body).ready


# ------------------------------------------------------------------------------------ token counts


@dataclass(frozen=True, slots=True)
class Comparison:
    """One sample, counted on both sides. `theirs` None: the engine does not tell, or refused."""

    pool: str
    model: str
    replica: str
    sample: str
    form: Literal["text", "chat"]
    ours: int
    theirs: int | None
    by: Literal["tokenize route", "usage", "nothing"]

    @property
    def differs(self) -> bool:
        return self.theirs is not None and self.theirs != self.ours


async def compare_tokenizer(
    client: httpx.AsyncClient, pool: Pool, replica: Replica, model: Model, counting: Counting
) -> list[Comparison]:
    """Each sample as text and, where it can be, as a chat. Empty where the gateway itself only estimates."""
    found = []
    for name, text in SAMPLES.items():
        for form in ("text", "chat"):
            request = _request(pool.serves[model.name], text, form)
            count = await counting.count(model, request)
            if form == "chat" and not pool.adapter.applies_template:
                try:
                    prepared = await counting.prepare(model, request, adds_bos=pool.adapter.adds_bos)
                except GatewayError:  # no template, or one that refuses: no such request is ever sent
                    continue
                count = prepared.count
                request = msgspec.structs.replace(request, rendered=prepared.rendered)
            if not count.exact:
                continue
            theirs, by = await _their_count(client, pool, replica, request)
            found.append(Comparison(pool.name, model.name, replica.id, name, form, count.tokens, theirs, by))
    return found


async def compare_tokenizers(
    client: httpx.AsyncClient, pool: Pool, replicas: Iterable[Replica], model: Model, counting: Counting
) -> list[list[Comparison]]:
    """What `compare_tokenizer` finds for each of `replicas`, asked side by side: one of them may have been
    started with another model, another template or another version."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(compare_tokenizer(client, pool, replica, model, counting))
            for replica in replicas
        ]
    return [task.result() for task in tasks]


async def _their_count(
    client: httpx.AsyncClient, pool: Pool, replica: Replica, request: GenerateRequest
) -> tuple[int | None, Literal["tokenize route", "usage", "nothing"]]:
    adapter, endpoint = pool.adapter, endpoint_of(pool, replica)
    text = request.rendered if request.rendered is not None else request.prompt
    assert text is None or isinstance(text, str)
    question = adapter.tokenize_request(
        request.model, text=text, messages=request.messages if text is None else None
    )
    if question is not None and (answer := await ask(client, endpoint, question)) is not None:
        count = adapter.read_token_count(answer.status, answer.body)
        if count is not None:
            return count, "tokenize route"
    if adapter.unsupported(request) is None:
        answer = await ask(client, endpoint, adapter.encode(request))
        if answer is not None:
            decoder = adapter.decoder(request)
            decoder.head(answer.status, {"content-type": "application/json"})
            told = [
                event.prompt_tokens
                for event in [*decoder.feed(answer.body), *decoder.end()]
                if isinstance(event, Usage) and event.prompt_tokens is not None
            ]
            if told:
                return told[-1], "usage"
    return None, "nothing"


def _request(
    served: str, text: str, form: str, *, stream: bool = False, max_tokens: int = 1
) -> GenerateRequest:
    return GenerateRequest(
        request_id="headgate-inspection",
        model=served,
        stream=stream,
        messages=[{"role": "user", "content": text}] if form == "chat" else None,
        prompt=text if form == "text" else None,
        max_tokens=max_tokens,
        parameters={},
    )


# --------------------------------------------------------------------------------------- streaming


@dataclass(frozen=True, slots=True)
class Streaming:
    """Whether a pool's engine streams; None: it cannot be told."""

    pool: str
    model: str
    works: bool | None
    why: str


async def try_streaming(
    client: httpx.AsyncClient, pool: Pool, replica: Replica, model: Model, counting: Counting
) -> Streaming:
    """Ask for a few tokens, streamed: more than one piece must come."""
    if "chat" not in pool.doors:
        return Streaming(pool.name, model.name, None, "it serves no chats")
    request = _request(
        pool.serves[model.name], "Count to twenty in words.", "chat", stream=True, max_tokens=8
    )
    if not pool.adapter.applies_template:
        try:
            prepared = await counting.prepare(model, request, adds_bos=pool.adapter.adds_bos)
            request = msgspec.structs.replace(request, rendered=prepared.rendered)
        except GatewayError:
            request = msgspec.structs.replace(request, messages=None, prompt="One two three")
    if (reason := pool.adapter.unsupported(request)) is not None:
        return Streaming(pool.name, model.name, None, reason.message)
    pieces = 0
    try:
        async with (
            asyncio.timeout(TIMEOUT),
            sent(client, endpoint_of(pool, replica), pool.adapter.encode(request)) as answer,
        ):
            decoder = pool.adapter.decoder(request)
            decoder.head(answer.status_code, {name.lower(): value for name, value in answer.headers.items()})
            async for data in answer.aiter_bytes():
                events = decoder.feed(data)
                for event in events:
                    if isinstance(event, Failure):
                        return Streaming(pool.name, model.name, False, _clean(event.error.message))
                pieces += sum(isinstance(event, Delta) for event in events)
                if pieces > 1:
                    return Streaming(pool.name, model.name, True, "tokens came one after the other")
            for event in decoder.end():
                if isinstance(event, Failure):
                    return Streaming(pool.name, model.name, False, _clean(event.error.message))
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        return Streaming(pool.name, model.name, False, f"the stream broke: {type(error).__name__}")
    return Streaming(pool.name, model.name, None, "the whole answer came in one piece")


def _clean(text: str) -> str:
    """An engine's words, fit for a terminal."""
    return "".join(each if each.isprintable() else " " for each in text)[:200]
