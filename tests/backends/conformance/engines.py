"""The engines that the suite runs against, one row each, and what clients may see differ between them.

A new adapter is in the whole suite with a row of `ENGINES`; a kind of the registry that has none fails it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

__all__ = ["ENGINES", "Difference", "Ends", "Engine", "tables"]


class Difference(Enum):
    """What a client may notice of the engine behind the gateway: all there is. The value is what docs say."""

    NO_LOGPROBS = "`logprobs` are a 400 that names the parameter: none are read from the engine's answers"
    NO_COMPLETION_LOGPROBS = "on completions, `logprobs` are a 400 that names the parameter"
    NO_TOOLS = "`tools` are a 400 that names the parameter: the engine takes plain text"
    NO_REASONING = "what a model thinks is part of `content`: the engine does not tell it apart"
    COUNTED_HERE = (
        "`usage.completion_tokens` is counted by the gateway: events of a stream, else a quarter of the "
        "bytes, within the bound"
    )
    WHOLE_LENGTH_UNTOLD = (
        "`finish_reason` is `stop` also where the length ended an answer that is not streamed"
    )
    BROKEN_CHARACTERS = (
        "in streams a character that the model makes of several tokens is `\\ufffd` signs, for the engine "
        "decodes each token alone"
    )


class Ends(Enum):
    """What ends a stream well; all else is a cut, and an error to the client. The value is what docs say."""

    MARKER = (
        "`[DONE]`, or the end of the body once every choice has its `finish_reason`",
        "the end of the body before that, an error event, a reason `abort`, `error`, `cancelled`, `timeout`",
    )
    GENERATED_TEXT = (
        "the event that holds `generated_text`",
        "the end of the body before that, an error event",
    )
    BODY = (
        "the end of the body behind at least one event: nothing else marks it",
        "the end of the connection instead, an error event, a body without an event",
    )
    REASON = (
        "the end of the body behind a `finish_reason` of `stop` or `length`",
        "the end of the body before that, an error event, a reason `cancelled`, `timeout`",
    )

    @property
    def well(self) -> str:
        return self.value[0]

    @property
    def cut(self) -> str:
        return self.value[1]


@dataclass(frozen=True)
class Engine:
    """One way in which the gateway can be set before an engine."""

    kind: str
    title: str
    """As docs/engines.md names it."""
    ends: Ends = Ends.MARKER
    served: str = "m"
    """The name that the engine wants."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the adapter."""
    server: Mapping[str, Any] = field(default_factory=dict)
    """Of the simulated engine."""
    differs: frozenset[Difference] = frozenset()


D = Difference
_TEXT_ONLY = frozenset({D.NO_LOGPROBS, D.NO_TOOLS, D.NO_REASONING})

ENGINES: Mapping[str, Engine] = MappingProxyType(
    {
        "openai": Engine("openai", "`openai`"),
        "trtllm": Engine("trtllm", "`trtllm`"),
        "trtllm-interval": Engine("trtllm", "`trtllm`", server={"stream_interval": 3}),
        "vllm": Engine("vllm", "`vllm`"),
        "sglang": Engine("sglang", "`sglang`"),
        "llamacpp": Engine("llamacpp", "`llamacpp`"),
        "tgi": Engine("tgi", "`tgi`", Ends.GENERATED_TEXT, "tgi", differs=_TEXT_ONLY),
        "tgi-messages": Engine(
            "tgi", "`tgi`, messages", Ends.MARKER, "tgi", {"api": "messages"},
            differs=frozenset({D.NO_COMPLETION_LOGPROBS, D.NO_REASONING}),
        ),
        "triton-ensemble": Engine(
            "triton", "`triton`, ensemble", Ends.BODY, "ensemble", differs=_TEXT_ONLY | {D.BROKEN_CHARACTERS}
        ),
        "triton-bls": Engine(
            "triton", "`triton`, BLS with `accumulate_tokens`", Ends.BODY, "tensorrt_llm_bls",
            {"text_mode": "cumulative"}, {"text_mode": "cumulative"}, _TEXT_ONLY,
        ),
        "triton-auto": Engine(
            "triton", "`triton`, BLS with `accumulate_tokens`", Ends.BODY, "tensorrt_llm_bls",
            server={"text_mode": "cumulative"}, differs=_TEXT_ONLY,
        ),
        "triton-llmapi": Engine(
            "triton", "`triton`, llmapi", Ends.REASON, "tensorrt_llm",
            {"vocabulary": "llmapi"}, {"vocabulary": "llmapi"}, _TEXT_ONLY | {D.COUNTED_HERE},
        ),
        "triton-openai": Engine(
            "triton-openai", "`triton-openai`", options={"tool_calling": True}, server={"tool_calling": True},
            differs=frozenset({D.NO_LOGPROBS, D.NO_REASONING, D.COUNTED_HERE, D.WHOLE_LENGTH_UNTOLD}),
        ),
    }
)  # fmt: skip


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def tables() -> dict[str, list[str]]:
    """What docs/engines.md shows of all this, by the name in its markers."""
    titles = {engine.title: engine for engine in ENGINES.values()}
    differences = [
        [
            difference.value,
            " · ".join(title for title, engine in titles.items() if difference in engine.differs),
        ]
        for difference in Difference
    ]
    ends = [
        [" · ".join(title for title, engine in titles.items() if engine.ends is each), each.well, each.cut]
        for each in Ends
    ]
    return {
        "differences": _table(["what a client may notice", "engines"], differences),
        "ends": _table(["engine", "a stream has ended well with", "a cut is"], ends),
    }
