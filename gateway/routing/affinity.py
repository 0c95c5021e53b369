"""What a request has in common with earlier ones, as the queue places it by: its beginning, its session.

Engines share what they computed of a beginning between all who send it, so by default the gateway looks for
it across tenants too. Who measures times to the first token can then learn whether somebody else lately sent
the same beginning: `share_prefixes: false` keeps tenants apart, here and, by a `cache_salt`, in the engines
that know one.
"""

import hashlib

from gateway.call import Call
from gateway.routing.router import Target
from gateway.tokens.leading import NOTHING, Leading, leading

__all__ = ["cache_salt", "opening_of", "session_of"]

MOST = 200
"""Characters of a session's name."""


def session_of(call: Call) -> str | None:
    """What requests of one conversation share; a name counts within its tenant."""
    return f"{call.tenant.name}/{call.session[:MOST]}" if call.session else None


def opening_of(call: Call, target: Target, prompt_tokens: int) -> Leading:
    """How the prompt begins, where the target's engines reuse what they know of it."""
    pool = target.pool
    if not pool.policy.prefix_tokens:
        return NOTHING
    salt = (
        target.engine_model,
        pool.loras.get(target.model.name),
        None if pool.share_prefixes else call.tenant.name,
        str(call.request.parameters.get("cache_salt") or ""),
    )
    return leading(call.request, prompt_tokens, pool.policy.prefix_tokens, salt)


def cache_salt(call: Call) -> str:
    """What engines keep tenants' prefixes apart by. It says nothing of the tenant, and holds what the client
    sent for the same end."""
    own = call.request.parameters.get("cache_salt")
    return hashlib.blake2b(f"{call.tenant.name}/{own or ''}".encode(), digest_size=16).hexdigest()
