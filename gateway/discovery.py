"""Discovery: ask a URL what it is, and keep asking those that do not say.

Each upstream is asked the questions of all engines at once (`EngineRegistry.questions`), round by round, and
then recognised. Control plane, so httpx. Upstreams are not trusted: answers are bounded in size and time,
redirects are not followed, the environment's proxies are not used, and bodies are never logged.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import httpx

from backends.contract import Answer, EngineRegistry, HttpRequest
from gateway.config.addresses import base_url
from gateway.config.drafting import Found, usable_names

__all__ = ["Discovery", "Missing"]

MAX_ANSWER = 1024 * 1024
"""Bytes of one answer; a longer one counts as none."""
ANSWER_TIMEOUT = 5.0
"""Seconds for one answer."""
TIMEOUT = 20.0
"""Seconds for all questions to one upstream."""
AT_A_TIME = 8
"""Connections to one upstream."""


@dataclass(frozen=True, slots=True)
class Missing:
    """An upstream that cannot be served, and why: a phrase."""

    number: int
    url: str
    why: str


class Discovery:
    """The upstreams of a command line: which were recognised, which not yet."""

    def __init__(
        self, urls: Iterable[str], registry: EngineRegistry, *, answer_timeout: float = ANSWER_TIMEOUT
    ) -> None:
        """Raises ValueError for a URL that no replica may have."""
        self._registry = registry
        self._answer_timeout = answer_timeout
        self._urls = dict(enumerate(dict.fromkeys(map(_checked, urls)), 1))
        self._found: dict[int, Found] = {}
        self.missing: tuple[Missing, ...] = tuple(
            Missing(number, url, "not asked yet") for number, url in self._urls.items()
        )

    @property
    def found(self) -> tuple[Found, ...]:
        """In the order of the command line."""
        return tuple(self._found[number] for number in sorted(self._found))

    async def look(self) -> tuple[Found, ...]:
        """Ask all that are missing, at the same time; those that were recognised now."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask(missing.number, missing.url)) for missing in self.missing]
        outcomes = [task.result() for task in tasks]
        self.missing = tuple(outcome for outcome in outcomes if isinstance(outcome, Missing))
        new = tuple(outcome for outcome in outcomes if isinstance(outcome, Found))
        self._found.update((found.number, found) for found in new)
        return new

    async def _ask(self, number: int, url: str) -> Found | Missing:
        upstream = _Upstream(url, self._answer_timeout)
        try:
            async with asyncio.timeout(TIMEOUT):
                answers = await upstream.answers(self._registry)
        except TimeoutError:
            return Missing(number, url, f"its answers took more than {TIMEOUT:g} s")
        identified = self._registry.identify(answers)
        if identified is None:
            return Missing(number, url, _unknown(answers, upstream.errors))
        models = usable_names(identified.models)
        if not models:
            return Missing(number, url, f"{identified.kind}, but it names no model that can be served")
        return Found(number, url, replace(identified, models=models))


class _Upstream:
    """One upstream while it is asked."""

    def __init__(self, url: str, answer_timeout: float) -> None:
        self._url = url
        self._timeout = answer_timeout
        self.errors: list[str] = []
        """Why questions got no answer."""

    async def answers(self, registry: EngineRegistry) -> Mapping[str, Answer]:
        """All that it answers, by path; status 0 where nothing came."""
        verify: ssl.SSLContext | bool = False
        if self._url.startswith("https:"):
            verify = await asyncio.to_thread(ssl.create_default_context)  # reads files
        answers: dict[str, Answer] = {}
        async with httpx.AsyncClient(
            verify=verify,
            timeout=httpx.Timeout(self._timeout, pool=None),
            limits=httpx.Limits(max_connections=AT_A_TIME),
            trust_env=False,
            follow_redirects=False,
        ) as client:
            while questions := registry.questions(answers):
                async with asyncio.TaskGroup() as group:
                    tasks = {
                        question.path: group.create_task(self._answer(client, question))
                        for question in questions
                    }
                answers |= {path: task.result() for path, task in tasks.items()}
        return answers

    async def _answer(self, client: httpx.AsyncClient, question: HttpRequest) -> Answer:
        try:
            async with client.stream(
                question.method,
                self._url + question.path,
                headers={**question.headers, "accept-encoding": "identity"},
                content=question.body,
            ) as answer:
                body = bytearray()
                # A body that drips keeps every read in time: bound the whole of it.
                async with asyncio.timeout(self._timeout):
                    async for piece in answer.aiter_raw():
                        body += piece
                        if len(body) > MAX_ANSWER:
                            self.errors.append(f"an answer of more than {MAX_ANSWER} bytes")
                            return Answer(0)
                return Answer(answer.status_code, bytes(body))
        except (httpx.TimeoutException, TimeoutError):
            self.errors.append(f"no answer in {self._timeout:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self.errors.append(_words(error))
        return Answer(0)


def _checked(url: str) -> str:
    try:
        return base_url(url)
    except ValueError as error:
        raise ValueError(f"{url!r} {error}") from None


def _unknown(answers: Mapping[str, Answer], errors: list[str]) -> str:
    """Why nobody recognises these answers, by the plainest evidence."""
    statuses = {answer.status for answer in answers.values()} - {0}
    if not statuses:
        return errors[0] if errors else "no answer"
    if statuses & {401, 403}:
        return "it asks for credentials: write a routes.yaml with upstream.api_key"
    if 503 in statuses:
        return "not ready: it answers 503"
    told = ", ".join(map(str, sorted(statuses)))
    return f"it answers ({told}), but as no engine that is known"


def _words(error: BaseException) -> str:
    """The system's own words for why there is no connection; they are deep in what httpx raises."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        elif isinstance(inner, socket.gaierror):
            return str(inner.strerror or inner)
        elif isinstance(inner, OSError) and inner.errno:
            return os.strerror(inner.errno)
        else:
            inner = inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__
