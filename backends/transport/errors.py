"""From aiohttp's and the system's errors to ours: one map, and a test that it is complete."""

from collections.abc import Mapping

import aiohttp
from aiohttp.client_exceptions import UploadAbortedError
from aiohttp.http_exceptions import HttpProcessingError

from backends.contract import (
    ConnectFailed,
    ConnectionBroken,
    ResponseInvalid,
    TransportError,
)

MEANING: Mapping[type[BaseException], type[TransportError]] = {
    # Nothing was sent. DNS, refused, TLS and certificate errors are all ClientConnectorErrors.
    aiohttp.ClientConnectorError: ConnectFailed,
    aiohttp.ConnectionTimeoutError: ConnectFailed,
    aiohttp.ServerFingerprintMismatch: ConnectFailed,
    aiohttp.InvalidURL: ConnectFailed,
    aiohttp.NonHttpUrlClientError: ConnectFailed,
    # The connection ended too early.
    aiohttp.ClientConnectionError: ConnectionBroken,
    aiohttp.ClientPayloadError: ConnectionBroken,
    UploadAbortedError: ConnectionBroken,
    aiohttp.EofStream: ConnectionBroken,
    OSError: ConnectionBroken,
    # It lives, and what it says is wrong.
    aiohttp.ClientResponseError: ResponseInvalid,
    aiohttp.InvalidUrlRedirectClientError: ResponseInvalid,
    aiohttp.NonHttpUrlRedirectClientError: ResponseInvalid,
    aiohttp.RedirectClientError: ResponseInvalid,
    HttpProcessingError: ResponseInvalid,
}
"""The one map from foreign errors to ours; the nearest class in an error's ancestry decides."""

FOREIGN = (aiohttp.ClientError, HttpProcessingError, aiohttp.EofStream, OSError)


def translate(error: BaseException) -> TransportError:
    """`error` of aiohttp or of the system as one of ours, its cause set."""
    meaning = next((MEANING[kind] for kind in type(error).__mro__ if kind in MEANING), ConnectionBroken)
    cause: BaseException | None = error
    detail = str(error)
    if isinstance(error, aiohttp.ClientResponseError):
        # Its `repr` holds our request headers, credentials among them: pass on what it stands for instead.
        cause, detail = error.__cause__, error.message
    elif isinstance(error, aiohttp.ServerDisconnectedError):
        detail = "closed before the end of the answer"  # its own text may be the repr of half an answer
    translated = meaning(" ".join(detail.split())[:300] or type(error).__name__)
    translated.__cause__ = cause
    return translated
