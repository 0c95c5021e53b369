"""Counting prompts off the event loop, and rendering chats for engines that take raw text.

`Counting` is built once per configuration and owns a few threads. The work frees the GIL, so a thread is
enough to keep the loop running; what is bounded is how much of it there can be:

    text longer than `characters`    estimated instead of counted
    too many jobs waiting            estimated at once
    no result within `seconds`       estimated; the thread ends alone and its result is dropped
    a counter that fails or panics   estimated

So counting never hangs a request; it becomes inexact, says so in its PromptCount, and is
counted in `statistics()`. Long texts have a thread of their own, so that a few of them (1 MB of text costs
up to 0.7 s) do not stand in front of everybody's short ones.

A chat is counted as written: rendered with its template, control tokens left alone, because that is what an
engine with a template of its own will see. A chat rendered for an engine that takes text is neutralised
(see `templates`), and counted again where that changed it.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import msgspec

from backends.contract import GenerateRequest
from gateway.call import PromptCount
from gateway.config.snapshot import Model, Snapshot, TokenizerSpec
from gateway.errors import BadRequest, GatewayError, Unavailable, UnsupportedByEngine
from gateway.tokens.counters import (
    EstimateCounter,
    HuggingFaceCounter,
    TiktokenCounter,
    TokenCounter,
    TokenizerError,
    TransformersCounter,
    utf8_length,
)
from gateway.tokens.templates import ChatTemplate, ControlTokens, TemplateSource

__all__ = ["Counting", "CountingLimits", "CountingStatistics", "Prepared", "Tokenized", "Tokenizer"]

log = logging.getLogger(__name__)

T = TypeVar("T")

Reason = Literal["too long", "busy", "slow", "failed"]
"""Why a prompt was estimated although its model has a tokenizer."""

TOKENS_PER_MESSAGE = 4
"""Assumed for role and separators where no template is known; OpenAI's cookbook has 3 to 4."""


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A chat ready for an engine that takes text."""

    count: PromptCount
    """Of what this engine will see, the BOS that it adds included."""
    rendered: str


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A prompt counted and, where the model has a tokenizer and the text is not long, its tokens."""

    count: PromptCount
    ids: Sequence[int] | None = None
    strings: Sequence[str] | None = None


# -------------------------------------------------------------------------------------- tokenizers


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What a TokenizerSpec names, loaded. Synchronous; its methods run in a thread."""

    counter: TokenCounter
    template: ChatTemplate | None

    @classmethod
    def load(cls, spec: TokenizerSpec) -> "Tokenizer":
        """Reads files and takes up to a second; needs no network. Raises TokenizerError."""
        directory = None
        counter: TokenCounter
        if spec.kind == "estimate":
            if spec.chat_template is not None:
                raise TokenizerError("a chat_template needs a tokenizer that knows its control tokens")
            return cls(EstimateCounter(spec.bytes_per_token), None)
        if spec.path is None:
            raise TokenizerError(f"a tokenizer of kind {spec.kind} needs a path")
        if spec.kind == "tiktoken":
            counter = TiktokenCounter.from_file(Path(spec.path), spec.encoding or "")
        else:
            directory = Path(spec.path)
            if not directory.is_dir():
                raise TokenizerError(f"{directory} is not a directory")
            if (directory / "tokenizer.json").is_file():
                counter = HuggingFaceCounter.from_directory(directory)
            else:
                counter = TransformersCounter.from_directory(directory)
        source = TemplateSource.read(directory, Path(spec.chat_template) if spec.chat_template else None)
        if source is None:
            return cls(counter, None)
        return cls(counter, ChatTemplate(source, ControlTokens.proved(counter, source.text)))

    def count(self, request: GenerateRequest) -> PromptCount:
        """The prompt as an engine with a template of its own will see it."""
        if request.messages is None:
            texts = _prompt_texts(request)
            counts = [self.counter.count(text, add_special_tokens=True) for text in texts]
            return _sum(counts, exact=self.counter.exact, source=self.counter.source)
        if self.template is None:
            parts = sum(self.counter.count(text, add_special_tokens=False) for text in _texts(request))
            tokens = parts + TOKENS_PER_MESSAGE * (len(request.messages) + 1)
            return _sum([tokens], exact=False, source=f"{self.counter.source}, no chat template")
        tokens = self.counter.count(self._render(request, neutralise=False), add_special_tokens=False)
        if _has_media(request):
            return _sum([tokens], exact=False, source=f"{self.counter.source}, text parts only")
        return _sum([tokens], exact=self.counter.exact, source=self.counter.source)

    def tokenize(
        self, request: GenerateRequest, *, add_special_tokens: bool, ids: bool, strings: bool
    ) -> Tokenized:
        """One prompt, or a chat in the model's template, with its `ids` and `strings` where asked for."""
        if request.messages is None:
            (text,) = _prompt_texts(request)
        else:
            text = self._render(request, neutralise=False)
        if not ids:
            tokens = self.counter.count(text, add_special_tokens=add_special_tokens)
            return Tokenized(_sum([tokens], exact=self.counter.exact, source=self.counter.source))
        found = self.counter.ids(text, add_special_tokens=add_special_tokens)
        count = _sum([len(found)], exact=self.counter.exact, source=self.counter.source)
        return Tokenized(count, found, self.counter.strings(found) if strings else None)

    def render(self, request: GenerateRequest, *, adds_bos: bool) -> tuple[str, bool]:
        """The chat as text for an engine, neutralised, and whether it has the tokens that `count` counts:
        nothing had to be neutralised, and there is the same BOS.

        Raises UnsupportedByEngine where the messages are not all text, BadRequest where the template
        refuses them.
        """
        assert self.template is not None
        if request.parameters.get("continue_final_message"):
            raise UnsupportedByEngine(
                "This engine cannot continue the last message.", param="continue_final_message"
            )
        full = self._render(request, neutralise=True)
        text = self.template.strip_bos(full) if adds_bos else full
        same_bos = not adds_bos or text != full
        return text, same_bos and full == self._render(request, neutralise=False)

    def count_rendered(self, text: str, *, adds_bos: bool) -> PromptCount:
        """A text of `render`, with the BOS that the engine adds."""
        tokens = self.counter.count(text, add_special_tokens=adds_bos)
        return _sum([tokens], exact=self.counter.exact, source=self.counter.source)

    def _render(self, request: GenerateRequest, *, neutralise: bool) -> str:
        assert self.template is not None
        assert request.messages is not None
        tools = request.parameters.get("tools")
        variables = request.parameters.get("chat_template_kwargs")
        return self.template.render(
            request.messages,
            tools=tools if isinstance(tools, list) else None,
            variables=variables if isinstance(variables, Mapping) else None,
            add_generation_prompt=request.parameters.get("add_generation_prompt") is not False,
            neutralise=neutralise,
            drop_media=not neutralise,
        )


# ----------------------------------------------------------------------------------------- threads


class _NotCounted(Exception):
    """A turn in the way, caught in this module: estimate instead."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class _Lane:
    """A few threads, a bounded line before them, and a limit on how long anybody waits for a result."""

    def __init__(self, name: str, threads: int, waiting: int, seconds: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"counting-{name}")
        self._threads = threads
        self._waiting = waiting
        self._seconds = seconds
        self.jobs: set[Future[Any]] = set()
        self.abandoned: set[Future[Any]] = set()

    async def run(self, work: Callable[[], T], *, bounded: bool = True) -> T:
        """The result of `work`. Raises what it raises, if a GatewayError, else _NotCounted.

        When the awaiting task is cancelled, a waiting job is dropped and a running one ends alone.
        """
        full = len(self.jobs) >= self._threads + self._waiting
        if (bounded and full) or len(self.abandoned) >= self._threads:
            raise _NotCounted("busy")
        try:
            job = self._executor.submit(_guarded, work)
        except RuntimeError:  # closed: a request of an old configuration came late
            raise _NotCounted("busy") from None
        self.jobs.add(job)
        job.add_done_callback(self._forget)
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.wrap_future(job)
        except TimeoutError:
            raise _NotCounted("slow") from None
        finally:
            if not job.cancelled() and not job.done():
                self.abandoned.add(job)
                if job.done():  # between the question and the note
                    self.abandoned.discard(job)

    def _forget(self, job: Future[Any]) -> None:
        # Called in the job's thread: each is one atomic operation on a set.
        self.jobs.discard(job)
        self.abandoned.discard(job)

    async def aclose(self) -> None:
        """Take no more jobs; wait for those at work, at most as long as anybody would."""
        self._executor.shutdown(wait=False)
        waiters = [asyncio.wrap_future(job) for job in tuple(self.jobs)]
        if waiters:
            await asyncio.wait(waiters, timeout=self._seconds)
        for waiter in waiters:
            if not waiter.done():
                waiter.cancel()
            elif not waiter.cancelled():
                waiter.exception()  # seen: whoever waits for the job itself is told as well


def _guarded(work: Callable[[], T]) -> T:
    """`work`, with everything but refusals and orders to stop turned into _NotCounted.

    A panic in Rust arrives as pyo3's PanicException, which is a BaseException.
    """
    try:
        return work()
    except (GatewayError, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # Its message may quote the prompt: only its kind is logged.
        log.warning("a tokenizer failed with %s; the prompt is estimated", type(error).__name__)
        raise _NotCounted("failed") from None


# ----------------------------------------------------------------------------------------- service


class Counting:
    """Counts and renders the prompts of the models of one configuration."""

    def __init__(
        self, tokenizers: Mapping[TokenizerSpec, Tokenizer], limits: CountingLimits = CountingLimits()
    ) -> None:
        self._tokenizers = tokenizers
        self._limits = limits
        self._short = _Lane("short", limits.threads, limits.waiting, limits.seconds)
        self._long = _Lane("long", 1, limits.waiting, limits.seconds)
        self._counted = 0
        self._estimated: Counter[Reason] = Counter()

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
        for model in snapshot.models.values():
            if model.tokenizer not in loaded:
                try:
                    loaded[model.tokenizer] = Tokenizer.load(model.tokenizer)
                except TokenizerError as error:
                    raise TokenizerError(f"model {model.name}: {error}") from error
            tokenizers[model.tokenizer] = loaded[model.tokenizer]
        return cls(tokenizers, limits)

    def can_render(self, model: Model) -> bool:
        """Whether the model has a chat template, as an engine that takes only text needs it."""
        return self._tokenizers[model.tokenizer].template is not None

    async def count(self, model: Model, request: GenerateRequest) -> PromptCount:
        """Tokens of the prompt.

        Raises BadRequest where the chat template refuses the messages, or there are too many prompts.
        """
        if _prompts(request) > self._limits.prompts:
            raise BadRequest(f"At most {self._limits.prompts} prompts fit in one request.", param="prompt")
        if (ids := _token_ids(request)) is not None:
            return _sum([len(prompt) for prompt in ids], exact=True, source="token ids")
        tokenizer = self._tokenizers[model.tokenizer]
        if model.tokenizer.kind == "estimate":
            return tokenizer.count(request)  # microseconds: no thread
        try:
            return await self._count(_size(request), partial(tokenizer.count, request))
        except _NotCounted as turn:
            return self._estimate(model, request, turn.reason)

    async def tokenize(
        self, model: Model, request: GenerateRequest, *, add_special_tokens: bool, strings: bool = False
    ) -> Tokenized:
        """Tokens of one prompt, or of a chat, bounded as `count` is. Without ids where the count is an
        estimate, or the text is longer than `CountingLimits.long`.

        Raises BadRequest where the chat template refuses the messages.
        """
        tokenizer = self._tokenizers[model.tokenizer]
        if model.tokenizer.kind == "estimate" or (request.messages is not None and not tokenizer.template):
            return Tokenized(await self.count(model, request))
        size = _size(request)
        work = partial(
            tokenizer.tokenize,
            request,
            add_special_tokens=add_special_tokens,
            ids=size <= self._limits.long,
            strings=strings,
        )
        try:
            return await self._run(size, work)
        except _NotCounted as turn:
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
            text, as_counted = await self._lane(_size(request)).run(
                partial(tokenizer.render, request, adds_bos=adds_bos), bounded=False
            )
        except _NotCounted:
            raise Unavailable("The gateway could not render the chat in time.", reason="overloaded") from None
        if as_counted or not counted.exact:
            return Prepared(counted, text)
        try:
            work = partial(tokenizer.count_rendered, text, adds_bos=adds_bos)
            return Prepared(await self._count(len(text), work), text)
        except _NotCounted as turn:
            as_text = msgspec.structs.replace(request, messages=None, prompt=text)
            return Prepared(self._estimate(model, as_text, turn.reason), text)

    async def render(self, model: Model, request: GenerateRequest, adds_bos: bool) -> str:
        """The text of `prepare`."""
        return (await self.prepare(model, request, adds_bos=adds_bos)).rendered

    def statistics(self) -> CountingStatistics:
        lanes = (self._short, self._long)
        return CountingStatistics(
            counted=self._counted,
            estimated=dict(self._estimated),
            running=sum(len(lane.jobs) for lane in lanes),
            abandoned=sum(len(lane.abandoned) for lane in lanes),
        )

    async def aclose(self) -> None:
        """Stop the threads. Counts that come later are estimates."""
        await self._short.aclose()
        await self._long.aclose()

    async def _count(self, size: int, work: Callable[[], PromptCount]) -> PromptCount:
        """`work` on `size` characters, in a thread. Raises _NotCounted."""
        count = await self._run(size, work)
        self._counted += count.exact
        return count

    async def _run(self, size: int, work: Callable[[], T]) -> T:
        if size > self._limits.characters:
            raise _NotCounted("too long")
        return await self._lane(size).run(work)

    def _estimate(self, model: Model, request: GenerateRequest, reason: Reason) -> PromptCount:
        self._estimated[reason] += 1
        return _estimated(model, request, reason)

    def _lane(self, size: int) -> _Lane:
        return self._short if size <= self._limits.long else self._long


# ----------------------------------------------------------------------------------- text of a request


def _sum(counts: list[int], *, exact: bool, source: str) -> PromptCount:
    return PromptCount(
        tokens=sum(counts), exact=exact, source=source, longest=max(counts, default=0), prompts=len(counts)
    )


def _estimated(model: Model, request: GenerateRequest, reason: Reason) -> PromptCount:
    ratio = model.tokenizer.bytes_per_token
    source = f"estimate {ratio} bytes/token ({reason})"
    if request.messages is None:
        counts = [math.ceil(utf8_length(text) / ratio) for text in _prompt_texts(request)]
        return _sum(counts, exact=False, source=source)
    tokens = math.ceil(sum(map(utf8_length, _texts(request))) / ratio)
    return _sum([tokens + TOKENS_PER_MESSAGE * (len(request.messages) + 1)], exact=False, source=source)


def _prompts(request: GenerateRequest) -> int:
    prompt = request.prompt
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def _token_ids(request: GenerateRequest) -> list[list[int]] | None:
    """The prompts of a request that gives token ids; None for any other."""
    prompt = request.prompt
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], str):
        return None
    # The first element told which of the unions it is.
    return cast("list[list[int]]", prompt if isinstance(prompt[0], list) else [prompt])


def _prompt_texts(request: GenerateRequest) -> list[str]:
    prompt = request.prompt
    if isinstance(prompt, list):
        return [text for text in prompt if isinstance(text, str)]
    return [] if prompt is None else [prompt]


def _texts(request: GenerateRequest) -> Iterator[str]:
    """Every text that takes part in a prompt. Of parts of content only the text: no data URLs."""
    yield from _prompt_texts(request)
    for message in request.messages or ():
        for name, value in message.items():
            if isinstance(value, str):
                yield value
            elif name == "content" and isinstance(value, list):
                yield from (part["text"] for part in value if _is_text(part))
            else:
                yield from _strings(value)
    if request.messages is not None:
        yield from _strings(request.parameters.get("tools"))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _size(request: GenerateRequest) -> int:
    """Characters, not bytes: counting bytes would read all of the text on the event loop."""
    return sum(map(len, _texts(request)))


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)


def _has_media(request: GenerateRequest) -> bool:
    return any(
        not _is_text(part)
        for message in request.messages or ()
        if isinstance(content := message.get("content"), list)
        for part in content
    )
