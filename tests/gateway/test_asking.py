"""One question over real sockets: whatever comes back, it ends in time, and says why there is no answer."""

import gzip
from pathlib import Path

import pytest

from backends.contract import Answer, Endpoint, HttpRequest
from gateway.asking import NoAnswer, ask, ask_all, client_for
from tests.backends.scripted_server import Peer, Script, scripted_server

QUESTION = HttpRequest("GET", "/props")


def answering(head: bytes, body: bytes = b"") -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), body))

    return script


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.wait_closed()


async def dripping(peer: Peer) -> None:
    """Each byte comes in time, and there is no end of them."""
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        await peer.send(b" ")


async def answer_to(script: Script, *, seconds: float = 2.0, most: int = 1000) -> Answer:
    async with scripted_server(script) as server:
        endpoint = Endpoint(f"http://127.0.0.1:{server.port}", {"authorization": "Bearer ours"})
        async with client_for(endpoint) as client:
            answer = await ask(client, endpoint, QUESTION, seconds=seconds, most=most)
        (request,) = server.requests
        assert (request.target, request.headers["authorization"]) == ("/props", "Bearer ours")
        return answer


async def test_an_answer_comes_as_it_is() -> None:
    """No redirect is followed, nothing is unpacked: a small answer cannot become a large one."""
    assert await answer_to(answering(b"200 OK", b"{}")) == Answer(200, b"{}")
    assert (await answer_to(answering(b"302 X\r\nlocation: http://192.0.2.1/"))).status == 302
    packed = gzip.compress(b" " * 100_000)
    assert (await answer_to(answering(b"200 OK\r\ncontent-encoding: gzip", packed))).body == packed


@pytest.mark.parametrize(
    ("script", "seconds", "why"),
    [
        (silent, 0.1, "no answer in 0.1 s"),
        (dripping, 0.1, "no answer in 0.1 s"),
        (answering(b"200 OK", b"x" * 1001), 2.0, "an answer of more than 1000 bytes"),
        (answering(b"oops"), 2.0, "illegal status line"),
    ],
    ids=["silent", "dripping", "huge", "no HTTP"],
)
async def test_why_there_is_none(script: Script, seconds: float, why: str) -> None:
    with pytest.raises(NoAnswer, match=why):
        await answer_to(script, seconds=seconds, most=1000 if script is not dripping else 10**9)


async def test_nobody_there_is_said_in_the_systems_words() -> None:
    endpoint = Endpoint("http://127.0.0.1:1")
    async with client_for(endpoint) as client:
        with pytest.raises(NoAnswer, match=r"^Connection refused$"):
            await ask(client, endpoint, QUESTION, seconds=2, most=10)
        assert await ask_all(client, endpoint, [QUESTION], seconds=2, most=10) == {}


async def test_a_bad_ca_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    bad = tmp_path / "ca.pem"
    bad.write_text("no certificate")
    for path in (bad, tmp_path / "none.pem"):
        with pytest.raises((OSError, ValueError)):
            async with client_for(Endpoint("https://127.0.0.1:1", {}, str(path))):
                pass
