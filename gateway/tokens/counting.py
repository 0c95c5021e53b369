"""Counting prompts off the event loop, and rendering chats for engines that take raw text.

`Counting` is built once per configuration and owns a few threads. The work frees the GIL, so a thread is
enough to keep the loop running; what is bounded is how much of it there can be:

    text longer than `characters`    estimated instead of counted
    too many jobs waiting            estimated at once
    no result within `seconds`       estimated; the thread ends alone and its result is dropped
    a counter that fails or panics   estimated
    an engine that does not tell     estimated (`engine_counts`, for models that an engine counts for)

So counting never hangs a request; it becomes inexact, says so in its PromptCount, and is
counted in `statistics()`. Long texts have a thread of their own, so that a few of them (1 MB of text costs
up to 0.7 s) do not stand in front of everybody's short ones.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from backends.contract import GenerateRequest
from gateway.call import Call, PromptCount, Weighed
from gateway.config.snapshot import Model, Snapshot, TokenizerSpec
from gateway.errors import BadRequest, Unavailable, UnsupportedByEngine
from gateway.tokens.caching import CacheStatistics
from gateway.tokens.counters import (
    TokenizerError,
)
from gateway.tokens.engine_counts import EngineCounts
from gateway.tokens.lanes import Lane, NotCounted, Reason, guarded
from gateway.tokens.media import with_media
from gateway.tokens.prompts import (
    LOOP_VALUES,
    count_of,
    has_media,
    plain_texts,
    prompts_in,
    size_of,
    size_within,
    texts_in,
    token_ids,
)
from gateway.tokens.tiers import Expected, Form, Room, Tiers, Told
from gateway.tokens.tokenizing import Tokenized, Tokenizer, assumed, estimated, overheads

__all__ = ["Counting", "CountingLimits", "CountingStatistics", "Prepared"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CountingLimits:
    threads: int = 2
    """For texts up to `long` characters; longer ones share one more thread."""
    long: int = 64 * 1024
    characters: int = 1024 * 1024
    """Beyond this, text is estimated: it costs up to 0.7 s to count, and few contexts hold it."""
    prompts: int = 2048
    """Most prompts in one completion request; OpenAI's own limit for lists of inputs."""
    waiting: int = 128
    """Jobs that may wait for a thread, for short and long texts each."""
    seconds: float = 2.0
    """Waiting and work together."""


@dataclass(frozen=True, slots=True)
class CountingStatistics:
    counted: int
    """Prompts counted exactly."""
    estimated: Mapping[Reason, int]
    """Prompts estimated against the model's wish, by reason."""
    running: int
    """Jobs waiting or at work."""
    abandoned: int
    """Jobs still at work though nobody waits for them any more."""
    cache: CacheStatistics = CacheStatistics()  # noqa: RUF009 - frozen
    """Of all tokenizers."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A chat ready for an engine that takes text."""

    count: PromptCount
    """Of what this engine will see, the BOS that it adds included."""
    rendered: str


@dataclass(slots=True)
class _Tally:
    counted: int = 0
    estimated: Counter[Reason] = field(default_factory=Counter)


class Counting:
    """Counts and renders the prompts of the models of one configuration."""

    def __init__(
        self,
        tokenizers: Mapping[TokenizerSpec, Tokenizer],
        limits: CountingLimits = CountingLimits(),
        tiers: Tiers | None = None,
    ) -> None:
        """Without `tiers`, everything is counted that can be."""
        self._tokenizers = tokenizers
        self._tiers = Tiers({}, {}, {}) if tiers is None else tiers
        self._limits = limits
        self._short = Lane("short", limits.threads, limits.waiting, limits.seconds)
        self._long = Lane("long", 1, limits.waiting, limits.seconds)
        self._tally = _Tally()
        self._engines: EngineCounts | None = None

    @classmethod
    def build(
        cls,
        snapshot: Snapshot,
        limits: CountingLimits = CountingLimits(),
        *,
        previous: "Counting | None" = None,
    ) -> "Counting":
        """Load what the models of `snapshot` need, each tokenizer once; those of `previous` are taken over.

        Synchronous and slow: call it in a thread. Raises TokenizerError, naming the model.
        """
        loaded = dict(previous._tokenizers) if previous else {}
        tokenizers = {}
        around = {}
        for model in snapshot.models.values():
            if model.tokenizer not in loaded:
                try:
                    loaded[model.tokenizer] = Tokenizer.load(model.tokenizer)
                except TokenizerError as error:
                    raise TokenizerError(f"model {model.name}: {error}") from error
            tokenizers[model.tokenizer] = loaded[model.tokenizer]
            if model.count != "exact":
                around[model.name] = overheads(loaded[model.tokenizer])
        learned = None if previous is None else previous._tiers.learned
        return cls(tokenizers, limits, Tiers.of(snapshot, around, learned))

    def on(self, snapshot: Snapshot) -> "Counting":
        """The same service and all that it learned, with the boundaries of `snapshot`: another snapshot of
        the same file, whose limits may be narrower."""
        other = copy.copy(self)
        other._tiers = self._tiers.on(snapshot)
        return other

    def asking(self, engines: EngineCounts) -> "Counting":
        """The same service, with engines to ask; without them, what they would count is estimated."""
        other = copy.copy(self)
        other._engines = engines
        return other

    def can_render(self, model: Model) -> bool:
        """Whether the model has a chat template, as an engine that takes only text needs it."""
        return self._tokenizers[model.tokenizer].template is not None

    async def count(self, model: Model, request: GenerateRequest, call: Call | None = None) -> PromptCount:
        """Tokens of the prompt; of parts that are not text, those that the model's `media_tokens` give.

        `call`: for whom, where an engine may have to be asked; None: for the operator.

        Raises BadRequest where the chat template refuses the messages, or there are too many prompts.
        """
        return with_media(await self._count_text(model, request, call), model, request)

    async def _count_text(self, model: Model, request: GenerateRequest, call: Call | None) -> PromptCount:
        if prompts_in(request) > self._limits.prompts:
            raise BadRequest(f"At most {self._limits.prompts} prompts fit in one request.", param="prompt")
        if (ids := token_ids(request)) is not None:
            return count_of([len(prompt) for prompt in ids], exact=True, source="token ids")
        tokenizer = self._tokenizers[model.tokenizer]
        if model.tokenizer.kind == "estimate":
            return tokenizer.count(request)  # microseconds: no thread
        return self._remembered(model, request, call) or await self._tokenized(model, request, call)

    def _remembered(self, model: Model, request: GenerateRequest, call: Call | None) -> PromptCount | None:
        """The count where it costs so little that it needs no thread."""
        if model.tokenizer.kind == "engine":
            if self._engines is None or self._known_size(request) > self._limits.long:
                return None  # to look it up is to write the question down, and digest it
            return self._engines.remembered(model, request, call)
        try:
            count = guarded(partial(self._tokenizers[model.tokenizer].remembered, request))
        except NotCounted:
            return None
        if count is None:
            return None
        self._tally.counted += count.exact
        return replace(count, cached=True)

    async def _tokenized(self, model: Model, request: GenerateRequest, call: Call | None) -> PromptCount:
        """The tokenizer's count, off the loop, or the engine's; an estimate where there is none to be had."""
        if model.tokenizer.kind == "engine":
            return await self._told_by_engine(model, request, call)
        tokenizer = self._tokenizers[model.tokenizer]
        try:
            return await self._count(
                self._known_size(request), partial(self._counted_there, tokenizer, request)
            )
        except NotCounted as turn:
            return self._estimate(model, request, turn.reason)

    async def _told_by_engine(self, model: Model, request: GenerateRequest, call: Call | None) -> PromptCount:
        size = size_within(request, LOOP_VALUES)
        if size is None or size > self._limits.characters:
            return self._estimate(model, request, "too long")
        count = None if self._engines is None else await self._engines.count(model, request, call)
        if count is None:
            return self._estimate(model, request, "engine")
        self._tally.counted += 1
        return count

    async def count_for(self, call: Call, expected: Expected, room: Room | None = None) -> PromptCount:
        """Tokens of a call's prompt, by the model's `count` policy: an estimate where its error is known and
        could not change what is decided, see `tiers`. `expected` says what is decided by a prompt, `room`
        what the limits leave.

        Raises what `count` raises.
        """
        model, request = call.model, call.request
        policy = "estimate" if model.tokenizer.kind == "estimate" else model.count
        if policy == "exact" or prompts_in(request) > self._limits.prompts or token_ids(request) is not None:
            return await self.count(model, request, call)
        if policy == "estimate":
            weighed = self._weigh(call)
            if (count := self._tiers.estimate(weighed)) is not None:
                return count
            if model.tokenizer.kind == "estimate" or has_media(request):
                count = await self.count(model, request, call)
            else:
                count = assumed(model, request)
            return replace(count, weighed=weighed, why="too few texts like this were seen")
        if (known := self._remembered(model, request, call)) is not None:
            return known
        weighed = self._weigh(call)
        judged = self._tiers.judge(call, weighed, expected, room)
        if judged.count is not None:
            return judged.count
        count = with_media(await self._tokenized(model, request, call), model, request)
        if weighed is not None:
            if count.exact:
                self._tiers.learn(call, weighed, count.tokens)
            else:
                count = replace(self._tiers.estimate(weighed) or count, source=count.source, weighed=weighed)
        return replace(count, why=judged.why)

    def told(
        self,
        call: Call,
        prompt: PromptCount,
        expected: Expected,
        *,
        tokens: int,
        cached: int | None,
        pool: str,
        now: float,
    ) -> Told:
        """Learn from an engine's usage; see `Tiers.told`."""
        return self._tiers.told(call, prompt, expected, tokens=tokens, cached=cached, pool=pool, now=now)

    def reason(self, call: Call, prompt: PromptCount, expected: Expected, room: Room | None = None) -> str:
        """Why the tier that gave `prompt` answered, for people."""
        return self._tiers.reason(call, prompt, expected, room)

    def _weigh(self, call: Call) -> Weighed | None:
        """What is estimated by: one prompt of text alone."""
        request = call.request
        texts = plain_texts(request)
        if texts is None:
            if prompts_in(request) != 1 or size_within(request, LOOP_VALUES) is None or has_media(request):
                return None
            texts = list(texts_in(request))
        form: Form = "text"
        if request.messages is not None:
            form = "tools" if request.parameters.get("tools") else "chat"
        return self._tiers.weigh(call.model, call.tenant.name, form, texts, len(request.messages or ()))

    async def tokenize(
        self,
        model: Model,
        request: GenerateRequest,
        *,
        add_special_tokens: bool,
        strings: bool = False,
        call: Call | None = None,
    ) -> Tokenized:
        """Tokens of one prompt, or of a chat, bounded as `count` is. Without ids where the count is an
        estimate or an engine's, or the text is longer than `CountingLimits.long`.

        Raises BadRequest where the chat template refuses the messages.
        """
        tokenizer = self._tokenizers[model.tokenizer]
        if model.tokenizer.kind == "estimate" or (request.messages is not None and not tokenizer.template):
            return Tokenized(await self.count(model, request, call))
        if model.tokenizer.kind == "engine":
            if not add_special_tokens:  # engines are asked for prompts as they would read them
                return Tokenized(self._estimate(model, request, "engine"))
            return Tokenized(await self.count(model, request, call))
        size = self._known_size(request)
        work = partial(
            tokenizer.tokenize,
            request,
            add_special_tokens=add_special_tokens,
            ids=size <= self._limits.long,
            strings=strings,
        )
        try:
            return await self._run(size, work)
        except NotCounted as turn:
            return Tokenized(self._estimate(model, request, turn.reason))

    async def prepare(
        self, model: Model, request: GenerateRequest, *, adds_bos: bool, counted: PromptCount | None = None
    ) -> Prepared:
        """`request.messages` as text for an engine with `applies_template` False, neutralised, and counted.

        `counted`, the result of `count` for this request, saves the second count where neutralising changed
        nothing. Without leading BOS where the engine `adds_bos` itself.

        Raises BadRequest where the template refuses the messages, UnsupportedByEngine where they are not all
        text or the model has no template, Unavailable where no thread was free in time.
        """
        tokenizer = self._tokenizers[model.tokenizer]
        if tokenizer.template is None:
            raise UnsupportedByEngine(
                f"Model {model.name} has no chat template, and this engine takes only text.", param="messages"
            )
        if counted is None:
            counted = await self.count(model, request)
        try:
            text, as_counted = await self._lane(self._known_size(request)).run(
                partial(tokenizer.render, request, adds_bos=adds_bos), bounded=False
            )
        except NotCounted:
            raise Unavailable("The gateway could not render the chat in time.", reason="overloaded") from None
        if as_counted or not counted.exact:
            return Prepared(counted, text)
        try:
            work = partial(tokenizer.count_rendered, text, adds_bos=adds_bos)
            return Prepared(await self._count(len(text), work), text)
        except NotCounted as turn:
            as_text = msgspec.structs.replace(request, messages=None, prompt=text)
            return Prepared(self._estimate(model, as_text, turn.reason), text)

    async def render(self, model: Model, request: GenerateRequest, adds_bos: bool) -> str:
        """The text of `prepare`."""
        return (await self.prepare(model, request, adds_bos=adds_bos)).rendered

    def statistics(self) -> CountingStatistics:
        lanes = (self._short, self._long)
        return CountingStatistics(
            counted=self._tally.counted,
            estimated=dict(self._tally.estimated),
            running=sum(len(lane.jobs) for lane in lanes),
            abandoned=sum(len(lane.abandoned) for lane in lanes),
            cache=sum(
                (each.cache.statistics() for each in self._tokenizers.values() if each.cache),
                CacheStatistics(),
            ),
        )

    async def aclose(self) -> None:
        """Stop the threads. Counts that come later are estimates."""
        await self._short.aclose()
        await self._long.aclose()

    def _known_size(self, request: GenerateRequest) -> int:
        """Characters; of a request made of very many parts, which take long to look at, enough for `long`."""
        size = size_within(request, LOOP_VALUES)
        return self._limits.long + 1 if size is None else size

    def _counted_there(self, tokenizer: Tokenizer, request: GenerateRequest) -> PromptCount:
        """`tokenizer.count`, in a thread, where the size of any request may be looked at."""
        if size_of(request) > self._limits.characters:
            raise NotCounted("too long")
        return tokenizer.count(request)

    async def _count(self, size: int, work: Callable[[], PromptCount]) -> PromptCount:
        """`work` on `size` characters, in a thread. Raises NotCounted."""
        count = await self._run(size, work)
        self._tally.counted += count.exact
        return count

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        if size > self._limits.characters:
            raise NotCounted("too long")
        return await self._lane(size).run(work)

    def _estimate(self, model: Model, request: GenerateRequest, reason: Reason) -> PromptCount:
        self._tally.estimated[reason] += 1
        return estimated(model, request, reason)

    def _lane(self, size: int) -> Lane:
        return self._short if size <= self._limits.long else self._long
