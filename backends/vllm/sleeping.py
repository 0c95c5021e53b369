"""vLLM's sleep mode: the weights go to the host's memory, the cache is dropped, the process stays.

The routes are there with `--enable-sleep-mode` and VLLM_SERVER_DEV_MODE=1
(vllm/entrypoints/serve/sleep/api_router.py). Waking an engine that is awake does nothing
(vllm/v1/executor/abstract.py). A request to an engine that is asleep can kill it, and its /health tells
nothing of sleep: that is what `/is_sleeping` is for. Putting it to sleep aborts what it computes.
"""

from collections.abc import Sequence

from backends.answers import get, items_of, json_of
from backends.contract import Answers, HttpRequest

__all__ = ["VllmSleep"]

_ASK = "/is_sleeping"


class VllmSleep:
    """Level 1: fast to wake, and the host needs memory for the weights."""

    def wake_requests(self, models: Sequence[str]) -> Sequence[HttpRequest]:
        return (HttpRequest("POST", "/wake_up"),)

    def sleep_requests(self, models: Sequence[str]) -> Sequence[HttpRequest]:
        return (HttpRequest("POST", "/sleep?level=1"),)

    def awake_requests(self, models: Sequence[str]) -> Sequence[HttpRequest]:
        return (get(_ASK),)

    def read_awake(self, answers: Answers) -> bool | None:
        told = items_of(json_of(answers, _ASK)).get("is_sleeping")
        return not told if isinstance(told, bool) else None
