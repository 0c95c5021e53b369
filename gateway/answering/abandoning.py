"""Tokens that engines computed for nobody: `headgate_abandoned_tokens_total{pool, kind, cause}`.

    kind    prompt    of a request of which nothing was delivered: all of it once a token has come; before
                      that, the share of its predicted time for which the engine had it
            output    seen: what came and was not delivered. Unseen: what the engine makes after it was given
                      up (its adapter's `lingers`), and what it had made of an answer that is not streamed,
                      both by the replica's own pace, and never more than was expected
    cause   client    the client went, or stopped reading
            timeout   the engine was too slow for the client or for the pool
            failed    the engine broke in the middle of a whole answer
            cut       a limit or a time budget ended it
            shutdown  the gateway did, at the end of its drain

What is unseen is an estimate: from the sources of the engines, not from their words. A prompt found in an
engine's cache counts as if it had been computed. What an engine refused was not computed.
"""

from typing import Literal, NamedTuple

from backends.contract import GenerateRequest
from gateway.fleet.ledger import Slot

Cause = Literal["client", "timeout", "failed", "cut", "preempted", "shutdown"]


class Abandoned(NamedTuple):
    """Tokens, over all choices."""

    prompt: int
    output: int


def abandoned(
    slot: Slot,
    request: GenerateRequest,
    now: float,
    *,
    prompt: int,
    expected: int,
    seen: int = 0,
    delivered: int = 0,
    given_up: bool = True,
) -> Abandoned:
    """What is wasted of a request that ends at `now` before its answer did.

    `prompt` and `expected` (output): tokens it was thought to cost. Output tokens so far: `seen` came,
    `delivered` went on to the client. Not `given_up`: the engine itself has ended it.
    """
    ledger = slot.ledger
    lingers = ledger.engine.adapter.lingers(request) if given_up else 0.0
    computing = now - slot.sent + lingers
    prefill = ledger.model.prefill(prompt)
    unseen = lingers if seen or request.stream else computing
    if not seen:
        unseen = min(unseen, max(0.0, computing - prefill))
    steps = unseen / ledger.model.step(ledger.in_flight, ledger.kv_seen)
    output = seen - delivered + min(steps * request.n, _rest(request, expected, seen))
    if delivered:
        prompt = 0
    elif not seen and computing < prefill:
        prompt = int(prompt * computing / prefill)
    return Abandoned(prompt, int(output))


def _rest(request: GenerateRequest, expected: int, seen: int) -> int:
    """Output tokens that the engine would still make by itself. An answer that has outrun what was expected
    is thought to have as much again before it: how long it has been says nothing of how long it will be."""
    rest = expected - seen if seen < expected else expected
    return rest if request.max_tokens is None else max(0, min(rest, request.max_tokens * request.n - seen))
