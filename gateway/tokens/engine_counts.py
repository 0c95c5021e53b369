"""Counts from the engines themselves, where the gateway has no tokenizer (`tokenizer: {kind: engine}`).

A replica of one pool is asked on the data path, over the connections that requests use, what its adapter
calls `tokenize_request`: a prompt as text, or a chat that the engine renders with its own template. This is a
round trip before every such count, so it has bounds of its own, and whatever they cut off is estimated:

    timeout         for all of it; where a second replica could be tried, the first has half of it
    IN_FLIGHT       questions to one pool at a time
    MOST_ANSWER     bytes of an answer: engines list every token
    RESTING         seconds that a replica which did not answer is not asked again: a dead engine costs one
                    request in a while its timeout, not each

Answers are remembered by a digest of the question, keyed with random bytes that never leave the process.

What cannot be asked: tools and template arguments, which the questions have no room for; parts that are not
text; chats, of engines that count only text; and for a tenant whose labels keep it out of the pool, anything:
a prompt never goes where its request may not.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from backends.contract import Answer, Endpoint, GenerateRequest, HttpRequest, Transport, TransportError
from gateway.call import Call, PromptCount
from gateway.config.snapshot import Model, Pool, Replica
from gateway.tokens.caching import Recent

__all__ = ["Ask", "Askable", "EngineCounts", "answer_over"]

IN_FLIGHT = 64
MOST_ANSWER = 4 * 1024 * 1024
"""TGI tells some 60 bytes for each token; reading this much stops the loop for 5 ms."""
MOST_PROMPTS = 16
"""Prompts of one completion request, asked one after the other."""
RESTING = 1.0
REMEMBERED = 4096
"""Prompts; half a megabyte."""

_REFUSED = (400, 413, 422)
"""The question is at fault (an overlong prompt, a chat that the template refuses), not the replica."""

Ask = Callable[[Pool, Replica, HttpRequest], Awaitable[Answer | None]]
"""One question to one replica: the whole answer; None where none came, or one that is too large. Has no
timeout of its own, and leaves nothing behind when it is cancelled."""


@dataclass(frozen=True, slots=True)
class Askable:
    """A pool that may be asked."""

    pool: Pool
    replicas: Callable[[], Sequence[Replica]]
    """Those that are fit to be asked now, best first."""


class EngineCounts:
    """The engines of one configuration as counters. Lives on the event loop."""

    def __init__(self, pools: Mapping[str, Askable], ask: Ask, clock: Callable[[], float]) -> None:
        """`clock` is monotonic seconds."""
        self._pools = pools
        self._ask = ask
        self._clock = clock
        self._recent: Recent[bytes, int] = Recent(REMEMBERED)
        self._secret = os.urandom(32)
        self._in_flight: Counter[str] = Counter()
        self._resting: dict[tuple[str, str], float] = {}
        """Until when a replica is not asked, by pool and id."""

    def remembered(self, model: Model, request: GenerateRequest, call: Call | None) -> PromptCount | None:
        """What `count` would give, as far as it is known without asking."""
        asked = self._questions(model, request, call)
        if asked is None:
            return None
        tokens = [self._recent.get(self._digest(asked[0].pool, question)) for question in asked[1]]
        known = [each for each in tokens if each is not None]
        return _told(asked[0].pool, known, cached=True) if len(known) == len(tokens) else None

    async def count(self, model: Model, request: GenerateRequest, call: Call | None) -> PromptCount | None:
        """The prompt by the engine's count; None where it cannot be asked or does not answer in time.

        `call` says for whom, and which name was asked for; None: for the operator.
        """
        asked = self._questions(model, request, call)
        if asked is None:
            return None
        (there, questions), tokens = asked, []
        end = asyncio.get_running_loop().time() + model.tokenizer.timeout
        for question in questions:
            told = await self._tokens(there, question, end)
            if told is None:
                return None
            tokens.append(told)
        return _told(there.pool, tokens)

    def _questions(
        self, model: Model, request: GenerateRequest, call: Call | None
    ) -> tuple[Askable, list[HttpRequest]] | None:
        """Whom to ask what; None where that cannot be asked."""
        there = self._pools.get(model.tokenizer.pool or "")
        if there is None or (call is not None and call.tenant.allow.pool_fault(there.pool) is not None):
            return None
        adapter, name = there.pool.adapter, there.pool.serves.get(model.name, "*")
        if name == "*":
            name = model.name if call is None else call.asked_model
        if request.messages is not None:
            if not _plain(request):
                return None
            questions = [adapter.tokenize_request(name, messages=request.messages)]
        else:
            texts = request.prompt if isinstance(request.prompt, list) else [request.prompt]
            if len(texts) > MOST_PROMPTS:
                return None
            questions = [adapter.tokenize_request(name, text=text) for text in texts if isinstance(text, str)]
        whole = [question for question in questions if question is not None]
        return (there, whole) if whole and len(whole) == len(questions) else None

    async def _tokens(self, there: Askable, question: HttpRequest, end: float) -> int | None:
        """What one prompt has, by `end` of the loop's time. Asks two replicas at most."""
        pool, digest = there.pool, self._digest(there.pool, question)
        if (known := self._recent.get(digest)) is not None:
            return known
        now = self._clock()
        fit = [
            replica for replica in there.replicas() if self._resting.get((pool.name, replica.id), now) <= now
        ][:2]
        if not fit or self._in_flight[pool.name] >= IN_FLIGHT:
            return None
        self._in_flight[pool.name] += 1
        try:
            for left, replica in zip(range(len(fit), 0, -1), fit, strict=True):
                answer = await self._in_time(pool, replica, question, end, left)
                tokens = None if answer is None else pool.adapter.read_token_count(answer.status, answer.body)
                if tokens is not None:
                    self._recent.put(digest, tokens)
                    return tokens
                if answer is not None and answer.status in _REFUSED:
                    return None
                self._resting[pool.name, replica.id] = self._clock() + RESTING
        finally:
            self._in_flight[pool.name] -= 1
        return None

    async def _in_time(
        self, pool: Pool, replica: Replica, question: HttpRequest, end: float, left: int
    ) -> Answer | None:
        """Its answer, if that comes in the fair part of the time for one of `left` replicas."""
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(now + (end - now) / left):
                return await self._ask(pool, replica, question)
        except TimeoutError:
            return None

    def _digest(self, pool: Pool, question: HttpRequest) -> bytes:
        """Of the pool, and of the question, which holds the prompt and the model's name."""
        digest = blake2b(f"{pool.name} {question.path} ".encode(), digest_size=32, key=self._secret)
        digest.update(question.body)
        return digest.digest()


async def answer_over(transport: Transport, endpoint: Endpoint, question: HttpRequest) -> Answer | None:
    """`Ask` over the data path's transport."""
    try:
        exchange = await transport.open(endpoint, question)
    except TransportError:
        return None
    try:
        body = bytearray()
        while piece := await exchange.events():
            body += piece
            if len(body) > MOST_ANSWER:
                return None
    except TransportError:
        return None
    finally:
        exchange.cancel()  # nothing, where the body has ended
    return Answer(exchange.status, bytes(body))


def _told(pool: Pool, tokens: Sequence[int], *, cached: bool = False) -> PromptCount:
    return PromptCount(
        tokens=sum(tokens),
        exact=True,
        source=f"{pool.engine} of pool {pool.name}",
        longest=max(tokens),
        prompts=len(tokens),
        cached=cached,
    )


def _plain(request: GenerateRequest) -> bool:
    """Whether the question can hold all that the engine's template would see: messages of text."""
    given = request.parameters
    return (
        not any(given.get(name) for name in _OF_TEMPLATES)
        and given.get("add_generation_prompt") is not False
        and all(
            isinstance(part, Mapping) and isinstance(part.get("text"), str)
            for message in request.messages or ()
            if isinstance(content := message.get("content"), list)
            for part in content
        )
    )


_OF_TEMPLATES = ("tools", "functions", "documents", "chat_template_kwargs", "continue_final_message")
"""Parameters that a chat template sees, beside its messages."""
