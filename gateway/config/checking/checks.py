"""What every check has at hand: the file as it was read, the report, and the questions all of them ask."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from backends.contract import EngineRegistry
from gateway.config.positions import KeyPath
from gateway.config.problems import Report
from gateway.config.reading import File


def absolute(base: Path, written: str) -> str:
    """A path of the file, which counts from the file's directory. Links are not followed: they may move."""
    return os.path.abspath(base / written)


class Checks:
    """The checks of one section of the file: a class of its own for each."""

    def __init__(self, file: File, report: Report, registry: EngineRegistry, base: Path) -> None:
        self._file = file
        self._report = report
        self._registry = registry
        self._base = base

    @classmethod
    def like(cls, other: "Checks") -> Self:
        """The checks of another section of the same file."""
        return cls(other._file, other._report, other._registry, other._base)

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
