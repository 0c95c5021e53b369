"""How a simulated server is set up, beside its kind, profile and tokenizer."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Notice", "ServerOptions", "TextMode", "Vocabulary"]

Notice = Literal["at_once", "poll", "next_token", "next_write", "quiet_second", "realistic"]
TextMode = Literal["delta", "cumulative"]
Vocabulary = Literal["classic", "llmapi"]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a start script would say. An option that a kind does not have is ignored by it."""

    model: str = "headgate-mini"
    """The model's name. openai, vllm and triton-openai answer to this one only, trtllm, tgi and sglang to
    any, llamacpp to any and with this one; Triton's models have names of their own."""
    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port, told by `url`."""
    max_input_tokens: int = 16_384
    """Longer prompts are refused as the real engine refuses them."""
    max_total_tokens: int = 16_384
    """Prompt and output together: what the engine tells as its context, where it tells one."""
    max_concurrent_requests: int = 128
    """TGI: requests beyond this are refused at once."""
    max_queue_size: int | None = None
    """openai, vllm, sglang, triton, triton-openai: waiting sequences beyond this are refused; None: no
    bound."""
    seed: int = 0
    """Seed of what is said; engines of one model share it."""
    mean_tokens: float = 120.0
    """Mean length of an answer that `max_tokens` does not cut."""
    spread: float = 0.6
    """Sigma of the logarithm of that length."""
    fragments: float = 0.0
    """Share of places where a character is said byte by byte, 0 to 1."""
    says: str | None = None
    """What every answer says, word for word; None: a hash of its context."""
    spells: bool = False
    """Whether words that are given (`says`, or all that a schema allows) are said byte by byte."""
    reasoning_tokens: int = 0
    """vllm, sglang, llamacpp, trtllm, chats: so many tokens at the start of an answer are its reasoning."""
    notice: Notice = "at_once"
    """How a closed connection is noticed. `at_once`: the moment it closes. `poll`: at the next tick of a
    one-second clock that started with the request (divided by the profile's speed). `next_token`: when
    the engine has made another token. `next_write`: when the server writes next, so only at the end
    where nothing is streamed. `quiet_second`: a stream at its next token, a whole answer after a second in
    which nobody was sent a token. `realistic`: trtllm and sglang poll, TGI by token, llamacpp by the quiet
    second, Triton by write if at all, openai and vllm at once."""
    vocabulary: Vocabulary = "classic"
    """Triton: the tensors it knows: `classic` (models `ensemble`, `tensorrt_llm_bls`) or `llmapi` (model
    `tensorrt_llm`)."""
    attentive: bool = False
    """Triton, classic: whether its models look whether a request was cancelled. TensorRT-LLM's do not: with
    `notice: realistic` what they have begun, or queued, they compute to its end, streamed or not."""
    decoupled: bool = True
    """Triton: whether its models may stream."""
    text_mode: TextMode = "delta"
    """Triton, classic: what an event of `tensorrt_llm_bls` holds (`accumulate_tokens` false or true)."""
    echo_input: bool = True
    """Triton, classic: whether an answer that is not streamed repeats the prompt where the request says
    nothing (the `exclude_input_in_output` parameter of the model being false, as it is by default)."""
    stream_interval: int = 1
    """trtllm: tokens per event."""
    keep_alive_s: float | None = None
    """TGI, vllm, llamacpp: seconds of silence before a comment line. 0: never; None: 15, never, 30."""
    idle_metrics_s: float = 2.0
    """trtllm: how long `GET /metrics` waits for an iteration before it answers `[]`."""
    metrics: bool = True
    """sglang, llamacpp, and trtllm's `/prometheus/metrics`: whether it was started with metrics."""
    loading_s: float = 0.0
    """sglang, llamacpp: so many seconds after its start it is not ready and says so."""
    sleeps: bool = False
    """vllm: whether it was started with its sleep mode, and the routes for it; triton: whether models are
    loaded and unloaded by request (`--model-control-mode=explicit`)."""
    asleep: bool = False
    """It `sleeps`, and does so when it starts."""
    wake_s: float = 0.0
    """Seconds that it takes to wake, or to load a model."""
    prefix_cache: int = 0
    """Tokens of past prompts that it keeps for prompts that begin alike; 0: none."""
    tells_cached: bool = False
    """vllm, sglang: whether its usage tells what of a prompt was cached (`--enable-prompt-tokens-details`,
    `--enable-cache-report`); trtllm and llamacpp do, the others do not."""
    adapters: tuple[str, ...] = ()
    """Its LoRA adapters: known by name, or (llamacpp, trtllm, triton) by their place here, from 0. Each
    speaks differently."""
    priorities: bool = False
    """vllm: whether it was started with `--scheduling-policy priority`; else a priority is an error."""
    tool_calling: bool = False
    """triton-openai: started with --tool-call-parser."""
    version: str | None = None
    """What the version endpoint says, where there is one; None: the release that was read for the dialect."""
