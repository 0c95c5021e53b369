"""What conversation a request belongs to, as its headers say.

    x-session-id    as vLLM takes it, and as coding agents and load balancers' hash rules send it

Requests of one session go where the session's text is, as far as that helps; nothing is promised. It is a
hint and no credential: it counts within its tenant only, and one that makes no sense is as good as none.
"""

from gateway.api.asgi import Scope, header

SESSION_HEADER = b"x-session-id"
MOST = 200
"""Characters."""


def session_of(scope: Scope) -> str | None:
    """The session that the client names; None where it names none, or nothing that could be one."""
    value = (header(scope, SESSION_HEADER) or b"").strip()
    if not value or len(value) > MOST or not value.isascii():
        return None
    return value.decode()
