"""The engine kinds that the gateway knows: how each gets its adapter, and how each is recognised."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from backends import identifying
from backends.contract import Answers, EngineAdapter, HttpRequest, Identified
from backends.identifying import Recogniser
from backends.llamacpp import metadata as llamacpp
from backends.llamacpp.adapter import LlamacppAdapter, LlamacppOptions
from backends.openai import metadata as openai
from backends.openai.adapter import OpenAiAdapter
from backends.options import NoOptions, read_options
from backends.sglang import metadata as sglang
from backends.sglang.adapter import SglangAdapter, SglangOptions
from backends.tgi import metadata as tgi
from backends.tgi.adapter import TgiAdapter, TgiOptions
from backends.triton import metadata as triton
from backends.triton.adapter import TritonAdapter, TritonOptions
from backends.triton_openai import metadata as triton_openai
from backends.triton_openai.adapter import TritonOpenAiAdapter, TritonOpenAiOptions
from backends.trtllm import metadata as trtllm
from backends.trtllm.adapter import TrtllmAdapter, TrtllmOptions
from backends.vllm import metadata as vllm
from backends.vllm.adapter import VllmAdapter

__all__ = ["REGISTRY", "EngineKind", "Registry"]

Factory = Callable[[Mapping[str, Any]], EngineAdapter]
"""Options as configured -> adapter. Raises OptionError."""


class EngineKind(NamedTuple):
    adapter: Factory
    recogniser: Recogniser


class Registry:
    """A `contract.EngineRegistry` over a fixed set of kinds, recognised in their order."""

    def __init__(self, kinds: Mapping[str, EngineKind]) -> None:
        self._kinds = MappingProxyType(dict(kinds))
        self._recognisers = tuple(kind.recogniser for kind in self._kinds.values())

    def kinds(self) -> Sequence[str]:
        """The words that `engine:` may say."""
        return tuple(self._kinds)

    def adapter(self, kind: str, options: Mapping[str, Any]) -> EngineAdapter:
        """The adapter of `kind`. Raises OptionError for a bad option, KeyError for an unknown kind."""
        return self._kinds[kind].adapter(options)

    def questions(self, answers: Answers = MappingProxyType({})) -> Sequence[HttpRequest]:
        """What to ask an unknown upstream next (`contract.EngineRegistry.questions`)."""
        return identifying.questions(self._recognisers, answers)

    def identify(self, answers: Answers) -> Identified | None:
        """Which engine gives these answers; None if it is none that is known."""
        return identifying.identify(self._recognisers, answers)


# fmt: off
REGISTRY = Registry(
    {
        "trtllm": EngineKind(lambda options: TrtllmAdapter(read_options(TrtllmOptions, options)), trtllm),
        "triton": EngineKind(lambda options: TritonAdapter(read_options(TritonOptions, options)), triton),
        "tgi": EngineKind(lambda options: TgiAdapter(read_options(TgiOptions, options)), tgi),
        "sglang": EngineKind(lambda options: SglangAdapter(read_options(SglangOptions, options)), sglang),
        "llamacpp": EngineKind(
            lambda options: LlamacppAdapter(read_options(LlamacppOptions, options)), llamacpp
        ),
        "triton-openai": EngineKind(
            lambda options: TritonOpenAiAdapter(read_options(TritonOpenAiOptions, options)), triton_openai
        ),
        "vllm": EngineKind(lambda options: VllmAdapter(read_options(NoOptions, options)), vllm),
        "openai": EngineKind(lambda options: OpenAiAdapter(read_options(NoOptions, options)), openai),
    }
)
# fmt: on
