"""The engine kinds that the gateway knows, and how each gets its adapter."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from backends.contract import EngineAdapter
from backends.openai.adapter import OpenAiAdapter
from backends.options import NoOptions, read_options
from backends.tgi.adapter import TgiAdapter, TgiOptions
from backends.triton.adapter import TritonAdapter, TritonOptions
from backends.trtllm.adapter import TrtllmAdapter

__all__ = ["REGISTRY", "Registry"]

Factory = Callable[[Mapping[str, Any]], EngineAdapter]
"""Options as configured -> adapter. Raises OptionError."""


class Registry:
    """A `contract.EngineRegistry` over a fixed set of kinds."""

    def __init__(self, factories: Mapping[str, Factory]) -> None:
        self._factories = MappingProxyType(dict(factories))

    def kinds(self) -> Sequence[str]:
        """The words that `engine:` may say."""
        return tuple(self._factories)

    def adapter(self, kind: str, options: Mapping[str, Any]) -> EngineAdapter:
        """The adapter of `kind`. Raises OptionError for a bad option, KeyError for an unknown kind."""
        return self._factories[kind](options)


REGISTRY = Registry(
    {
        "trtllm": lambda options: TrtllmAdapter(read_options(NoOptions, options)),
        "triton": lambda options: TritonAdapter(read_options(TritonOptions, options)),
        "tgi": lambda options: TgiAdapter(read_options(TgiOptions, options)),
        "openai": lambda options: OpenAiAdapter(read_options(NoOptions, options)),
    }
)
