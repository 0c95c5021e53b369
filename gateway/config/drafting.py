"""routes.yaml for engines that were found: `headgate serve --upstream` runs on it, `--print-config` shows it.

One text for both, read by the same loader as any file, so what is printed is what runs. Pure.

What comes from an upstream is not trusted: names become model names or are left out, and no text of it can
name a variable of the environment (`$` is doubled).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from backends.contract import EngineLimits, Identified

__all__ = ["TENANT", "Found", "draft", "usable_names"]

TENANT = "default"
"""Whose the one key is."""
MOST_MODELS = 256
_MOST_COUNT = 10**12
_LONGEST_NAME = 512
_OUTPUT_SHARE = 4
"""A client that names no bound gets this part of the context: the rest is room for prompts, whose tokens are
only estimated, so that the engine does not refuse the sum."""


@dataclass(frozen=True, slots=True)
class Found:
    """An upstream that was recognised."""

    number: int
    """Its place on the command line, from 1: names its replica, whoever else is missing."""
    url: str
    identified: Identified


@dataclass(slots=True)
class _Group:
    """Replicas of one kind with the same options, models and limits."""

    identified: Identified
    serves: dict[str, str]
    replicas: list[Found]


def usable_names(models: Mapping[str, str]) -> dict[str, str]:
    """Those of an upstream's models that can be written: printable, not endless, not too many."""
    fit = {
        name: own
        for name, own in models.items()
        if all(text.isprintable() and 0 < len(text) <= _LONGEST_NAME for text in (name, own))
    }
    return dict(list(fit.items())[:MOST_MODELS])


def draft(
    found: Sequence[Found],
    digest: str,
    *,
    listen: str,
    admin: str,
    tokenizers: Mapping[str, str] | None = None,
) -> str:
    """routes.yaml for `found`, at least one.

    `digest` is the SHA-256 of the one key. `tokenizers`: directories by public model name; the tokens of
    other models are estimated.
    """
    public = _public_names(name for upstream in found for name in usable_names(upstream.identified.models))
    pools = _pools(_grouped(found, public))
    models = {name: _model(name, pools, tokenizers or {}) for name in dict.fromkeys(public.values())}
    tree = {
        "version": 1,
        "server": {"listen": listen, "admin": admin, "state": "${HEADGATE_STATE:-./.headgate}"},
        "models": models,
        "pools": pools,
        "rules": _rules(models, pools),
        "tenants": {TENANT: {"keys": [{"id": f"{TENANT}-1", "hash": f"sha256:{digest}"}]}},
    }
    return _HEAD + yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=110)


_HEAD = """\
# What `headgate serve --upstream` runs on. Save it as routes.yaml, then `headgate serve`; docs/routes.md
# explains every key. Worth adding: tokenizers (the counts are estimates so far), tenants, length rules.
"""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True

    def text(self, value: str) -> yaml.Node:
        """PyYAML quotes what YAML 1.1 reads as a number, the loader reads those of YAML 1.2 (`0E0`) too."""
        numeric = value[:1] in "+-." or value[:1].isdigit()
        return self.represent_scalar("tag:yaml.org,2002:str", value, style='"' if numeric else None)


_Dumper.add_representer(str, _Dumper.text)


# -------------------------------------------------------------------------------------------- names


def _public_names(names: Iterable[str]) -> dict[str, str]:
    """Engines' names -> model names of the grammar; different ones stay different."""
    public: dict[str, str] = {}
    for name in dict.fromkeys(names):
        plain = re.sub(r"[^A-Za-z0-9._:/@+-]", "-", name).lstrip("./:@+-")[:120] or "model"
        public[name] = _unique(plain, public.values())
    return public


def _unique(name: str, taken: Iterable[str]) -> str:
    """`name`, or with the first number that makes it one of its own."""
    others = set(taken)
    candidates = (name if number == 1 else f"{name}-{number}" for number in range(1, len(others) + 2))
    return next(candidate for candidate in candidates if candidate not in others)


# -------------------------------------------------------------------------------------------- parts


def _grouped(found: Sequence[Found], public: Mapping[str, str]) -> list[_Group]:
    groups: list[_Group] = []
    for upstream in found:
        identified = upstream.identified
        serves = {public[name]: own for name, own in usable_names(identified.models).items()}
        for group in groups:
            other = group.identified
            if (other.kind, other.options, other.limits) == (
                identified.kind,
                identified.options,
                identified.limits,
            ) and group.serves == serves:
                group.replicas.append(upstream)
                break
        else:
            groups.append(_Group(identified, serves, [upstream]))
    return groups


def _pools(groups: Iterable[_Group]) -> dict[str, dict[str, Any]]:
    pools: dict[str, dict[str, Any]] = {}
    for group in groups:
        identified = group.identified
        pool: dict[str, Any] = {"engine": identified.kind}
        if identified.options:
            pool["options"] = dict(identified.options)
        pool["serves"] = {name: own.replace("$", "$$") for name, own in group.serves.items()}
        if limits := _limits(identified.limits):
            pool["limits"] = limits
        pool["replicas"] = [
            {"id": f"upstream-{upstream.number}", "url": upstream.url.replace("$", "$$")}
            for upstream in group.replicas
        ]
        pools[_unique(identified.kind, pools)] = pool
    return pools


def _limits(told: EngineLimits) -> dict[str, int]:
    prompt, total = told.prompt_tokens, told.context_tokens
    if prompt and total and prompt > total:
        prompt = None
    limits = {"prompt": prompt, "total": total, "in_flight": told.in_flight}
    return {key: count for key, count in limits.items() if count is not None and 1 <= count <= _MOST_COUNT}


def _model(
    name: str, pools: Mapping[str, Mapping[str, Any]], tokenizers: Mapping[str, str]
) -> dict[str, Any]:
    """The widest context of the pools that serve it; none where one of them tells none."""
    model: dict[str, Any] = {"tokenizer": {"kind": "estimate"}}
    if name in tokenizers:
        model["tokenizer"] = {"kind": "huggingface", "path": tokenizers[name].replace("$", "$$")}
    totals = [pool.get("limits", {}).get("total") for pool in _serving(name, pools).values()]
    known = [total for total in totals if total is not None]
    if len(known) == len(totals):
        model["context"] = max(known)
    if known:
        model["max_tokens"] = {"default": max(1, min(known) // _OUTPUT_SHARE)}
    return model


def _serving(name: str, pools: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {pool: given for pool, given in pools.items() if name in given["serves"]}


def _rules(models: Iterable[str], pools: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One for each model, its pools in their order. Nothing is left for a last rule: check would say so."""
    rules: list[dict[str, Any]] = []
    for model in models:
        chain = list(_serving(model, pools))
        name = _unique(re.sub(r"[/:@+]", "-", model)[:60], [rule["name"] for rule in rules])
        rule: dict[str, Any] = {"name": name, "when": {"model": model}, "pools": chain}
        if len(chain) > 1:
            rule["on"] = ["unavailable", "failed", "overloaded", "too_long"]
        rules.append(rule)
    return rules
