"""Parameters that the file gives to every request of a model, held against the engines that serve it.

What a model's `defaults` say counts as if the client had sent it. So a field that an engine has nothing for
makes its pool unusable for every request without that field: a 400, or a chain that is shorter than it looks.
The engines' own tables are asked, as they are for a request.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from backends.contract import EngineAdapter, GenerateRequest, Unsupported
from gateway.config import schema
from gateway.config.problems import Report
from gateway.config.reading import File

__all__ = ["check_defaults"]


def check_defaults(file: File, report: Report, adapters: Mapping[str, EngineAdapter]) -> None:
    """Warn of each default that a pool of its model refuses."""
    for name, model in file.models.items():
        if not model.item.defaults or not report.sound((*model.path, "defaults")):
            continue
        for pool, read in file.pools.items():
            if pool in adapters and report.sound((*read.path, "serves")) and name in read.item.serves:
                for field, why in _refused(model.item.defaults, read.item, adapters[pool]):
                    path = (*model.path, "defaults", field)
                    report.warn(
                        path if field in model.item.defaults else path[:-1],
                        f"pool {pool} ({read.item.engine}) serves no request that has it: {why}",
                    )


def _refused(
    defaults: Mapping[str, Any], pool: schema.Pool, adapter: EngineAdapter
) -> Iterator[tuple[str, str]]:
    """Each refused field, with the engine's reason and, where it is only one, the route."""
    doors = adapter.doors.served if pool.doors is None else pool.doors
    found: dict[tuple[str, str], list[str]] = {}
    asked = [route for route in ("chat", "completions") if route in doors]
    for route in asked:
        for refusal in _refusals(defaults, route, adapter):
            found.setdefault((refusal.param, refusal.message), []).append(route)
    for (field, message), routes in found.items():
        yield field, message if routes == asked else f"{message} (on {routes[0]})"


def _refusals(defaults: Mapping[str, Any], route: str, adapter: EngineAdapter) -> Iterator[Unsupported]:
    """One after the other: the fields are tried together, for some need others beside them."""
    left = dict(defaults)
    while left and (refusal := adapter.unsupported(_request(left, route))) is not None:
        yield refusal
        if left.pop(refusal.param, None) is None:
            return


def _request(given: Mapping[str, Any], route: str) -> GenerateRequest:
    """A short request with these fields and no others."""
    parameters = dict(given)
    n, stop = parameters.pop("n", 1), parameters.pop("stop", ())
    return GenerateRequest(
        request_id="check",
        model="",
        stream=False,
        messages=[{"role": "user", "content": "Hi"}] if route == "chat" else None,
        prompt="Hi" if route == "completions" else None,
        rendered="Hi" if route == "chat" else None,
        max_tokens=16,
        n=n if isinstance(n, int) else 1,
        stop=(stop,)
        if isinstance(stop, str)
        else tuple(each for each in stop or () if isinstance(each, str)),
        parameters=msgspec.to_builtins(parameters),
    )
