"""How fast a replica is fed with prompts, for the sake of the answers that it is giving.

Whatever prompts are computed in between, every running answer waits for. An engine that spends the part f of
its time on prompts gives each answer a token every step / (1 - f) seconds, `step` being one without prompts:
with 80 % prompts and steps of 12 ms, every 60 ms. To keep that within a target, prompts may take

    f = 1 - step / target

of its time, and no more. So each prompt that is sent, of P seconds, moves the replica's *fill* on by P / f,
and who comes while the fill reaches further ahead than its size allows, waits (a generic cell rate algorithm
whose rate falls as the batch grows). Small prompts may run ahead by a second: they are hardly ever held back,
long ones make room for them. So long prompts pay for a target, in time to their first token, and not
everybody in time per token.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # placements imports nothing of ours at run time either
    from gateway.queueing.placements import View

__all__ = ["AHEAD", "LEAST", "fed"]

AHEAD = (1.0, 0.3, 0.1)
"""Seconds by which a replica's fill may reach ahead for small, medium and long prompts to be sent there."""
LEAST = 0.3
"""Part of its time that prompts always get: a batch whose bare steps miss the target cannot be helped."""


def fed(view: "View", now: float, prefill: float, target: float) -> float:
    """A prompt of so many seconds is sent to the replica, whose tokens shall come every `target` seconds.

    Returns the seconds by which its fill moves on, to be taken back where the prompt is never read.
    """
    ledger = view.ledger
    step = view.step_s + view.sequence_s * ledger.in_flight + view.kv_s * ledger.kv_seen
    fill = prefill / max(LEAST, 1 - step / target)
    view.full_until = max(view.full_until, now) + fill
    return fill
