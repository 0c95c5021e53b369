"""Requests to OpenAI's routes: their schemas, what is read of them, and how they are refused.

Unknown keys are ignored. Servers with other manners derive their own schemas.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Ask", "ChatRequest", "CompletionRequest", "ConversationRequest", "Refused", "StreamOptions"]


class Refused(Exception):
    """The request is answered with an error before anything is generated."""

    def __init__(self, status: int, body: Any, *, late: bool = False) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.late = late
        """In a stream the status line is out already when the server sees it; see `refuse_late`."""


@dataclass(slots=True)
class Ask:
    """A request to a chat or completions route, read."""

    id: str
    chat: bool
    model: str
    prompts: list[list[int]]
    created: int = field(default_factory=lambda: int(time.time()))
    max_tokens: int | None = None
    n: int = 1
    stop: Sequence[str] = ()
    stop_ids: frozenset[int] = frozenset()
    keep_stop: bool = False
    seed: int | None = None
    ignore_eos: bool = False
    simulated_tokens: int | None = None
    adapter: str | None = None
    """The LoRA adapter that it asks for."""
    cache_salt: tuple[str, ...] | str | None = None
    cached: int = 0
    """Prompt tokens that were cached."""
    stream: bool = False
    usage: bool = False
    continuous_usage: bool = False
    logprobs: bool = False
    echo: bool = False
    answer: str | None = None
    """All that a constraint lets the model say."""
    calls: str | None = None
    """The function that it calls; `answer` is the arguments."""


class StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class CommonRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")
    model: str | None = None
    n: int | None = Field(1, ge=1)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    response_format: dict[str, Any] | None = None
    cache_salt: list[str] | str | None = None
    simulated_tokens: int | None = Field(None, ge=1)
    """No real engine has it: how long the answer is to be, whatever `max_tokens` would allow. So a replayed
    trace gets its answers without telling the gateway their lengths."""


class ConversationRequest(CommonRequest):
    """A chat without a bound on its output, which has many names."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    logprobs: bool | None = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None


class ChatRequest(ConversationRequest):
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class CompletionRequest(CommonRequest):
    max_tokens: int | None = Field(None, ge=1)
    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = None
    echo: bool | None = False
