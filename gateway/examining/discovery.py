"""Discovery: ask a URL what it is, and keep asking those that do not say.

Each upstream is asked the questions of all engines at once (`EngineRegistry.questions`), round by round, and
then recognised. Upstreams are not trusted: what they answer is bounded (`gateway.asking`).
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import httpx

from backends.contract import Answer, Endpoint, EngineRegistry, HttpRequest
from gateway.asking import NoAnswer, ask, client_for
from gateway.config.addresses import base_url
from gateway.config.drafting import Found, usable_names

__all__ = ["Discovery", "Missing"]

MAX_ANSWER = 1024 * 1024
"""Bytes of one answer; a longer one counts as none."""
ANSWER_TIMEOUT = 5.0
"""Seconds for one answer."""
TIMEOUT = 20.0
"""Seconds for all questions to one upstream."""
EMPTY: Mapping[str, str] = MappingProxyType({})
AT_A_TIME = 8
"""Questions to one upstream that are under way."""


@dataclass(frozen=True, slots=True)
class Missing:
    """An upstream that cannot be served, and why: a phrase."""

    number: int
    url: str
    why: str


class Discovery:
    """The upstreams of a command line: which were recognised, which not yet."""

    def __init__(
        self,
        urls: Iterable[str],
        registry: EngineRegistry,
        *,
        answer_timeout: float = ANSWER_TIMEOUT,
        headers: Mapping[str, str] = EMPTY,
    ) -> None:
        """`headers` go with every question. Raises ValueError for a URL that no replica may have."""
        self._registry = registry
        self._answer_timeout = answer_timeout
        self._headers = headers
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
        upstream = _Upstream(url, self._answer_timeout, self._headers)
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

    def __init__(self, url: str, answer_timeout: float, headers: Mapping[str, str]) -> None:
        self._endpoint = Endpoint(url, headers)
        self._timeout = answer_timeout
        self.errors: list[str] = []
        """Why questions got no answer."""

    async def answers(self, registry: EngineRegistry) -> Mapping[str, Answer]:
        """All that it answers, by path; status 0 where nothing came."""
        answers: dict[str, Answer] = {}
        async with client_for(self._endpoint) as client:
            while questions := registry.questions(answers):
                line = iter(questions)
                async with asyncio.TaskGroup() as group:
                    for _ in range(AT_A_TIME):
                        group.create_task(self._ask(client, line, answers))
        return answers

    async def _ask(
        self, client: httpx.AsyncClient, questions: Iterator[HttpRequest], answers: dict[str, Answer]
    ) -> None:
        """Ask one after the other as long as there are any; others draw on `questions` too."""
        for question in questions:
            try:
                answers[question.path] = await ask(
                    client, self._endpoint, question, seconds=self._timeout, most=MAX_ANSWER
                )
            except NoAnswer as reason:
                self.errors.append(str(reason))
                answers[question.path] = Answer(0)


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
