"""llama.cpp's server on the wire: OpenAI's shapes, any model name answered. Its keys: `parameters.py`.

Keep-alive is a bare `:`. It queues without bound (tools/server/README.md): the pool's `in_flight` is the only
limit.

After each stream it closes the connection, though it announces keep-alive. On the completions route it tells
log probabilities in the chat's form (`content`), which clients of that route do not know.

LoRA adapters are loaded at its start and known by number; a request says which of them, and how strongly, and
those that it does not name are off. Without a word all are on, unless the server was started with
`--lora-init-without-apply`.
"""

from collections.abc import Mapping
from typing import Any

from backends.contract import Delta, GenerateRequest, HttpRequest, Lora
from backends.decoding import Classify
from backends.llamacpp import errors
from backends.openai_dialect import OpenAiDecoder, choices_asked, openai_request

__all__ = ["asked_adapter", "decoder", "encode", "lora_fault"]


def encode(request: GenerateRequest, parameters: Mapping[str, Any]) -> HttpRequest:
    body = dict(parameters)
    if request.lora is not None:
        body |= asked_adapter(request.model, request.lora)
    return openai_request(request, body)


def asked_adapter(model: str, lora: Lora) -> Mapping[str, Any]:
    """The fields that ask for an adapter."""
    return {"model": model, "lora": [{"id": lora.id, "scale": lora.scale}]}


def lora_fault(lora: Lora) -> str | None:
    if lora.path is not None:
        return "is loaded at this engine's start: no path"
    return "needs an id for this engine" if lora.id is None else None


def decoder(request: GenerateRequest) -> OpenAiDecoder:
    decoder = CompletionsDecoder if request.messages is None else OpenAiDecoder
    return decoder(choices_asked(request), errors.TABLE)


class CompletionsDecoder(OpenAiDecoder):
    """Log probabilities in the older form of OpenAI's completions: one list each, not one object a token."""

    def __init__(self, choices: int, classify: Classify) -> None:
        super().__init__(choices, classify)
        self._said: dict[int, int] = {}  # characters of each choice so far

    def delta_of(self, choice: Any, position: int, *, streamed: bool) -> Delta | None:
        delta = super().delta_of(choice, position, streamed=streamed)
        if delta is not None and isinstance(delta.logprobs, dict):
            entries = delta.logprobs.get("content")
            if isinstance(entries, list):
                delta.logprobs = self._lists(delta.index, entries)
        return delta

    def _lists(self, index: int, entries: list[Any]) -> dict[str, Any]:
        tokens, values, tops, offsets = [], [], [], []
        for entry in entries:
            if not isinstance(entry, dict):
                continue
            token = str(entry.get("token", ""))
            tokens.append(token)
            values.append(entry.get("logprob"))
            others = entry.get("top_logprobs") or ()
            tops.append(
                {str(each.get("token", "")): each.get("logprob") for each in others if isinstance(each, dict)}
            )
            offsets.append(self._said.get(index, 0))
            self._said[index] = offsets[-1] + len(token)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
