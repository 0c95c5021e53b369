"""One question to a server that nobody trusts, over the control plane's HTTP client.

An answer is bounded in size and time, redirects are not followed, the environment's proxies are not used,
and nothing is decompressed. What is asked and how it is read is the adapters' business. Bodies may hold
secrets (a server's launch arguments): they are handed on, never logged.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx

from backends.contract import Answer, Endpoint, HttpRequest

__all__ = ["NoAnswer", "ask", "ask_all", "client_for", "sent"]


class NoAnswer(Exception):
    """No answer came, or one that is too large. The message is a phrase for people."""


@asynccontextmanager
async def client_for(endpoint: Endpoint) -> AsyncIterator[httpx.AsyncClient]:
    """A client for `endpoint` and its like. Raises OSError or ValueError for a CA file that is none.

    It knows no timeouts: `ask` has one for the whole answer, and whoever uses `sent` brings their own.
    """
    verify: ssl.SSLContext | bool = False
    if endpoint.base_url.startswith("https:"):
        # Reading CA files takes milliseconds.
        verify = await asyncio.to_thread(ssl.create_default_context, cafile=endpoint.ca_file)
    async with httpx.AsyncClient(verify=verify, timeout=None, trust_env=False) as client:  # noqa: S113  # above
        yield client


def sent(
    client: httpx.AsyncClient, endpoint: Endpoint, question: HttpRequest
) -> AbstractAsyncContextManager[httpx.Response]:
    """`question` on its way, its answer not read yet."""
    return client.stream(
        question.method,
        endpoint.base_url + question.path,
        headers={**endpoint.headers, **question.headers, "accept-encoding": "identity"},
        content=question.body,
    )


async def ask(
    client: httpx.AsyncClient, endpoint: Endpoint, question: HttpRequest, *, seconds: float, most: int
) -> Answer:
    """The whole answer, in at most `seconds` and of at most `most` bytes. Raises NoAnswer."""
    body = bytearray()
    try:
        # Bytes that drip keep every single read in time: bound the whole of it.
        async with asyncio.timeout(seconds), sent(client, endpoint, question) as answer:
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > most:
                    raise NoAnswer(f"an answer of more than {most} bytes")
    except TimeoutError:
        raise NoAnswer(f"no answer in {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NoAnswer(_words(error)) from error
    return Answer(answer.status_code, bytes(body))


async def ask_all(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    questions: Iterable[HttpRequest],
    *,
    seconds: float,
    most: int,
) -> dict[str, Answer]:
    """What is answered to `questions`, asked side by side, by path; without those that got no answer."""
    answers: dict[str, Answer] = {}

    async def one(question: HttpRequest) -> None:
        try:
            answers[question.path] = await ask(client, endpoint, question, seconds=seconds, most=most)
        except NoAnswer:
            return

    async with asyncio.TaskGroup() as group:
        for question in questions:
            group.create_task(one(question))
    return answers


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
