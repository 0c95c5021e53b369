"""Triton's model repository: models are loaded and unloaded, the server stays.

With `--model-control-mode=explicit`; else each of the routes answers 503 (docs: protocol, model repository
extension; core's model_repository_manager.cc). Loading an ensemble loads the models it is made of; they are
unloaded with it where that is asked for. A model that is loaded and has not changed stays as it is.
"""

from collections.abc import Sequence
from urllib.parse import quote

from backends.answers import get
from backends.contract import Answers, HttpRequest

__all__ = ["TritonSleep"]


class TritonSleep:
    def wake_requests(self, models: Sequence[str]) -> Sequence[HttpRequest]:
        return tuple(_control(model, "load", b"{}") for model in models)

    def sleep_requests(self, models: Sequence[str]) -> Sequence[HttpRequest]:
        body = b'{"parameters":{"unload_dependents":true}}'
        return tuple(_control(model, "unload", body) for model in models)

    def awake_requests(self, models: Sequence[str]) -> Sequence[HttpRequest]:
        return tuple(get(f"/v2/models/{quote(model, safe='')}/ready") for model in models)

    def read_awake(self, answers: Answers) -> bool | None:
        """200 from every model; 400 from one that is not loaded."""
        if not answers:
            return None
        return all(answer.status == 200 for answer in answers.values())


def _control(model: str, what: str, body: bytes) -> HttpRequest:
    path = f"/v2/repository/models/{quote(model, safe='')}/{what}"
    return HttpRequest("POST", path, {"content-type": "application/json"}, body)
