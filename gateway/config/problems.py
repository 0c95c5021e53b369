"""What is wrong with a configuration, said so that its author can mend it.

Every problem has a line and a column, the path of its key, one sentence and, where there is one, the
nearest valid name. No message ever holds a secret: what stands under `upstream` or `keys` is not shown at
all, and a value made of environment variables is shown as it is written in the file, not as it expands.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gateway.config.positions import Document, Items, KeyPath, Position, Scalar

_SECRET_KEYS = frozenset({"upstream", "keys", "api_key", "headers", "hash", "redis_url"})
_BARE = re.compile(r"[\w*./:@+-]{1,64}")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of the file. Lines and columns count from 1; line 0 means the file as a whole."""

    line: int
    column: int
    path: str
    """E.g. `pools.short-pool.replicas[0].url`; empty for the file as a whole."""
    message: str
    hint: str = ""
    source: str = "routes.yaml"

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}:{self.column}" if self.line else self.source
        path = f"{self.path}: " if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}: {path}{self.message}{hint}"


class ConfigInvalid(Exception):
    """The file cannot be used. `problems` has all that is wrong with it, in the order of its lines."""

    def __init__(self, problems: Iterable[Problem], warnings: Iterable[Problem] = ()) -> None:
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        super().__init__("\n".join(map(str, self.problems)))


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint that helps who wrote `name`: the choice that looks like it, else all of a few, else nothing."""
    known = sorted(set(choices))
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {close[0]!r}?"
    if 0 < len(known) <= 8:
        return f"valid: {', '.join(known)}"
    return ""


def is_secret(path: KeyPath) -> bool:
    """Whether the value at `path`, or anything under it, may be a credential."""
    return not _SECRET_KEYS.isdisjoint(path)


class Report:
    """Collects problems of one document and gives each its place."""

    def __init__(self, source: str, document: Document) -> None:
        self._source = source
        self._document = document
        self._spoiled: set[KeyPath] = set()
        self._above_spoiled: set[KeyPath] = set()
        self._errors: list[Problem] = []
        self._warnings: list[Problem] = []

    @property
    def failed(self) -> bool:
        return bool(self._errors)

    @property
    def errors(self) -> tuple[Problem, ...]:
        return _ordered(self._errors)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return _ordered(self._warnings)

    def spoil(self, path: KeyPath, message: str, hint: str = "", at: Position | None = None) -> None:
        """An error that leaves no usable value at `path`: further errors there would only repeat it."""
        self.error(path, message, hint, at=at)
        self._spoiled.add(path)
        self._above_spoiled.update(_prefixes(path))

    def sound(self, path: KeyPath) -> bool:
        """Whether nothing at, above or under `path` is spoiled."""
        return path not in self._above_spoiled and self._spoiled.isdisjoint(_prefixes(path))

    def error(
        self, path: KeyPath, message: str, hint: str = "", *, key: bool = False, at: Position | None = None
    ) -> None:
        """`key`: the fault lies in the key at the end of `path`, not in its value."""
        if self._spoiled.isdisjoint(_prefixes(path)):
            self._errors.append(self._problem(path, message, hint, key=key, at=at))

    def value_error(self, path: KeyPath, predicate: str, hint: str = "") -> None:
        """An error that begins with the offending value: `'tgii' is not an engine kind`."""
        self.error(path, f"{self.shown(path)} {predicate}", hint)

    def unknown(self, path: KeyPath, what: str, choices: Iterable[str]) -> None:
        """The scalar at `path` names something that does not exist."""
        node = self._document.node(path)
        name = node.text if isinstance(node, Scalar) else ""
        self.value_error(path, f"is not {what}", nearest(name, choices))

    def warn(self, path: KeyPath, message: str, hint: str = "") -> None:
        self._warnings.append(self._problem(path, message, hint, key=False))

    def shown(self, path: KeyPath) -> str:
        """The value at `path` as its author wrote it, or a stand-in where that may be a secret."""
        node = self._document.node(path)
        if not isinstance(node, Scalar):
            return "this"
        if is_secret(path) or "@" in node.text:
            return "the value"
        text = node.text if len(node.text) <= _SHOWN else node.text[:_SHOWN] + "..."
        return text if node.plain and text and _is_number(text) else repr(text)

    def line(self, path: KeyPath) -> int:
        """Where the value at `path` is, for messages that speak of two places."""
        return self._document.locate(path).line

    def has(self, path: KeyPath) -> bool:
        """Whether the file has a value there."""
        return self._document.has(path)

    def item(self, path: KeyPath, index: int) -> KeyPath:
        """The path of an item of a list, where the file may also have one bare value instead of the list."""
        return (*path, index) if isinstance(self._document.node(path), Items) else path

    def written_with_variables(self, path: KeyPath) -> bool:
        """Whether anything at or under `path` came, or may have come, from the environment."""
        return self._document.has_variables(path)

    def _problem(
        self, path: KeyPath, message: str, hint: str, *, key: bool, at: Position | None = None
    ) -> Problem:
        at = at or self._document.locate(path, key=key)
        return Problem(at.line, at.column, written(path), message, hint, self._source)


def _prefixes(path: KeyPath) -> Iterator[KeyPath]:
    """The path itself and everything above it."""
    return (path[:length] for length in range(len(path) + 1))


def written(path: KeyPath) -> str:
    """`("pools", "p", "replicas", 0)` -> `pools.p.replicas[0]`; cut where keys themselves may be secret."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        name = part if _BARE.fullmatch(part) else repr(part[:_SHOWN])
        text += f".{name}" if text else name
        if part == "headers":
            break
    return text


def _is_number(text: str) -> bool:
    return text.lstrip("-+").replace(".", "", 1).isdigit()


def _ordered(problems: list[Problem]) -> tuple[Problem, ...]:
    """By line; the same words in the same place (one anchor used twice) only once."""
    unique = dict.fromkeys(problems)
    return tuple(sorted(unique, key=lambda problem: (problem.line, problem.column)))
