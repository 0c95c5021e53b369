"""The map from foreign errors to ours is complete."""

import ssl

import aiohttp
import pytest
from aiohttp.http_exceptions import HttpProcessingError

from backends.contract import (
    ConnectFailed,
    ConnectionBroken,
    ResponseInvalid,
    TransportError,
)
from backends.transport.errors import MEANING, translate

EXPECTED_MEANING = {
    "ClientConnectionError": ConnectionBroken,
    "ClientConnectionResetError": ConnectionBroken,
    "ClientConnectorCertificateError": ConnectFailed,
    "ClientConnectorDNSError": ConnectFailed,
    "ClientConnectorError": ConnectFailed,
    "ClientConnectorSSLError": ConnectFailed,
    "ClientHttpProxyError": ResponseInvalid,
    "ClientOSError": ConnectionBroken,
    "ClientPayloadError": ConnectionBroken,
    "ClientProxyConnectionError": ConnectFailed,
    "ClientResponseError": ResponseInvalid,
    "ClientSSLError": ConnectFailed,
    "ConnectionTimeoutError": ConnectFailed,
    "ContentTypeError": ResponseInvalid,
    "InvalidURL": ConnectFailed,
    "InvalidUrlClientError": ConnectFailed,
    "InvalidUrlRedirectClientError": ResponseInvalid,
    "NonHttpUrlClientError": ConnectFailed,
    "NonHttpUrlRedirectClientError": ResponseInvalid,
    "RedirectClientError": ResponseInvalid,
    "ServerConnectionError": ConnectionBroken,
    "ServerDisconnectedError": ConnectionBroken,
    "ServerFingerprintMismatch": ConnectFailed,
    "ServerTimeoutError": ConnectionBroken,
    "SocketTimeoutError": ConnectionBroken,
    "TooManyRedirects": ResponseInvalid,
    "UnixClientConnectorError": ConnectFailed,
    "UploadAbortedError": ConnectionBroken,
    "WSServerHandshakeError": ResponseInvalid,
}


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_map_of_errors_is_complete() -> None:
    """Every error class of aiohttp has a meaning; a new one in a new version fails here until it has."""
    kinds = {kind for kind in subclasses(aiohttp.ClientError) if kind.__module__.startswith("aiohttp.")}
    meanings = {
        kind.__name__: next(MEANING[ancestor] for ancestor in kind.__mro__ if ancestor in MEANING)
        for kind in kinds - {aiohttp.ClientError}
    }
    assert meanings == EXPECTED_MEANING


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (HttpProcessingError(message="bad\nline"), ResponseInvalid),
        (aiohttp.EofStream(), ConnectionBroken),
        (ssl.SSLError("decryption failed"), ConnectionBroken),
        (TimeoutError(), ConnectionBroken),
        (ConnectionResetError(104, "reset"), ConnectionBroken),
        (RuntimeError("unheard of"), ConnectionBroken),
    ],
)
def test_translation(error: Exception, meaning: type[TransportError]) -> None:
    """System errors are mapped as well; the text is one line and never empty, the cause is kept."""
    translated = translate(error)
    assert type(translated) is meaning
    assert translated.__cause__ is error
    assert str(translated)
    assert "\n" not in str(translated)
