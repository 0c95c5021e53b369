"""Every way a request can be refused or fail, as the client sees it.

    GatewayError                status, type, code, param; whether a retry can help
      BadRequest           400  the request is wrong; `param` names the field
        ContextLengthExceeded   prompt, or prompt + max_tokens, beyond what the model or every pool takes
        UnsupportedByEngine     good OpenAI, but no pool of the chain has an engine that can
      InvalidKey           401
      NotAdmin             403  a valid key, on a route that is not for it
      NoSuchRoute          404
      NotFound             404  an administrator named a key or replica that there is not
      ModelNotFound        404  also for a model this tenant may not use: no probing
      EndpointNotServed    404  no engine of the model serves this endpoint
      MethodNotAllowed     405
      BodyTimeout          408
      Conflict             409  what an administrator wants cannot be as things are
      BodyTooLarge         413
      UnsupportedMedia     415
      QuotaExceeded        429  a limit said no: it will have room again
        BudgetExceeded          a budget did: not before the next day or month
      NotImplementedHere   501  a known route, for things that this gateway does not do
      EngineFailed         502  engines broke, lied or refused our credentials
      Unavailable          503  shared capacity: no replica, queue full, waited too long, draining; or limits
                                that must hold cannot be checked
      EngineTimeout        504
    ClientGone                  not an answer: nobody is left to get one (logged as 499)

Statuses, types and codes follow OpenAI's error guide; its SDKs turn them into typed exceptions and obey
`retry-after`, `retry-after-ms` and `x-should-retry`. Engine texts never appear here unsanitised.
"""

import re
from typing import ClassVar, Literal

RETRY_AFTER_CAP = 60.0
"""Seconds. SDKs give up, or ignore the header, beyond this."""


class GatewayError(Exception):
    """A refusal or failure with its place in OpenAI's error vocabulary."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        hopeless: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else self.default_code
        self.param = param
        self.retry_after = None if retry_after is None else min(max(retry_after, 0.0), RETRY_AFTER_CAP)
        """Seconds until a retry may succeed; at most RETRY_AFTER_CAP."""
        self.hopeless = hopeless
        """The same request can never succeed: SDKs are told not to retry."""


class BadRequest(GatewayError):
    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(BadRequest):
    default_code = "context_length_exceeded"


class UnsupportedByEngine(BadRequest):
    default_code = "unsupported_parameter"


class InvalidKey(GatewayError):
    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class NotAdmin(GatewayError):
    status = 403
    type = "invalid_request_error"
    default_code = "not_permitted"


class NoSuchRoute(GatewayError):
    status = 404
    type = "invalid_request_error"
    default_code = "unknown_url"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class ModelNotFound(GatewayError):
    status = 404
    type = "invalid_request_error"
    default_code = "model_not_found"


class EndpointNotServed(GatewayError):
    status = 404
    type = "invalid_request_error"
    default_code = "unsupported_endpoint"


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class BodyTimeout(GatewayError):
    status = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class Conflict(GatewayError):
    status = 409
    type = "invalid_request_error"
    default_code = "conflict"


class BodyTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class UnsupportedMedia(GatewayError):
    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class QuotaExceeded(GatewayError):
    """A limit said no."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        limit: str | None = None,
        retry_after: float | None = None,
        hopeless: bool = False,
    ) -> None:
        super().__init__(message, hopeless=hopeless)
        self.retry_after = None if retry_after is None else max(retry_after, 0.0)
        """Not capped: it is known, and to come back earlier is of no use."""
        self.limit = limit
        """The name of the limit that said no."""
        self.of_pool = False
        """Only limits of the pool did: another pool may take the request."""
        self.rate_headers: list[tuple[str, str]] = []
        """How the limits stand."""


class BudgetExceeded(QuotaExceeded):
    type = "insufficient_quota"
    default_code = "insufficient_quota"


class NotImplementedHere(GatewayError):
    status = 501
    type = "invalid_request_error"
    default_code = "not_implemented"

    def __init__(self, message: str) -> None:
        super().__init__(message, hopeless=True)


class EngineFailed(GatewayError):
    status = 502
    type = "server_error"
    default_code = "upstream_error"


UnavailableReason = Literal[
    "no_replica", "queue_full", "queue_timeout", "overloaded", "draining", "limits_unknown", "asleep"
]  # fmt: skip


class Unavailable(GatewayError):
    status = 503
    type = "service_unavailable_error"
    default_code = "server_is_overloaded"

    def __init__(
        self,
        message: str,
        *,
        reason: UnavailableReason,
        retry_after: float | None = 1.0,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason


class EngineTimeout(GatewayError):
    status = 504
    type = "server_error"
    default_code = "upstream_timeout"


class ClientGone(Exception):
    """The client closed its connection."""


_UNFIT = re.compile(
    r"Traceback|File \"|0x[0-9a-fA-F]{6,}|\w://|(?:^|[\s'\"(=])(?:/[\w.-]+){2,}|[A-Za-z]:\\"
    r"|\b\d+\.\d+\.\d+\.\d+\b|\w:\d{4,5}\b|::|(?:^|[\s'\"`(])--[a-z]"
)
"""What must not leave the house: tracebacks, addresses, URLs, file paths, hosts with their ports, flags of a
server's command line."""

ENGINE_TEXT_LIMIT = 400
"""Characters of an engine's message that a client may see."""


def engine_text(message: str) -> str | None:
    """An engine's own words in a form fit for clients, or None where they are not fit at all."""
    message = message[: 4 * ENGINE_TEXT_LIMIT]
    text = " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in message).split())
    if not text or _UNFIT.search(text):
        return None
    return text if len(text) <= ENGINE_TEXT_LIMIT else text[: ENGINE_TEXT_LIMIT - 1] + "…"
