"""The texts of a request: what of it takes part in a prompt, and how much there is.

Requests may hold a hundred thousand little things. What runs on the event loop looks at so many and no more.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from backends.contract import GenerateRequest
from gateway.call import PromptCount

__all__ = [
    "LOOP_VALUES",
    "count_of",
    "has_media",
    "is_text",
    "little",
    "opening",
    "plain_texts",
    "prompt_texts",
    "prompts_in",
    "size_of",
    "size_within",
    "strings_in",
    "texts_in",
    "token_ids",
]

_PLAIN = frozenset({"tools", "functions", "documents", "chat_template_kwargs"})
"""Parameters without which rendering a chat is cheap."""
_AT_ONCE_ITEMS = 256
"""Of what may be rendered and looked up on the event loop."""
LOOP_VALUES = 8192
"""Messages, parts, fields and so on of a request up to which the event loop looks at all of its texts."""


def count_of(counts: list[int], *, exact: bool, source: str) -> PromptCount:
    return PromptCount(
        tokens=sum(counts), exact=exact, source=source, longest=max(counts, default=0), prompts=len(counts)
    )


def prompts_in(request: GenerateRequest) -> int:
    prompt = request.prompt
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def token_ids(request: GenerateRequest) -> list[list[int]] | None:
    """The prompts of a request that gives token ids; None for any other."""
    prompt = request.prompt
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], str):
        return None
    # The first element told which of the unions it is.
    return cast("list[list[int]]", prompt if isinstance(prompt[0], list) else [prompt])


def prompt_texts(request: GenerateRequest) -> list[str]:
    prompt = request.prompt
    if isinstance(prompt, list):
        return [text for text in prompt if isinstance(text, str)]
    return [] if prompt is None else [prompt]


def texts_in(request: GenerateRequest) -> Iterable[str]:
    """Every text that takes part in a prompt. Of parts of content only the text: no data URLs."""
    plain = plain_texts(request)
    return _texts_in(request) if plain is None else plain


def plain_texts(request: GenerateRequest) -> list[str] | None:
    """The texts of a single prompt, or of a short chat of nothing but texts: what most requests are. None
    for anything else."""
    if request.messages is None:
        return [request.prompt] if isinstance(request.prompt, str) else None
    if len(request.messages) > _AT_ONCE_ITEMS // 2 or "tools" in request.parameters:
        return None
    texts: list[str] = []
    for message in request.messages:
        texts += message.values()
    if len(texts) > _AT_ONCE_ITEMS or not set(map(type, texts)) <= {str}:
        return None
    return texts


def _texts_in(request: GenerateRequest) -> Iterator[str]:
    yield from prompt_texts(request)
    for message in request.messages or ():
        for name, value in message.items():
            if isinstance(value, str):
                yield value
            elif name == "content" and isinstance(value, list):
                yield from (part["text"] for part in value if is_text(part))
            else:
                yield from strings_in(value)
    if request.messages is not None:
        yield from strings_in(request.parameters.get("tools"))


def strings_in(value: Any) -> Iterator[str]:
    """Keys and values, however deep. Not recursive: each level would cost every string in it a step."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict | Mapping):
            left += reversed([each for pair in item.items() for each in pair])
        elif isinstance(item, list | tuple):
            left += reversed(item)


def size_within(request: GenerateRequest, values: int) -> int | None:
    """`size_of`, looking at no more than about `values` values; None where there are more.

    Hostile requests are made of hundreds of thousands of little things, and each of them costs the event loop
    a step."""
    left = values - (len(request.prompt) if isinstance(request.prompt, list) else 0)
    within: list[Any] = []
    for message in request.messages or ():
        left -= len(message)
        for value in message.values():
            if isinstance(value, list | dict):
                left -= len(value)
                within.append(value)
        if left < 0:
            return None
    within.append(request.parameters.get("tools"))
    while within and left >= 0:
        item = within.pop()
        if isinstance(item, list | dict):
            left -= len(item)
            if left >= 0:
                within += item.values() if isinstance(item, dict) else item
    return None if left < 0 else size_of(request)


def little(request: GenerateRequest, characters: int) -> int | None:
    """Characters of a single prompt, or of a chat of plain texts without tools; None where there are more
    than `characters`, or anything else. Reads no further than it must."""
    if request.messages is None:
        single = isinstance(request.prompt, str) and len(request.prompt) <= characters
        return len(cast("str", request.prompt)) if single else None
    parameters = request.parameters
    if len(request.messages) * 2 > _AT_ONCE_ITEMS or not _PLAIN.isdisjoint(parameters):
        return None
    size = items = 0
    for message in request.messages:
        items += len(message)
        for value in message.values():
            if not isinstance(value, str):
                return None
            size += len(value)
        if size > characters or items > _AT_ONCE_ITEMS:
            return None
    return size


def opening(request: GenerateRequest) -> int:
    """A digest of how a chat begins. Two that are alike cost a rendering too many, nothing else."""
    first = [message.get("content") for message in (request.messages or ())[:2]]
    return hash(tuple((text[:512], len(text)) for text in first if isinstance(text, str)))


def size_of(request: GenerateRequest) -> int:
    """Characters, not bytes: counting bytes would read all of the text on the event loop."""
    return sum(map(len, texts_in(request)))


def is_text(part: Any) -> bool:
    # A dict nearly always, and isinstance of an abstract class takes ten times as long.
    return isinstance(part, dict | Mapping) and isinstance(part.get("text"), str)


def has_media(request: GenerateRequest) -> bool:
    return any(
        not is_text(part)
        for message in request.messages or ()
        if isinstance(content := message.get("content"), list)
        for part in content
    )
