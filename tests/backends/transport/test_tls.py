"""TLS: an authority of one's own, the wrong one, and what is left when it is cancelled."""

import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.contract import (
    ConnectFailed,
    Endpoint,
)
from backends.transport import AiohttpTransport
from tests.backends.scripted_server import Peer, Script, ScriptedServer, scripted_server
from tests.backends.transport.conformance import (
    POST,
    STREAM,
    at,
    chunk,
    keep_alive,
    on_every_transport,
    open_cancelled_at,
    read_all,
    sends,
    until,
)
from tests.conftest import not_run


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, a certificate for 127.0.0.1 under it, and an unrelated CA."""
    if shutil.which("openssl") is None:
        not_run("no openssl command to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}",
                "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=engine")
    (folder / "extensions").write_text(
        "subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n"
    )
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "extensions", "-out", "server.pem")  # fmt: skip
    return folder


@contextlib.asynccontextmanager
async def tls_server(certificates: Path, *scripts: Script) -> AsyncIterator[ScriptedServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    async with scripted_server(*scripts, tls=context) as server:
        yield server


@on_every_transport
async def test_tls_with_own_ca(transport: AiohttpTransport, certificates: Path) -> None:
    """The endpoint's CA is trusted, connections are reused, and the certificates are read once."""
    async with tls_server(certificates, keep_alive) as server:
        endpoint = at(server, "https", ca_file=str(certificates / "ca.pem"))
        for _ in range(3):
            assert await read_all(await transport.open(endpoint, POST)) == b"ok"
        assert server.connections == 1


@on_every_transport
@pytest.mark.parametrize("ca", ["other.pem", "missing.pem", "server.key", None])
async def test_tls_with_wrong_ca(transport: AiohttpTransport, certificates: Path, ca: str | None) -> None:
    """Another CA, none, or a file that holds no certificate: ConnectFailed, and nothing was sent."""
    async with tls_server(certificates, keep_alive) as server:
        endpoint = at(server, "https", ca_file=None if ca is None else str(certificates / ca))
        with pytest.raises(ConnectFailed):
            await transport.open(endpoint, POST)
        assert server.requests == []


@on_every_transport
async def test_tls_with_wrong_name(transport: AiohttpTransport, certificates: Path) -> None:
    """The certificate must be for the host that was asked for."""
    async with tls_server(certificates, keep_alive) as server:
        endpoint = Endpoint(f"https://localhost:{server.port}", ca_file=str(certificates / "ca.pem"))
        with pytest.raises(ConnectFailed):
            await transport.open(endpoint, POST)


@on_every_transport
async def test_tls_aclose_waits_for_what_was_cancelled(
    transport: AiohttpTransport, certificates: Path
) -> None:
    """A connection dropped just before `aclose`, which takes TLS some turns, has left after it."""
    async with tls_server(certificates, sends(STREAM, then=Peer.wait_closed)) as server:
        exchange = await transport.open(at(server, "https", ca_file=str(certificates / "ca.pem")), POST)
        exchange.cancel()
        await transport.aclose()
        assert transport._alive == set()


@on_every_transport
async def test_tls_cancel_at_each_suspension(transport: AiohttpTransport, certificates: Path) -> None:
    """Cancelled within the reading of certificates and the handshake, nothing is left either."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM + chunk(b"x"))
        await peer.wait_closed()

    async with tls_server(certificates, script) as server:
        endpoint = at(server, "https", ca_file=str(certificates / "ca.pem"))
        number = 0
        while await open_cancelled_at(transport, endpoint, POST, number):
            number += 1
            assert transport.statistics().in_use == 0
        assert number >= 3
        await until(lambda: server.open == 0)
