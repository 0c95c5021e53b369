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
    return session_named((header(scope, SESSION_HEADER) or b"").decode("latin-1"))


def session_named(name: str) -> str | None:
    """`name` as a session's; None where it could be none."""
    name = name.strip()
    return name if name and len(name) <= MOST and name.isascii() else None
