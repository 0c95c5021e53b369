"""YAML as a tree whose every value knows its line, and environment variables in it.

Built from PyYAML's event stream, not from its loader, because a configuration wants other rules:

- Scalars follow YAML 1.2's core schema. `on`, `off`, `yes` and `no` are text, as is 0123; a key is always
  text. (`metrics: off` and the key `on:` of a rule would be booleans by YAML 1.1.)
- A key given twice is an error, and so are tags (`!!python/object`), merge keys and a second document.
- Aliases are allowed and bounded: the tree's size is counted as if every alias were written out.
- `${VAR}`, `${VAR:-default}` and `$$` are replaced in values after parsing, so that a variable can hold
  no YAML. A scalar that is one variable and nothing else becomes a `Variable`: its reader decides whether
  it is text or a number. So `in_flight: ${N:-64}` works, and an API key of digits stays text. (Within
  `{ }` and `[ ]` YAML wants quotes around a variable, so quotes say nothing about the type here.)
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

MAX_BYTES = 4 * 1024 * 1024
MAX_NODES = 100_000
MAX_DEPTH = 32

KeyPath: TypeAlias = tuple[str | int, ...]

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}|\{)")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
_WORDS: Mapping[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Counted from 1."""

    line: int
    column: int


class Unreadable(Exception):
    """No tree can be had from the text: a fault of its syntax or its size."""

    def __init__(self, position: Position, message: str) -> None:
        super().__init__(message)
        self.position = position
        self.message = message


class Variable(str):
    """The text of a scalar that is wholly one environment variable."""

    __slots__ = ()


# ----------------------------------------------------------------------------------------------- tree


@dataclass(slots=True, eq=False)
class Scalar:
    at: Position
    text: str
    plain: bool
    """Neither quoted nor a block scalar."""


@dataclass(slots=True, eq=False)
class Items:
    at: Position
    nodes: list["Node"] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Entry:
    at: Position
    """Of the key."""
    node: "Node"


@dataclass(slots=True, eq=False)
class Entries:
    at: Position
    entries: dict[str, Entry] = field(default_factory=dict)


Node: TypeAlias = Scalar | Items | Entries


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong in a tree that could be built all the same."""

    path: KeyPath
    position: Position
    message: str
    spoils: bool = False
    """The value at `path` is not what its author meant."""


@dataclass(frozen=True, slots=True)
class Document:
    root: Node
    faults: tuple[Fault, ...] = ()

    def node(self, path: KeyPath) -> Node | None:
        trail = list(self._trail(path))
        return trail[-1].node if len(trail) == len(path) + 1 else None

    def has(self, path: KeyPath) -> bool:
        return self.node(path) is not None

    def locate(self, path: KeyPath, *, key: bool = False) -> Position:
        """Where the value at `path` begins, or its key; of the nearest container that exists, if it does not.

        A container that begins on a later line than its key is placed at the key: that is its name.
        """
        last = list(self._trail(path))[-1]
        return last.at if key or not isinstance(last.node, Scalar) else last.node.at

    def has_variables(self, path: KeyPath) -> bool:
        node = self.node(path)
        return node is not None and any("$" in scalar.text for scalar in _scalars(node))

    def _trail(self, path: KeyPath) -> Iterator[Entry]:
        node = self.root
        yield Entry(node.at, node)
        for part in path:
            if isinstance(node, Entries) and isinstance(part, str) and part in node.entries:
                entry = node.entries[part]
            elif isinstance(node, Items) and isinstance(part, int) and part < len(node.nodes):
                entry = Entry(node.nodes[part].at, node.nodes[part])
            else:
                return
            node = entry.node
            yield entry


def _scalars(node: Node) -> Iterator[Scalar]:
    if isinstance(node, Scalar):
        yield node
    elif isinstance(node, Items):
        for item in node.nodes:
            yield from _scalars(item)
    else:
        for entry in node.entries.values():
            yield from _scalars(entry.node)


# -------------------------------------------------------------------------------------------- parsing


def parse(source: bytes) -> Document:
    """The tree of one YAML document. Raises Unreadable."""
    text = _decoded(source)
    try:
        return _Builder().build(text)
    except yaml.MarkedYAMLError as error:
        position, message = _explained(error, text)
        raise Unreadable(position, message) from None


def _decoded(source: bytes) -> str:
    start = Position(1, 1)
    if len(source) > MAX_BYTES:
        raise Unreadable(start, f"the file is larger than {MAX_BYTES // 1024**2} MiB")
    try:
        text = source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        raise Unreadable(Position(line, 1), "not UTF-8 text") from None
    if bad := _UNPRINTABLE.search(text):
        raise Unreadable(_position_of(text, bad.start()), f"control character U+{ord(bad[0]):04X}")
    return text


def _position(mark: Any) -> Position:
    """Of a PyYAML mark; its two classes, and their absence, share no type."""
    return Position(mark.line + 1, mark.column + 1)


def _position_of(text: str, index: int) -> Position:
    return Position(text.count("\n", 0, index) + 1, index - (text.rfind("\n", 0, index) + 1) + 1)


def _explained(error: yaml.MarkedYAMLError, text: str) -> tuple[Position, str]:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Position(1, 1), f"not YAML: {error.problem}"
    lines = text.splitlines() or [""]
    # The end of the file is told as the line after the last one.
    number = min(mark.line, len(lines) - 1)
    column = mark.column if number == mark.line else len(lines[number])
    line = lines[number]
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent or line[column : column + 1] == "\t":
        return Position(number + 1, line.index("\t") + 1), "a tab: YAML is indented with spaces"
    message = f"not YAML: {error.problem}" + (f" {error.context}" if error.context else "")
    if "flow" in message and "${" in line:
        message = "not YAML: within { } and [ ] a value with ${...} needs quotes around it"
    return Position(number + 1, column + 1), message


@dataclass(slots=True)
class _Open:
    """A container whose end has not come yet."""

    node: Items | Entries
    anchor: str | None
    size_before: int
    key: Scalar | None = None
    """Read, and its value not begun."""
    within: str = ""
    """The key whose value is being read, or was read last."""
    depth: int = 0
    """Levels below it, as far as seen."""


class _Builder:
    """Events to tree, without recursion and within bounds."""

    def __init__(self) -> None:
        self._root: Node | None = None
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Node, int, int]] = {}
        """Name -> node, its size with aliases written out, its depth."""
        self._size = 0
        self._faults: list[Fault] = []

    def build(self, text: str) -> Document:
        documents = 0
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            at = _position(event.start_mark)
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise Unreadable(at, "a second document; the file is one")
            elif isinstance(event, yaml.AliasEvent):
                self._alias(str(event.anchor), at)
            elif isinstance(event, yaml.NodeEvent):
                self._node(event, at)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()
        if self._root is None:
            raise Unreadable(Position(1, 1), "the file is empty")
        return Document(self._root, tuple(self._faults))

    def _node(self, event: yaml.NodeEvent, at: Position) -> None:
        self._grow(1, 0, at)
        if isinstance(event, yaml.ScalarEvent):
            scalar = Scalar(at, event.value, plain=event.implicit[0])
            if event.anchor:
                self._anchors[event.anchor] = (scalar, 1, 0)
            self._refuse_tag(event, at)
            self._place(scalar, at)
            return
        node = Entries(at) if isinstance(event, yaml.MappingStartEvent) else Items(at)
        self._refuse_tag(event, at)
        self._place(node, at)
        if event.anchor:
            self._anchors.pop(event.anchor, None)  # not to be used within itself
        self._open.append(_Open(node, event.anchor, self._size - 1))

    def _refuse_tag(self, event: Any, at: Position) -> None:
        if event.tag is not None:
            message = f"the tag {event.tag[:60]!r}; tags are not used here"
            self._faults.append(Fault(self._path(), at, message, spoils=True))

    def _close(self) -> None:
        closed = self._open.pop()
        if closed.anchor:
            self._anchors[closed.anchor] = (closed.node, self._size - closed.size_before, closed.depth)
        if self._open:
            self._open[-1].depth = max(self._open[-1].depth, closed.depth + 1)

    def _alias(self, name: str, at: Position) -> None:
        if name not in self._anchors:
            raise Unreadable(at, f"the alias *{name[:60]} has no anchor before it")
        node, size, depth = self._anchors[name]
        self._grow(size, depth, at)
        self._place(node, at)
        if self._open:
            self._open[-1].depth = max(self._open[-1].depth, depth + 1)

    def _grow(self, size: int, depth: int, at: Position) -> None:
        self._size += size
        if self._size > MAX_NODES:
            raise Unreadable(at, f"more than {MAX_NODES} values, counting those repeated by aliases")
        if len(self._open) + depth >= MAX_DEPTH:
            raise Unreadable(at, f"nested more than {MAX_DEPTH} levels deep")

    def _place(self, node: Node, at: Position) -> None:
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        if isinstance(parent.node, Items):
            parent.node.nodes.append(node)
        elif parent.key is None:
            if not isinstance(node, Scalar):
                raise Unreadable(at, "a key must be text")
            # An alias as a key would otherwise be placed where its anchor is.
            parent.key = Scalar(at, node.text, node.plain)
        else:
            self._enter(parent.node, parent.key, node)
            parent.within, parent.key = parent.key.text, None

    def _enter(self, parent: Entries, key: Scalar, node: Node) -> None:
        if key.plain and key.text == "<<":
            message = "merge keys (<<) are not supported; write the keys out"
            self._faults.append(Fault(self._path(), key.at, message))
        elif (first := parent.entries.get(key.text)) is not None:
            message = f"given twice; first in line {first.at.line}"
            self._faults.append(Fault(self._path(), key.at, message))
        else:
            parent.entries[key.text] = Entry(key.at, node)

    def _path(self) -> KeyPath:
        """Of what is being read at this moment."""
        parts: list[str | int] = []
        for opened in self._open:
            innermost = opened is self._open[-1]
            if isinstance(opened.node, Items):
                parts.append(len(opened.node.nodes) - (0 if innermost else 1))
            elif not innermost:
                parts.append(opened.within)
            elif opened.key is not None:
                parts.append(opened.key.text)
        return tuple(parts)


# --------------------------------------------------------------------------------------------- values


def resolved(text: str) -> Any:
    """What a plain scalar means by YAML 1.2's core schema; integers of at most 18 digits."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not _LEADING_ZERO.match(text) and not text.lstrip("-+").isdigit():
        return float(text)
    return text


def values(document: Document, environ: Mapping[str, str]) -> tuple[Any, tuple[Fault, ...]]:
    """The document as dicts, lists and scalars, variables replaced; and what is wrong with the variables."""
    faults: list[Fault] = []

    def value(node: Node, path: KeyPath) -> Any:
        if isinstance(node, Items):
            return [value(item, (*path, index)) for index, item in enumerate(node.nodes)]
        if isinstance(node, Entries):
            return {key: value(entry.node, (*path, key)) for key, entry in node.entries.items()}
        if "$" not in node.text:
            return resolved(node.text) if node.plain else node.text
        try:
            text = _interpolated(node.text, environ)
        except ValueError as error:
            faults.append(Fault(path, node.at, str(error), spoils=True))
            return node.text
        whole = _VARIABLE.fullmatch(node.text)
        return Variable(text) if whole and whole[1] else text

    return value(document.root, ()), tuple(faults)


def _interpolated(text: str, environ: Mapping[str, str]) -> str:
    """`${A:-b}` is b where A is unset or empty, as in a shell. Raises ValueError with a sentence."""
    unset: list[str] = []

    def replacement(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if name is None:
            if match[0] == "$$":
                return "$"
            raise ValueError("'${' begins no variable: write ${NAME}, ${NAME:-default}, or $$ for a dollar")
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            unset.append(name)
            return ""
        return environ[name]

    result = _VARIABLE.sub(replacement, text)
    if unset:
        names = ", ".join(dict.fromkeys(unset))
        raise ValueError(f"the environment variable {names} is not set, and there is no default")
    return result
