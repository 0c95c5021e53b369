"""`pools`: bounds, credentials, replicas that are not somebody else's."""

import re
from pathlib import Path

from gateway.config import schema
from gateway.config.checking.checks import Checks, absolute
from gateway.config.positions import KeyPath
from gateway.config.problems import nearest
from gateway.config.profiles import read_pace
from gateway.config.reading import Read
from gateway.config.snapshot import Pace

OWN_HEADERS = frozenset(
    {"connection", "content-length", "content-type", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Set by the transport or the adapter, never by configuration."""


_MOST_KEY_BYTES = 64 * 1024


class PoolChecks(Checks):
    def upstream(self, read: Read[schema.Pool]) -> str | None:
        upstream, path = read.item.upstream, (*read.path, "upstream")
        if upstream.ca_file is not None:
            self._exists((*path, "ca_file"), upstream.ca_file, "file")
        for header in upstream.headers:
            if header.lower() in OWN_HEADERS:
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

    def pace(self, read: Read[schema.Pool]) -> Pace | None:
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

    def check(self, read: Read[schema.Pool]) -> None:
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

    def _undeclared(self, pool: KeyPath, index: int, name: str) -> None:
        """`serves` names a model that does not exist: as a key, as an item of a list, or alone."""
        serves = (*pool, "serves")
        if self._report.has((*serves, name)):
            hint = nearest(name, self._file.models)
            self._report.error((*serves, name), f"{name!r} is not a declared model", hint, key=True)
        else:
            self._report.unknown(self._report.item(serves, index), "a declared model", self._file.models)

    def check_replicas(self) -> None:
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
