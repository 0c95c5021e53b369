"""Parts of a chat that are not text: which kind each is, and what it costs by configuration. Pure.

Engines turn an image into a number of tokens that depends on the model and on the picture's size. Nothing
here looks at a picture: each part costs what `media_tokens` says, and a count with such parts is not exact.

Types of parts: OpenAI's chat (`image_url`, `input_audio`, `file`) and responses (`input_image`,
`input_file`), and what vLLM, SGLang and TensorRT-LLM add (`video_url`, `audio_url`;
vllm/entrypoints/chat_utils.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from msgspec.structs import replace

from backends.contract import GenerateRequest
from gateway.call import PromptCount
from gateway.config.snapshot import MediaTokens, Model

__all__ = ["TEXT_ONLY", "cost_of", "kind_of", "with_media"]

Kind = Literal["image", "audio", "video", "file"]

KINDS: Mapping[str, Kind] = {
    "image_url": "image", "input_image": "image",
    "input_audio": "audio", "audio_url": "audio",
    "video_url": "video",
    "file": "file", "input_file": "file",
}  # fmt: skip

TEXT_ONLY = ", text parts only"
"""Ends the source of a count that leaves out parts."""


def kind_of(part: Mapping[str, Any]) -> Kind | None:
    """What a part of content is; None for text and what is not known."""
    kind = part.get("type")
    return KINDS.get(kind) if isinstance(kind, str) else None


def cost_of(part: Mapping[str, Any], costs: MediaTokens) -> int | None:
    """Tokens of one part; None where its kind has no configured cost."""
    kind = kind_of(part)
    if kind is None:
        return None
    if kind != "image":
        return {"audio": costs.audio, "video": costs.video, "file": costs.file}[kind]
    by_detail = {"low": costs.image_low, "high": costs.image_high}
    detail = _detail(part)
    found = by_detail.get(detail) if isinstance(detail, str) else None
    return costs.image if found is None else found


def with_media(count: PromptCount, model: Model, request: GenerateRequest) -> PromptCount:
    """`count`, which is of the text, with what the other parts of the messages cost."""
    if request.messages is None:
        return count
    costs = [cost_of(part, model.media_tokens) for part in _parts(request)]
    known = [cost for cost in costs if cost is not None]
    if not known:
        return count
    more = sum(known)
    source = f"{count.source.removesuffix(TEXT_ONLY)} + media"
    if len(known) < len(costs):
        source += ", not all of it"
    return replace(
        count, tokens=count.tokens + more, longest=count.longest + more, exact=False, source=source
    )


def _parts(request: GenerateRequest) -> Iterator[Mapping[str, Any]]:
    """Those that are not text."""
    for message in request.messages or ():
        if isinstance(content := message.get("content"), list):
            for part in content:
                if isinstance(part, Mapping) and not isinstance(part.get("text"), str):
                    yield part


def _detail(part: Mapping[str, Any]) -> object:
    """`detail` of an image: within `image_url` in chat, beside it in responses."""
    inner = part.get("image_url")
    return inner.get("detail") if isinstance(inner, Mapping) else part.get("detail")
