"""What only the whole file can tell: names that refer to each other, engine options, files, chains.

Every check tolerates an item with faults (`Report.sound`): what could not be read is not checked, and
nothing is said to be missing that may only be unreadable. What is learned on the way (adapters, keys read
from files, resolved conditions) is returned, so that `building` has nothing left to doubt.
"""

import itertools
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends.contract import EngineAdapter, EngineRegistry, Lora, OptionError
from gateway.config import schema
from gateway.config.addresses import is_loopback
from gateway.config.coverage import coverage
from gateway.config.limiting import check_limits
from gateway.config.positions import KeyPath
from gateway.config.problems import Report, nearest
from gateway.config.profiles import read_pace
from gateway.config.reading import File, Read
from gateway.config.redis_urls import parse_redis_url
from gateway.config.snapshot import ANONYMOUS, Pace, PriorityClass, Range, When

_OWN_HEADERS = frozenset(
    {"connection", "content-length", "content-type", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Set by the transport or the adapter, never by configuration."""

_OWN_FIELDS = frozenset(
    {"model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens"}
)
"""Body fields that the gateway decides, and so no defaults."""

_MOST_KEY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Findings:
    adapters: Mapping[str, EngineAdapter]
    """Pool -> its adapter."""
    api_keys: Mapping[str, str]
    """Pool -> the credential for its replicas."""
    conditions: tuple[When | None, ...]
    """For each rule, its condition with names resolved."""
    aliases: Mapping[str, str]
    paces: Mapping[str, Pace]
    """Pool -> how fast its replicas are, where a profile tells."""


def absolute(base: Path, written: str) -> str:
    """A path of the file, which counts from the file's directory. Links are not followed: they may move."""
    return os.path.abspath(base / written)


def span(written: schema.Range | None) -> Range | None:
    if written is None:
        return None
    return Range(lt=written.lt, lte=written.lte, gt=written.gt, gte=written.gte)


def check(
    file: File, report: Report, registry: EngineRegistry, base: Path, *, force_open: bool = False
) -> Findings:
    """All cross checks; problems and warnings go to `report`. `base` is the file's directory."""
    return _Checker(file, report, registry, base).check(force_open)


class _Checker:
    def __init__(self, file: File, report: Report, registry: EngineRegistry, base: Path) -> None:
        self._file = file
        self._report = report
        self._registry = registry
        self._base = base

    def check(self, force_open: bool) -> Findings:
        self._server(force_open)
        aliases = self._aliases()
        for model in self._file.models.values():
            self._model(model)
        adapters, api_keys, paces = {}, {}, {}
        for name, pool in self._file.pools.items():
            if (adapter := self._adapter(pool)) is not None:
                adapters[name] = adapter
                self._relay(pool, adapter)
                self._told(pool, adapter)
                self._doors(pool, adapter)
            if (api_key := self._upstream(pool)) is not None:
                api_keys[name] = api_key
            if (pace := self._pace(pool)) is not None:
                paces[name] = pace
            self._pool(pool)
            self._activation(pool, adapter)
        for model in self._file.models.values():
            self._engine_tokenizer(model, adapters)
        self._replicas()
        for tenant in self._file.tenants.values():
            self._tenant(tenant)
        self._keys()
        check_limits(self._file, self._report, aliases)
        conditions = tuple(self._condition(rule, aliases) for rule in self._file.rules)
        self._rules(conditions)
        return Findings(adapters, api_keys, conditions, aliases, paces)

    # ------------------------------------------------------------------------------ server and files

    def _server(self, force_open: bool) -> None:
        server, path = self._file.server.item, self._file.server.path
        sound = self._sound(path, "listen", "admin", "authentication")
        if server.redis_url is not None:
            try:
                parse_redis_url(server.redis_url)
            except ValueError as error:
                self._report.error((*path, "redis_url"), f"redis_url {error}")
        if server.listen == server.admin and server.listen[1] and sound:
            self._report.value_error((*path, "admin"), "is the address of `listen` too")
        open_to_all = server.authentication == "off" and not is_loopback(server.listen[0])
        if open_to_all and not force_open and sound:
            message = "'off' lets everyone in who reaches `listen`, which is not a loopback address"
            self._report.error((*path, "authentication"), message, "--insecure allows it")

    def _sound(self, path: KeyPath, *keys: str) -> bool:
        return all(self._report.sound((*path, key)) for key in keys)

    def _exists(self, path: KeyPath, written: str, kind: Literal["file", "directory"]) -> None:
        found = Path(absolute(self._base, written))
        try:
            good = found.is_dir() if kind == "directory" else found.is_file()
        except (OSError, ValueError):  # a name too long, a NUL
            good = False
        if not good:
            self._report.value_error(path, f"is not a {kind}", "paths count from this file's directory")

    # --------------------------------------------------------------------------------------- models

    def _aliases(self) -> dict[str, str]:
        owners: dict[str, KeyPath] = {}
        aliases: dict[str, str] = {}
        for name, model in self._file.models.items():
            for index, alias in enumerate(model.item.aliases):
                path = (*model.path, "aliases", index)
                if alias in self._file.models:
                    self._report.value_error(path, "is the name of a model already")
                elif alias == "*":
                    self._report.value_error(path, "is no alias; declare a model of this name")
                elif alias in owners:
                    line = self._report.line(owners[alias])
                    self._report.value_error(path, f"is an alias already, in line {line}")
                else:
                    owners[alias] = path
                    aliases[alias] = name
        return aliases

    def _model(self, read: Read[schema.Model]) -> None:
        model, path = read.item, read.path
        tokenizer = model.tokenizer
        if isinstance(tokenizer, schema.HuggingFaceTokenizer):
            self._exists((*path, "tokenizer", "path"), tokenizer.path, "directory")
            if tokenizer.chat_template is not None:
                self._exists((*path, "tokenizer", "chat_template"), tokenizer.chat_template, "file")
        elif isinstance(tokenizer, schema.TiktokenTokenizer) and tokenizer.path is not None:
            self._exists((*path, "tokenizer", "path"), tokenizer.path, "file")
        elif isinstance(tokenizer, schema.EstimateTokenizer) and model.count in ("exact", "auto"):
            self._report.value_error((*path, "count"), "wants a tokenizer that counts; `estimate` does not")
        default, ceiling, context = model.max_tokens.default, model.max_tokens.ceiling, model.context
        if default and ceiling and default > ceiling:
            self._report.value_error((*path, "max_tokens", "default"), f"is more than the ceiling, {ceiling}")
        if context and model.max_tokens.margin >= context:
            self._report.value_error(
                (*path, "max_tokens", "margin"), f"leaves nothing of the context, {context} tokens"
            )
        media = model.media_tokens
        if media.image is None and media.per_detail != schema.PerDetail():
            self._report.error(
                (*path, "media_tokens", "per_detail"), "is of images; `image` is for those without", key=True
            )
        for key, tokens in (("default", default), ("ceiling", ceiling)):
            if tokens and context and tokens > context:
                message = f"more than the model's context of {context} tokens; that is the bound then"
                self._report.warn((*path, "max_tokens", key), message)
        for field in sorted(_OWN_FIELDS.intersection(model.defaults)):
            hint = "use max_tokens.default" if field.startswith("max_") else ""
            self._report.error(
                (*path, "defaults", field), "the gateway sets this field itself", hint, key=True
            )

    def _engine_tokenizer(self, read: Read[schema.Model], adapters: Mapping[str, EngineAdapter]) -> None:
        """Whether the engines that are to count for a model can."""
        tokenizer, path = read.item.tokenizer, (*read.path, "tokenizer", "pool")
        if not isinstance(tokenizer, schema.EngineTokenizer) or "pools" in self._file.unreadable:
            return
        pool = self._file.pools.get(tokenizer.pool)
        if pool is None:
            self._report.unknown(path, "a pool", self._file.pools)
            return
        name = read.path[-1]
        if name not in pool.item.serves and self._sound(pool.path, "serves"):
            self._report.value_error(path, f"does not serve {name}")
        adapter = adapters.get(tokenizer.pool)
        if adapter is None:
            return
        kind = pool.item.engine
        if adapter.tokenize_request("", text="") is None:
            message = f"cannot count: {kind} has no question for it"
            self._report.value_error(path, message, "use huggingface, tiktoken or estimate")
        elif adapter.tokenize_request("", messages=[]) is None:
            self._report.warn(path, f"{kind} counts texts only; chats are estimated")
        if pool.item.state == "cold" and pool.item.wake is None:
            self._report.warn(path, "the pool is cold: it is not asked, and prompts are estimated")

    # ---------------------------------------------------------------------------------------- pools

    def _adapter(self, read: Read[schema.Pool]) -> EngineAdapter | None:
        pool, path = read.item, read.path
        if not self._sound(path, "engine"):
            return None
        kinds = self._registry.kinds()
        if pool.engine not in kinds:
            self._report.unknown((*path, "engine"), "an engine kind", kinds)
            return None
        if not self._sound(path, "options"):
            return None
        options = dict(pool.options)
        while True:
            try:
                return self._registry.adapter(pool.engine, options)
            except OptionError as error:
                self._option(read, error)
                if options.pop(error.option, None) is None:
                    return None
                # The error is told; without it, the next one shows itself.

    def _option(self, read: Read[schema.Pool], error: OptionError) -> None:
        options, path = read.item.options, (*read.path, "options")
        if error.option not in options:
            # Something needed is absent; the options themselves may be.
            self._report.error(path, str(error), nearest(error.option, error.choices))
            return
        hint = nearest(error.option, error.choices)
        if not hint.startswith("did"):
            hint = nearest(str(options[error.option]), error.choices)
        # The adapter's words may quote the value, and a variable's value is not for showing.
        from_environment = self._report.written_with_variables((*path, error.option))
        message = "not a valid option" if from_environment else str(error)
        self._report.error((*path, error.option), message, hint)

    def _relay(self, read: Read[schema.Pool], adapter: EngineAdapter) -> None:
        pool, path = read.item, (*read.path, "relay")
        if pool.relay == "auto":
            return
        if adapter.relay == "translated":
            self._report.value_error(
                path, f"is not possible: {pool.engine} answers are translated", "use auto"
            )
        elif pool.relay == "raw" and not adapter.canonical:
            self._report.value_error(
                path, f"is not possible: {pool.engine}'s answers need patching", "use auto"
            )
        elif pool.relay == "raw" and (
            renamed := sorted(name for name, own in pool.serves.items() if name != _told_name(own))
        ):
            message = f"would show the engine's own name for {', '.join(renamed)}"
            self._report.value_error(path, message, "use auto, or equal names in serves")

    def _told(self, read: Read[schema.Pool], adapter: EngineAdapter) -> None:
        """What is said to engines beside OpenAI's fields: LoRA adapters, priorities."""
        pool, path = read.item, read.path
        if pool.engine_priority and not adapter.takes_priority and self._sound(path, "engine_priority"):
            message = f"is not possible: {pool.engine} takes no priorities"
            self._report.value_error((*path, "engine_priority"), message)
        if not self._sound(path, "serves"):
            return
        for name, own in pool.serves.items():
            if isinstance(own, schema.Adapted) and (fault := adapter.lora_fault(lora_of(own))) is not None:
                at = (*path, "serves", name, "adapter")
                self._report.error(at, f"adapter {own.adapter.name} {fault}", f"engine: {pool.engine}")

    def _doors(self, read: Read[schema.Pool], adapter: EngineAdapter) -> None:
        for index, door in enumerate(read.item.doors or ()):
            if door not in adapter.doors.possible:
                possible = ", ".join(sorted(adapter.doors.possible))
                self._report.value_error(
                    (*read.path, "doors", index), f"is not possible: {read.item.engine} serves {possible}"
                )

    def _upstream(self, read: Read[schema.Pool]) -> str | None:
        upstream, path = read.item.upstream, (*read.path, "upstream")
        if upstream.ca_file is not None:
            self._exists((*path, "ca_file"), upstream.ca_file, "file")
        for header in upstream.headers:
            if header.lower() in _OWN_HEADERS:
                self._report.error(
                    (*path, "headers", header), "a header that the gateway sets itself", key=True
                )
        if upstream.api_key is not None and upstream.api_key_file is not None:
            self._report.error((*path, "api_key_file"), "api_key is given too; one of them", key=True)
            return None
        source = "api_key"
        api_key = upstream.api_key
        if upstream.api_key_file is not None:
            source = "api_key_file"
            api_key = self._secret((*path, source), upstream.api_key_file)
        if api_key is not None and not re.fullmatch(r"[\x21-\x7e]+", api_key):
            self._report.error((*path, source), "the key has a blank or a character that no header can hold")
            return None
        return api_key

    def _pace(self, read: Read[schema.Pool]) -> Pace | None:
        if read.item.profile is None:
            return None
        path = (*read.path, "profile")
        try:
            return read_pace(Path(absolute(self._base, read.item.profile)))
        except OSError:
            self._report.value_error(path, "cannot be read", "paths count from this file's directory")
        except ValueError as error:
            self._report.value_error(path, str(error), "`headgate calibrate` writes one")
        return None

    def _secret(self, path: KeyPath, written: str) -> str | None:
        """The content of a secret's file, without the newline at its end."""
        try:
            with open(absolute(self._base, written), "rb") as file:
                content = file.read(_MOST_KEY_BYTES + 1)
            text = content.decode()
        except OSError as error:
            self._report.error(
                path, f"cannot be read: {error.strerror}", "paths count from this file's directory"
            )
            return None
        except ValueError:
            self._report.error(path, "does not hold text")
            return None
        text = text.rstrip("\r\n")
        if not text or len(content) > _MOST_KEY_BYTES:
            self._report.error(path, "is empty or too long for a key")
            return None
        return text

    def _pool(self, read: Read[schema.Pool]) -> None:
        pool, path = read.item, read.path
        limits = pool.limits
        if limits.prompt and limits.total and limits.prompt > limits.total:
            self._report.value_error((*path, "limits", "prompt"), f"is more than the total, {limits.total}")
        if pool.max_generation_ms is not None and pool.upstream_stream == "client":
            message = "does not hold for answers that are not streamed, as `upstream_stream` is `client`"
            self._report.warn((*path, "max_generation_ms"), message)
        if "models" in self._file.unreadable:
            return
        for index, name in enumerate(pool.serves):
            if name not in self._file.models:
                self._undeclared(path, index, name)
                continue
            context = self._file.models[name].item.context
            if limits.total and context and limits.total > context:
                message = f"more than the {context} tokens of {name}'s context; that is the bound then"
                self._report.warn((*path, "limits", "total"), message)

    def _activation(self, read: Read[schema.Pool], adapter: EngineAdapter | None) -> None:
        pool, path = read.item, read.path
        wake = pool.wake
        if not self._sound(path, "wake", "state"):
            return
        if wake is None:
            for key in ("wake_timeout_s", "idle_after_s", "while_waking"):
                if key in pool.model_fields_set:
                    self._report.warn((*path, key), "has no effect: nothing wakes this pool (`wake`)")
            if pool.state == "warm":
                self._report.warn((*path, "state"), "is as hot: nothing wakes this pool (`wake`)")
            return
        if isinstance(wake, schema.EngineWake):
            if adapter is not None and adapter.sleep is None:
                able = [kind for kind in self._registry.kinds() if self._sleeps(kind)]
                hint = f"those that do: {', '.join(able)}; else use http, command or kubernetes"
                self._report.error((*path, "wake"), f"{pool.engine} knows no sleep", hint)
        elif not getattr(wake, "cool", True) and pool.idle_after_s is not None:
            self._report.error((*path, "idle_after_s"), "nothing puts this pool to sleep (`wake.cool`)")
        if isinstance(wake, schema.HttpWake):
            for action, steps in (("wake", wake.wake), ("cool", wake.cool)):
                for index, step in enumerate(steps):
                    for header in step.headers:
                        if header.lower() in _OWN_HEADERS - {"content-type"}:
                            at = (*path, "wake", action, index, "headers", header)
                            self._report.error(at, "a header that the gateway sets itself", key=True)
        held = pool.queue.max_wait_s
        if pool.while_waking == "hold" and pool.wake_timeout_s and pool.wake_timeout_s > held:
            message = f"requests are held for {held:g} s at most (`queue.max_wait_s`)"
            self._report.warn((*path, "wake_timeout_s"), message)

    def _sleeps(self, kind: str) -> bool:
        try:
            return self._registry.adapter(kind, {}).sleep is not None
        except OptionError:
            return False

    def _undeclared(self, pool: KeyPath, index: int, name: str) -> None:
        """`serves` names a model that does not exist: as a key, as an item of a list, or alone."""
        serves = (*pool, "serves")
        if self._report.has((*serves, name)):
            hint = nearest(name, self._file.models)
            self._report.error((*serves, name), f"{name!r} is not a declared model", hint, key=True)
        else:
            self._report.unknown(self._report.item(serves, index), "a declared model", self._file.models)

    def _replicas(self) -> None:
        ids: dict[str, KeyPath] = {}
        urls: dict[str, KeyPath] = {}
        for pool in self._file.pools.values():
            for index, replica in enumerate(pool.item.replicas):
                path = (*pool.path, "replicas", index)
                if replica.id in ids:
                    line = self._report.line((*ids[replica.id], "id"))
                    self._report.value_error((*path, "id"), f"is the id of a replica already, in line {line}")
                first = urls.get(replica.url)
                if first is not None:
                    line = self._report.line((*first, "url"))
                    message = f"the same engine as in line {line}"
                    if first[:2] == path[:2]:
                        self._report.error((*path, "url"), message)
                    else:
                        self._report.warn((*path, "url"), f"{message}; neither pool sees the other's load")
                if self._sound(path, "id"):
                    ids.setdefault(replica.id, path)
                if self._sound(path, "url"):
                    urls.setdefault(replica.url, path)

    # -------------------------------------------------------------------------------------- tenants

    def _tenant(self, read: Read[schema.Tenant]) -> None:
        tenant, path = read.item, read.path
        if (
            PriorityClass[tenant.priority_class] > PriorityClass[tenant.max_class]
            and self._sound(path, "class", "max_class")
        ):  # fmt: skip
            at = (*path, "class") if tenant.priority_class != "standard" else (*path, "max_class")
            message = f"class {tenant.priority_class} is above max_class {tenant.max_class}"
            self._report.error(at, message)
        self._allow(tenant.allow, (*path, "allow"))

    def _allow(self, allow: schema.Allow, path: KeyPath) -> None:
        for index, pattern in enumerate(allow.models):
            literal = not set(pattern) & set("*?[")
            if literal and pattern not in self._file.models and "models" not in self._file.unreadable:
                at = self._report.item((*path, "models"), index)
                self._report.unknown(at, "a declared model", self._file.models)
        pools = self._file.pools.values()
        if "pools" in self._file.unreadable or not all(self._sound(pool.path, "labels") for pool in pools):
            return
        labels: dict[str, set[str]] = {}
        for pool in pools:
            for label, value in pool.item.labels.items():
                labels.setdefault(label, set()).add(value)
        for label, values in (allow.__pydantic_extra__ or {}).items():
            if label not in labels:
                message = f"no pool has a label {label!r}, so this would allow nothing"
                self._report.error((*path, label), message, nearest(label, {*labels, "models"}), key=True)
                continue
            for index, value in enumerate(values):
                if value not in labels[label]:
                    at = self._report.item((*path, label), index)
                    shown = self._report.shown(at)
                    self._report.warn(at, f"no pool has this label as {shown}", nearest(value, labels[label]))

    def _keys(self) -> None:
        digests: dict[str, KeyPath] = {}
        for tenant in self._file.tenants.values():
            ids: dict[str, KeyPath] = {}
            for index, key in enumerate(tenant.item.keys):
                for known, name, path in (
                    (ids, key.id, (*tenant.path, "keys", index, "id")),
                    (digests, key.hash.lower(), (*tenant.path, "keys", index, "hash")),
                ):
                    if self._report.sound(path) and (first := known.setdefault(name, path)) != path:
                        self._report.error(path, f"the same as in line {self._report.line(first)}")
        readable = self._report.sound(("tenants",)) and self._report.sound(("server",))
        if readable and not digests and self._file.server.item.authentication == "keys":
            self._report.warn(("tenants",), "no tenant has a key, so every request will be answered 401")

    # ---------------------------------------------------------------------------------------- rules

    def _condition(self, read: Read[schema.Rule], aliases: Mapping[str, str]) -> When | None:
        """The rule's condition with names resolved, or None where it cannot be known."""
        when, path, sound = read.item.when, (*read.path, "when"), self._sound(read.path, "when")
        models = []
        for index, name in enumerate(when.model or ()):
            resolved = aliases.get(name, name)
            if resolved in self._file.models:
                models.append(resolved)
                continue
            sound = False
            if "models" not in self._file.unreadable:
                known = {*self._file.models, *aliases}
                self._report.unknown(self._report.item((*path, "model"), index), "a declared model", known)
        tenants = {*self._file.tenants, ANONYMOUS.name}
        for index, name in enumerate(when.tenant or ()):
            if name not in tenants:
                sound = False
                if "tenants" not in self._file.unreadable:
                    self._report.unknown(self._report.item((*path, "tenant"), index), "a tenant", tenants)
        for key, bounds in (
            ("estimated_total_tokens", when.estimated_total_tokens),
            ("prompt_tokens", when.prompt_tokens),
        ):
            if span(bounds) == Range() and self._sound(path, key):
                self._report.error((*path, key), "names no bound: one or more of lt, lte, gt, gte")
                sound = False
        if not self._clamping(when.estimated_total_tokens, (*path, "estimated_total_tokens")):
            sound = False
        if not sound:
            return None
        return When(
            model=tuple(dict.fromkeys(models)),
            tenant=tuple(when.tenant or ()),
            priority_class=tuple(PriorityClass[name] for name in when.priority_class or ()),
            estimated_total_tokens=span(when.estimated_total_tokens),
            if_clamped=when.estimated_total_tokens.if_clamped if when.estimated_total_tokens else None,
            prompt_tokens=span(when.prompt_tokens),
            stream=when.stream,
        )

    def _clamping(self, written: schema.EstimateRange | None, path: KeyPath) -> bool:
        """Whether `if_clamped`, where it is given, has a bound to clamp to."""
        least, bounds = (None, None) if written is None else (written.if_clamped, span(written))
        if least is None or bounds is None or bounds == Range() or not self._sound(path, "lt", "lte"):
            return True
        if bounds.most is None:
            self._report.error((*path, "if_clamped"), "there is no bound to clamp to: lt or lte", key=True)
            return False
        if least >= bounds.most:
            self._report.value_error((*path, "if_clamped"), f"leaves no prompt below {bounds.most + 1}")
            return False
        return True

    def _rules(self, conditions: tuple[When | None, ...]) -> None:
        tenants = {*self._file.tenants, ANONYMOUS.name}
        covered = coverage(conditions, self._file.models, tenants)
        served: set[str] = set()
        used: set[str] = set()
        followed: set[tuple[str, str, str | None]] = set()
        names: dict[str, KeyPath] = {}
        for rule, condition, reaching in zip(self._file.rules, conditions, covered.reaching, strict=True):
            path = (*rule.path, "name")
            if rule.item.name and (first := names.setdefault(rule.item.name, path)) != path:
                line = self._report.line(first)
                self._report.value_error(path, f"is the name of a rule already, in line {line}")
            if (
                rule.item.after_ms
                and self._sound(rule.path, "on", "after_ms")
                and "overloaded" not in rule.item.on
            ):
                self._report.warn((*rule.path, "after_ms"), "has no effect unless `on` has overloaded")
            hops = tuple(self._hops(rule))
            used.update(pool for _, pool, _ in hops)
            self._splits(rule)
            used.update(self._overload(rule.item.overload, rule.path, [pool for _, pool, _ in hops]))
            if rule.item.mirror is not None:
                used.add(rule.item.mirror.pool)
                self._mirror(rule, rule.item.mirror, reaching)
            followed.update(
                (later, pool, other)
                for (_, pool, other), (_, later, its) in itertools.combinations(hops, 2)
                if other == its
            )
            self._repeats(hops, condition)
            if condition is None:
                continue
            if not reaching and self._file.models:
                message = (
                    "this rule never matches: rules above take all it asks for, or its bounds exclude all"
                )
                self._report.warn(rule.path, message)
            elif not condition.model:
                self._catch_all(rule, hops, reaching)
            else:
                self._named(hops, condition.model)
            served |= {
                model for model in reaching if any(self._can(pool, other or model) for _, pool, other in hops)
            }
        for priority in self._file.classes.values():
            used.update(self._overload(priority.item.overload, priority.path, None))
        if self._all_known(conditions):
            self._unserved(served, covered.untaken)
            for name, pool in self._file.pools.items():
                if name not in used:
                    self._report.warn(pool.path, "no rule sends anything to this pool")
        self._loans({(lender, borrower) for lender, borrower, _ in followed}, self._all_known(conditions))

    def _loans(self, followed: Container[tuple[str, str]], all_known: bool) -> None:
        """`lends_to` names other pools, each once; `followed`: which pool comes after which in some chain."""
        for name, pool in self._file.pools.items():
            if not self._sound(pool.path, "lends_to"):
                continue
            for index, other in enumerate(pool.item.lends_to):
                path = (*pool.path, "lends_to", index)
                if other == name:
                    self._report.value_error(path, "is this pool itself")
                elif other in pool.item.lends_to[:index]:
                    self._report.value_error(path, "is named twice")
                elif self._is_pool(path, other) and all_known and (name, other) not in followed:
                    message = f"no rule's chain goes on from {other} to {name}: nothing is lent"
                    self._report.warn(path, message)

    def _all_known(self, conditions: tuple[When | None, ...]) -> bool:
        """Whether rules and pools were read wholly enough to say what is absent from them."""
        return (
            not self._file.unreadable
            and None not in conditions
            and all(self._sound(rule.path, "pools") for rule in self._file.rules)
            and all(self._sound(pool.path, "serves") for pool in self._file.pools.values())
            and all(name in self._file.pools for rule in self._file.rules for name in _chain_names(rule.item))
        )

    def _hops(self, rule: Read[schema.Rule]) -> Iterator[tuple[KeyPath, str, str | None]]:
        """Each pool of the chain that exists: where it is written, its name, the model it answers with."""
        for index, entry in enumerate(rule.item.pools):
            path = (*rule.path, "pools", index)
            if isinstance(entry, str):
                if self._is_pool(path, entry):
                    yield path, entry, None
                continue
            if isinstance(entry, dict):
                for name in entry:
                    at = (*path, name)
                    if name in self._file.pools:
                        yield at, name, None
                    elif "pools" not in self._file.unreadable:
                        hint = nearest(name, self._file.pools)
                        self._report.error(at, f"{name!r} is not a pool", hint, key=True)
                continue
            declared = entry.model in self._file.models
            if not declared and "models" not in self._file.unreadable:
                self._report.unknown((*path, "model"), "a declared model", self._file.models)
            for place, name in enumerate(entry.pools):
                at = (*path, "pools", place)
                if not self._is_pool(at, name):
                    continue
                if declared and not self._can(name, entry.model):
                    self._does_not_serve(at, name, [entry.model])
                yield at, name, entry.model

    def _splits(self, rule: Read[schema.Rule]) -> None:
        """Neighbours with weights: some of them must get something."""
        if not self._sound(rule.path, "pools"):
            return
        entries = list(enumerate(rule.item.pools))
        split = False
        for weighted, run in itertools.groupby(entries, key=lambda each: isinstance(each[1], dict)):
            if not weighted:
                continue
            split = True
            places = list(run)
            weights = [part for _, entry in places if isinstance(entry, dict) for part in entry.values()]
            path = (*rule.path, "pools", places[0][0])
            if not any(weights):
                self._report.error(path, "no pool of this split gets anything: all weights are 0")
            elif len(weights) == 1:
                self._report.warn(path, "a weight has no effect unless a neighbour has one too")
        if not split and rule.item.sticky != "key" and self._sound(rule.path, "sticky"):
            self._report.warn((*rule.path, "sticky"), "has no effect unless `pools` has weights")

    def _mirror(self, rule: Read[schema.Rule], mirror: schema.Mirror, reaching: frozenset[str]) -> None:
        path = (*rule.path, "mirror", "pool")
        if not self._sound(rule.path, "mirror") or not self._is_pool(path, mirror.pool):
            return
        if reaching and not any(self._can(mirror.pool, model) for model in reaching):
            self._does_not_serve(path, mirror.pool, sorted(reaching))
        elif mirror.pool in _chain_names(rule.item):
            self._report.warn(path, f"pool {mirror.pool} is in this chain too: it computes answers twice")

    def _overload(
        self, steps: Sequence[schema.OverloadStep], owner: KeyPath, chain: Sequence[str] | None
    ) -> Iterator[str]:
        """Checks each step's own sense, and who can answer with its model; gives the pools that it names.

        `chain`: the rule's pools; None for a class, which has none.
        """
        for index, step in enumerate(steps):
            path = (*owner, "overload", index)
            if not self._report.sound(path):
                continue
            if step.when.queue_wait_ms is None and step.when.waiting is None:
                self._report.error((*path, "when"), "names no signal: queue_wait_ms, waiting, or both")
            if all(taken is None for taken in (step.max_tokens, step.n, step.priority_class, step.model)):
                self._report.error(path, "takes nothing: one or more of max_tokens, n, class, model")
            if step.model is None:
                if step.pools is not None:
                    message = "there is no `model` that they would serve"
                    self._report.error((*path, "pools"), message, key=True)
                continue
            if step.model not in self._file.models:
                if "models" not in self._file.unreadable:
                    self._report.unknown((*path, "model"), "a declared model", self._file.models)
                continue
            if step.pools is None:
                known = [name for name in chain or () if name in self._file.pools]
                if chain is None or not any(self._can(name, step.model) for name in known):
                    where = "a class has no chain" if chain is None else "no pool of the chain serves it"
                    self._report.value_error((*path, "model"), f"has no pools: {where}", "add `pools`")
                continue
            for place, name in enumerate(step.pools):
                at = (*path, "pools", place)
                if self._is_pool(at, name):
                    yield name
                    if not self._can(name, step.model):
                        self._does_not_serve(at, name, [step.model])

    def _is_pool(self, path: KeyPath, name: str) -> bool:
        if name in self._file.pools:
            return True
        if "pools" not in self._file.unreadable:
            self._report.unknown(path, "a pool", self._file.pools)
        return False

    def _can(self, pool: str, model: str) -> bool:
        """Whether a pool serves a model, as far as the file can be read."""
        read = self._file.pools[pool]
        return model in read.item.serves or not self._sound(read.path, "serves")

    def _does_not_serve(self, path: KeyPath, pool: str, models: Iterable[str]) -> None:
        others = sorted(name for name in self._file.pools if all(self._can(name, model) for model in models))
        message = f"pool {pool} does not serve {', '.join(models)}"
        self._report.error(path, message, f"pools that do: {', '.join(others)}" if others else "")

    def _repeats(self, hops: Iterable[tuple[KeyPath, str, str | None]], condition: When | None) -> None:
        own = condition.model[0] if condition is not None and len(condition.model) == 1 else None
        seen: set[tuple[str, str | None]] = set()
        for path, pool, other in hops:
            hop = (pool, other or own)
            if hop in seen:
                self._report.error(path, f"pool {pool} is in this chain already, for the same model")
            seen.add(hop)

    def _named(self, hops: Iterable[tuple[KeyPath, str, str | None]], models: tuple[str, ...]) -> None:
        for path, pool, other in hops:
            if other is None and (lacking := [model for model in models if not self._can(pool, model)]):
                self._does_not_serve(path, pool, lacking)

    def _catch_all(
        self,
        rule: Read[schema.Rule],
        hops: tuple[tuple[KeyPath, str, str | None], ...],
        reaching: frozenset[str],
    ) -> None:
        for path, pool, other in hops:
            if other is None and not any(self._can(pool, model) for model in reaching):
                message = f"pool {pool} serves none of the models that reach this rule"
                self._report.error(path, message, f"they are {', '.join(sorted(reaching))}")
        lost = [
            m for m in sorted(reaching) if not any(self._can(pool, other or m) for _, pool, other in hops)
        ]
        if lost and hops and self._sound(rule.path, "pools"):
            message = f"requests for {', '.join(lost)} reach this rule, but no pool of its chain serves them"
            self._report.warn((*rule.path, "pools"), message)

    def _unserved(self, served: set[str], untaken: frozenset[str]) -> None:
        for name, model in self._file.models.items():
            if name not in served:
                self._report.error(model.path, "no rule sends this model to a pool that serves it", key=True)
            elif name in untaken:
                self._report.warn(model.path, "some requests for this model match no rule, and get an error")


def _chain_names(rule: schema.Rule) -> Iterator[str]:
    for entry in rule.pools:
        if isinstance(entry, schema.OtherModel):
            yield from entry.pools
        elif isinstance(entry, dict):
            yield from entry
        else:
            yield entry


def served_name(own: str | schema.Adapted) -> str:
    """The model that an engine is asked for."""
    return own if isinstance(own, str) else own.model


def lora_of(own: schema.Adapted) -> Lora:
    adapter = own.adapter
    return Lora(name=adapter.name, id=adapter.id, path=adapter.path, scale=adapter.scale)


def _told_name(own: str | schema.Adapted) -> str:
    """The name by which an engine of OpenAI's dialect answers."""
    return own if isinstance(own, str) else own.adapter.name
