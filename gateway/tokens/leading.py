"""A prompt's leading blocks, as chained hashes: two prompts share as many as they begin alike.

Engines reuse what they computed for a prompt's beginning; the queue remembers by these hashes which replica
that was (`queueing/prefixes.py`). Token ids are not at hand, for counting answers with a length and mostly
remembers even that, so blocks are of characters, CHARACTERS for each token that a block should have; a prompt
that is given as token ids is cut into exact blocks of those. How many tokens a block is to be taken for
follows from the prompt's own length, whatever its language.

What belongs to the beginning of a chat: tools and what else the template is given, then the messages in
order. Of an image or a file its size and its ends. A prompt is read up to MOST characters, so the work is
bounded (docs/scheduling.md has the figures). Hashes are Python's own, keyed afresh in each process: nobody
can make two prompts meet, and nothing leaves the process.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from backends.contract import GenerateRequest
from gateway.tokens.prompts import LOOP_VALUES, is_text, prompts_in, token_ids

__all__ = ["CHARACTERS", "MOST", "NOTHING", "Leading", "leading"]

CHARACTERS = 4
"""Of a block, for each token that it should have."""
MOST = 256 * 1024
"""Characters of a prompt that are looked at, about 64k tokens of English; or a quarter as many token ids."""
_AHEAD = ("tools", "functions", "documents", "chat_template_kwargs", "reasoning_effort")
"""Parameters that chat templates write before the messages, or that change how they write those."""
_ENDS = 256
"""Characters at either end of an image or a file that stand for all of it."""


@dataclass(frozen=True, slots=True)
class Leading:
    """How a prompt begins."""

    blocks: tuple[int, ...] = ()
    """Each stands for the prompt up to its end."""
    tokens: int = 0
    """Of this prompt, per block; 0 where there is no block."""


NOTHING = Leading()


def leading(request: GenerateRequest, prompt_tokens: int, block_tokens: int, salt: object = None) -> Leading:
    """The whole blocks at the beginning of the prompt, each of about `block_tokens` tokens.

    Prompts of different `salt` share nothing: model, adapter, perhaps the tenant. Nothing of several prompts
    in one request, which have several beginnings.
    """
    if prompts_in(request) != 1:
        return NOTHING
    ids = token_ids(request)
    if ids is not None:
        data = array("I", ids[0][: MOST // CHARACTERS]).tobytes()
        size = block_tokens * array("I").itemsize
        starts = range(0, len(data) - size + 1, size)
        return Leading(tuple(_chained(salt, (data[at : at + size] for at in starts))), block_tokens)
    size = block_tokens * CHARACTERS
    text, characters = _opening(request)
    if len(text) < size:
        return NOTHING
    starts = range(0, len(text) - size + 1, size)
    blocks = tuple(_chained(salt, (text[at : at + size] for at in starts)))
    return Leading(blocks, max(1, prompt_tokens * size // characters) if characters else block_tokens)


def _chained(salt: object, blocks: Iterator[bytes] | Iterator[str]) -> Iterator[int]:
    running = hash(salt)
    for block in blocks:
        running = hash((running, block))
        yield running


def _opening(request: GenerateRequest) -> tuple[str, int]:
    """At most MOST characters of how the prompt begins, and about how many it has in all; 0 where it has more
    parts than are looked at here, on the event loop."""
    if request.messages is None:
        prompt = request.prompt
        text = prompt[0] if isinstance(prompt, list) else prompt
        return (text[:MOST], len(text)) if isinstance(text, str) else ("", 0)
    pieces: list[str] = []
    left, characters = MOST, 0
    for number, (name, value) in enumerate(_parts(request)):
        if number == LOOP_VALUES:
            characters = 0
            break
        size = len(value)
        characters += size
        if left > 0:
            pieces += ("\0", name, "\0", value if size <= left else value[:left])
            left -= size
    return "".join(pieces), characters


def _parts(request: GenerateRequest) -> Iterator[tuple[str, str]]:
    parameters = request.parameters
    for name in _AHEAD:
        if value := parameters.get(name):
            yield name, _written(value)
    for message in request.messages or ():
        yield "role", message["role"]
        for name, value in message.items():
            if isinstance(value, str):
                if name != "role":
                    yield name, value
            elif name == "content" and isinstance(value, list):
                for part in value:
                    yield ("text", part["text"]) if is_text(part) else ("part", _media(part))
            elif value is not None:
                yield name, _written(value)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _media(part: Mapping[str, Any]) -> str:
    """What tells one image from another, without reading all of it."""
    told = [str(part.get("type"))]
    for value in part.values():
        for text in value.values() if isinstance(value, dict) else (value,):
            if isinstance(text, str):
                told += (str(len(text)), text[:_ENDS], text[-_ENDS:])
    return "\0".join(told)
