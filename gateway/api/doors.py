"""The bodies of native doors: what of them the gateway looks at. Pure.

Such a body goes to its engine as it came (`backends.doors`). Here it is read for what the gateway decides by:
the texts, so that they can be counted, as the chat or the prompts that an engine makes of them; and what must
not reach an engine, for which a 400 names the field:

    content by reference      URLs, file ids: no engine is sent to fetch something for a client
    what is kept by engines   `previous_response_id`, `conversation`, `background`: the next request may go to
                              another replica, which knows nothing of it
    what reaches past us      fields by which some engine lifts the bound, brings tokens that nobody counted,
                              chooses an adapter, or speaks to other machines (`backends.doors`)
    two forms in one body     `input` beside `messages`, or two names for one list: engines differ in which of
                              them they read

Nothing that an engine may read goes uncounted: of an item or a part all texts count, whatever their names,
but for the few that no engine renders (`_UNREAD`).

    embeddings   `input`, in OpenAI's four forms
    responses    `instructions`, `input`
    messages     `system`, `messages`
    rerank       `query` with each of `documents`
    score        each pair of `text_1` and `text_2` (also as `queries`, `documents` or `data_1`, `data_2`), or
                 `query` with each of `items`, as SGLang has it
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from backends.contract import Door, Prompt
from backends.doors import NOT_FOR_CLIENTS
from backends.mapping import Unfit
from gateway.errors import BadRequest

__all__ = ["NATIVE", "OUTPUT_BOUNDS", "Reading", "read_body_of"]

NATIVE: frozenset[Door] = frozenset(("embeddings", "responses", "messages", "rerank", "score"))

OUTPUT_BOUNDS: Mapping[Door, tuple[str, ...]] = {
    "chat": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens", "max_completion_tokens"),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}
"""The fields that bound the output, the stronger one last."""

MAX_ITEMS = 10_000
MAX_TEXTS = 2048
MAX_PAIRED = 8 * 1024 * 1024
"""Characters of all pairs together: the query counts with each document."""

_KEPT_BY_ENGINES = ("previous_response_id", "conversation", "background")
_PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"), ("query", "items"))
_FORMS: Mapping[Door, tuple[tuple[str, ...], ...]] = {
    "embeddings": (("input",), ("messages",)),
    "responses": (("input",),),
    "messages": (("messages",),),
    "rerank": (("query", "documents"),),
    "score": _PAIRS,
}
"""The fields that hold what is read, in each of the forms that a body may have."""
_CONTENT = frozenset(
    {"content", "prompt", "texts", *(field for forms in _FORMS.values() for form in forms for field in form)}
)
"""Fields that hold content at some door of some engine: llama.cpp reads `texts` before `documents`."""
_REPEATED = ("instruct", "instruction", "chat_template_kwargs")
"""What engines put into each prompt: SGLang's instruction to a reranker, the template's variables."""

_BY_REFERENCE = frozenset({"file_id", "file_url"})
_URLS = frozenset({"image_url", "audio_url", "video_url"})
_BASE64 = frozenset({"file_data", "input_audio"})
_MEDIA: Mapping[str, str] = {
    "input_image": "image_url", "image_url": "image_url", "audio_url": "audio_url", "video_url": "video_url",
    "input_audio": "input_audio", "input_file": "file_data", "file": "file",
    "image": "source", "document": "source",
    "image_embeds": "image_embeds", "audio_embeds": "audio_embeds", "image_pil": "image_pil",
}  # fmt: skip
"""Types of parts that are not text, and which field of theirs holds the content. `source` is Anthropic's; the
last are tensors and objects of vLLM's, which have no cost and so are refused, as in chats."""
_PAYLOAD = frozenset({"type", "media_type", "url", "data", "file_data", "detail", "format"})
"""Fields of what holds such content that are no text."""
_HOLDERS = frozenset((*_MEDIA.values(), "text"))
_TEXTS = frozenset({"text", "input_text", "output_text"})
_UNREAD = frozenset({"type", "role", "id", "status", "cache_control", "annotations", "logprobs"})
"""Fields of items and parts that no engine renders, or that count elsewhere (`role`)."""
_LISTS = frozenset({"content", "output", "summary"})
"""Fields of items and parts that hold parts."""
_FORMATS = ("float", "base64")
_ROLES = {"developer": "system", "tool": "user", "function": "user"}
_OF_THE_MODEL = frozenset({"function_call", "custom_tool_call", "reasoning", "web_search_call", "mcp_call"})
"""Items of a response's input without a role that the model itself has said."""


class Reading:
    """What is counted: a chat, or prompts."""

    __slots__ = ("as_chat", "messages", "prompt", "tools")

    def __init__(
        self,
        *,
        messages: list[dict[str, Any]] | None = None,
        prompt: Prompt | None = None,
        tools: list[Any] | None = None,
        as_chat: bool = True,
    ) -> None:
        self.messages = messages
        self.prompt = prompt
        self.tools = tools
        self.as_chat = as_chat
        """The engine makes of it what is not exactly this."""


def read_body_of(door: Door, given: Mapping[str, Any]) -> Reading:
    """What takes part in the prompt. Raises BadRequest, naming the field."""
    rules = NOT_FOR_CLIENTS[door]
    for field, value in given.items():
        if field in rules:
            try:
                rules[field].convert(field, value)
            except Unfit as unfit:
                raise BadRequest(f"{field!r} is not accepted: {unfit}", param=field) from None
    _check_form(door, given)
    match door:
        case "embeddings":
            return _embeddings(given)
        case "responses":
            return _responses(given)
        case "messages":
            return _messages(given)
        case "rerank":
            return _rerank(given)
        case _:
            return _score(given)


def _check_form(door: Door, given: Mapping[str, Any]) -> None:
    """One form of content and no part of another: what is read here is what every engine reads."""
    forms = _FORMS[door]
    form = next((form for form in forms if any(field in given for field in form)), forms[0])
    for field in given:
        if field in _CONTENT and field not in form:
            raise BadRequest(f"{field!r} is not accepted here beside {form[0]!r}.", param=field)


# --------------------------------------------------------------------------------------- lists of texts


def _embeddings(given: Mapping[str, Any]) -> Reading:
    if given.get("encoding_format", "float") not in _FORMATS:
        raise BadRequest(f"'encoding_format' is {' or '.join(_FORMATS)} here.", param="encoding_format")
    value = given.get("input")
    if "messages" in given:  # vLLM: one chat, of text or more
        turns = _turns(_listed(given, "messages"), "messages")
        return Reading(messages=_with_variables(turns, given), tools=_tools(given))
    if isinstance(value, str):
        return Reading(prompt=value, as_chat=False)
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value) or _token_ids(value):
            _check_number(value, "input", ids=isinstance(value[0], int))
            return Reading(prompt=value, as_chat=False)
        if all(isinstance(each, list) and each and _token_ids(each) for each in value):
            _check_number(value, "input")
            return Reading(prompt=value, as_chat=False)
    raise BadRequest(
        "'input' must be a string, a list of strings, a list of token ids, or a list of such lists.",
        param="input",
    )


def _rerank(given: Mapping[str, Any]) -> Reading:
    query = _texts(given, "query")
    documents = _texts(given, "documents")
    if len(query) != 1:
        raise BadRequest("'query' must be one text.", param="query")
    return Reading(prompt=_paired(given, query * len(documents), documents, "documents"))


def _score(given: Mapping[str, Any]) -> Reading:
    names = next((pair for pair in _PAIRS if pair[0] in given or pair[1] in given), _PAIRS[0])
    first, second = (_texts(given, name) for name in names)
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise BadRequest(f"'{names[0]}' must be one text, or as many as '{names[1]}' has.", param=names[0])
    return Reading(prompt=_paired(given, first, second, names[1]))


def _paired(given: Mapping[str, Any], first: list[str], second: list[str], field: str) -> list[str]:
    """The prompts: each pair, with what is repeated in all."""
    more = "".join(f" {text}" for text in _repeated(given))
    if sum(map(len, first)) + sum(map(len, second)) + len(more) * len(first) > MAX_PAIRED:
        raise BadRequest(f"The pairs have more than {MAX_PAIRED} characters together.", param=field)
    return [f"{one} {other}{more}" for one, other in zip(first, second, strict=True)]


def _repeated(given: Mapping[str, Any]) -> Iterator[str]:
    for value in map(given.get, _REPEATED):
        yield from _texts_in(value.values() if isinstance(value, dict) else [value])


def _texts(given: Mapping[str, Any], field: str) -> list[str]:
    """One text or several; also as objects with a `text`, as Cohere has documents, or of content parts."""
    value = given.get(field)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise BadRequest(f"'{field}' must not be empty.", param=field)
    _check_number(values, field)
    texts = []
    for index, each in enumerate(values):
        if isinstance(each, dict):
            _check_references(each, f"{field}[{index}]")
            texts.append(" ".join(_texts_in(each.values())))
        elif isinstance(each, str):
            texts.append(each)
        else:
            raise BadRequest(f"'{field}' must be a text, or a list of texts.", param=field)
    return texts


def _check_number(values: list[Any], field: str, *, ids: bool = False) -> None:
    if len(values) > MAX_TEXTS and not ids:
        raise BadRequest(f"'{field}' takes at most {MAX_TEXTS} texts.", param=field)


def _token_ids(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**31 for value in values)


# ------------------------------------------------------------------------------------------ conversations


def _responses(given: Mapping[str, Any]) -> Reading:
    for field in _KEPT_BY_ENGINES:
        if given.get(field):
            raise BadRequest(
                f"'{field}' is not supported: nothing is kept between requests. Send the whole input.",
                param=field,
            )
    turns: list[dict[str, Any]] = []
    if (instructions := given.get("instructions")) is not None:
        if not isinstance(instructions, str):
            raise BadRequest("'instructions' must be a string.", param="instructions")
        turns.append({"role": "system", "content": instructions})
    value = given.get("input")
    if isinstance(value, str):
        turns.append({"role": "user", "content": value})
    elif isinstance(value, list) and value:
        turns += _turns(value, "input")
    else:
        raise BadRequest("'input' must be a string, or a list with at least one item.", param="input")
    plain = isinstance(value, str) or _is_plain(value)
    return _conversation(turns, given, plain=plain)


def _messages(given: Mapping[str, Any]) -> Reading:
    messages = _listed(given, "messages")
    turns = _turns(messages, "messages")
    if (system := given.get("system")) is not None:
        turns.insert(0, {"role": "system", "content": _Parts().content(system, "system")})
    return _conversation(turns, given, plain=_is_plain(messages) and isinstance(system, str | None))


def _conversation(turns: list[dict[str, Any]], given: Mapping[str, Any], *, plain: bool) -> Reading:
    tools = _tools(given)
    as_chat = not plain or bool(tools) or bool(given.get("chat_template_kwargs"))
    return Reading(messages=_with_variables(turns, given), tools=tools, as_chat=as_chat)


def _with_variables(turns: list[dict[str, Any]], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns with the texts of the template's variables, wherever the template puts them."""
    content = turns[-1]["content"]
    for text in _repeated(given):
        if isinstance(content, str):
            content = f"{content}\n{text}"
        else:
            content = [*content, {"type": "text", "text": text}]
    turns[-1]["content"] = content
    return turns


def _listed(given: Mapping[str, Any], field: str) -> list[Any]:
    value = given.get(field)
    if not isinstance(value, list) or not value:
        raise BadRequest(f"'{field}' must be a list with at least one message.", param=field)
    return value


_PLAIN = frozenset({"role", "content", "type", "id", "status"})


def _is_plain(items: list[Any]) -> bool:
    """Whether each item is a role and a text: of that all engines make the same chat."""
    return all(
        isinstance(item.get("content"), str) and isinstance(item.get("role"), str) and item.keys() <= _PLAIN
        for item in items
    )


def _turns(items: list[Any], field: str) -> list[dict[str, Any]]:
    """Items as messages of a chat: what has no role (a call, its result) is its texts."""
    if len(items) > MAX_ITEMS:
        raise BadRequest(f"'{field}' takes at most {MAX_ITEMS} items.", param=field)
    turns: list[dict[str, Any]] = []
    reader = _Parts()
    for index, item in enumerate(items):
        where = f"{field}[{index}]"
        if not isinstance(item, dict):
            raise BadRequest("Each item must be an object.", param=where)
        role = item.get("role")
        if role is not None and not isinstance(role, str):
            raise BadRequest("A role must be a string.", param=f"{where}.role")
        content = reader.item(item, where)
        if role is None:
            role = "assistant" if item.get("type") in _OF_THE_MODEL else "user"
            last = turns[-1] if turns else {}
            if last.get("role") == role and isinstance(last["content"], str) and isinstance(content, str):
                last["content"] += "\n" + content  # templates want turns to alternate
                continue
        turns.append({"role": _ROLES.get(role, role), "content": content})
    return turns


Part = dict[str, Any]


class _Parts:
    """Items and parts of either dialect, as a text or as parts of a chat: all texts, and what is no text.

    How many parts a reader looks into is bounded for all the lists together that it reads.
    """

    def __init__(self) -> None:
        self._looked_into = 0

    def item(self, item: Mapping[str, Any], where: str) -> str | list[Part]:
        content = item.get("content")
        if isinstance(content, str) and item.keys() <= _PLAIN and item.get("type", "message") == "message":
            return content
        if not isinstance(content, str | list | None):
            raise BadRequest("Content must be a string or a list of parts.", param=f"{where}.content")
        found: list[Part] = []
        self._look_into(item, where, found)
        return _joined(found)

    def content(self, value: Any, where: str) -> str | list[Part]:
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise BadRequest("Content must be a string or a list of parts.", param=where)
        found: list[Part] = []
        self._read(value, where, found)
        return _joined(found)

    def _read(self, parts: list[Any], where: str, found: list[Part]) -> None:
        for index, part in enumerate(parts):
            # Nothing but a text: hostile bodies have tens of thousands of them.
            if (
                type(part) is dict
                and len(part) == 2
                and type(text := part.get("text")) is str
                and type(kind := part.get("type")) is str
                and kind in _TEXTS
            ):
                found.append({"type": "text", "text": text})
                continue
            if not isinstance(part, dict):
                raise BadRequest("A part of content must be an object.", param=f"{where}[{index}]")
            self._looked_into += 1
            if self._looked_into > MAX_ITEMS:
                raise BadRequest(f"At most {MAX_ITEMS} parts may be more than a text.", param=where)
            self._look_into(part, f"{where}[{index}]", found)

    def _look_into(self, part: Mapping[str, Any], where: str, found: list[Part]) -> None:
        """Whatever it calls itself: an engine may look at its type, or at the names of its fields."""
        kind = part.get("type")
        if kind is None:
            kind = next((name for name in part if name in _MEDIA), "")
        elif not isinstance(kind, str):
            raise BadRequest("A type must be a string.", param=f"{where}.type")
        read = {
            name: value
            for name, value in part.items()
            if value is not None and (name not in _UNREAD or (name == "id" and kind == "tool_use"))
        }
        lists = {name: read[name] for name in _LISTS & read.keys() if isinstance(read[name], list)}
        if (holder := _MEDIA.get(kind)) is not None:
            if any(name != holder and name in read for name in _HOLDERS):
                raise BadRequest(f"A part of type {kind} holds nothing but {holder!r}.", param=where)
            self._media(kind, part, where, found)
        free = lists.keys() | ({"input"} if kind == "tool_use" else set())  # named as their function likes
        _check_references({"type": kind, **{name: read[name] for name in read if name not in free}}, where)
        for name, value in read.items():
            if name in lists:
                self._read(value, f"{where}.{name}", found)
            elif holder is None or (name != holder and name != "detail"):
                found += ({"type": "text", "text": text} for text in _texts_in([value]))

    def _media(self, kind: str, part: Mapping[str, Any], where: str, found: list[Part]) -> None:
        """What a part holds that is no text, and the texts beside it; a document may be nothing but text."""
        held, payload = part.get(_MEDIA[kind]), _PAYLOAD
        if _MEDIA[kind] != "source":
            found.append({"type": kind, "detail": part.get("detail")})
        elif not isinstance(held, dict) or held.get("type") not in ("base64", "text", "content"):
            raise BadRequest(
                "Content must be in the request itself: base64 or text.", param=f"{where}.source"
            )
        elif held["type"] == "base64":
            found.append({"type": "image_url" if kind == "image" else "file"})  # media_tokens knows them so
        else:
            payload = frozenset({"type", "media_type"})
        for name, value in held.items() if isinstance(held, dict) else ():
            if name == "content" and isinstance(value, list):
                self._read(value, f"{where}.source.content", found)
            elif not (name in payload and isinstance(value, str)):
                found += ({"type": "text", "text": text} for text in _texts_in([value]))


def _joined(parts: list[Part]) -> str | list[Part]:
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _texts_in(values: Iterable[Any]) -> Iterator[str]:
    """Texts, and what else an engine would write as JSON: arguments, results, variables."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list) and value:
            yield msgspec.json.encode(value).decode()


def _check_references(value: Mapping[str, Any], where: str) -> None:
    """Nothing by reference, however deep."""
    left: list[Any] = [value]
    while left:
        item = left.pop()
        if not isinstance(item, dict):
            left += [each for each in item if isinstance(each, dict | list)]
            continue
        kind = item.get("type")
        if kind == "item_reference" or (kind == "url" and "url" in item):
            raise BadRequest("Content must be in the request itself, not a reference.", param=where)
        for name, inner in item.items():
            if name in _BY_REFERENCE and inner:
                raise BadRequest(f"'{name}' is not supported: nothing is fetched for a client.", param=where)
            if name in _URLS and not _is_inline(inner, "url"):
                raise BadRequest(
                    "Content must be in the request itself: a data: URL.", param=f"{where}.{name}"
                )
            if name in _BASE64 and not _is_inline(inner, "data", base64=True):
                raise BadRequest("Content must be in the request itself: base64.", param=f"{where}.{name}")
        left += [each for each in item.values() if isinstance(each, dict | list)]


def _is_inline(holder: Any, field: str, *, base64: bool = False) -> bool:
    """Whether what holds content holds nothing that could be fetched."""
    content = holder.get(field) if isinstance(holder, dict) else holder
    if isinstance(content, str):
        return content.startswith("data:") or (base64 and ":" not in content)
    return content is None or isinstance(content, dict)  # a schema's property may be called so


def _tools(given: Mapping[str, Any]) -> list[Any] | None:
    """Tools as a chat template renders them: OpenAI's shape of a chat."""
    tools = given.get("tools")
    if tools is None:
        return None
    if not isinstance(tools, list) or len(tools) > 512 or not all(isinstance(tool, dict) for tool in tools):
        raise BadRequest("'tools' must be a list of at most 512 objects.", param="tools")
    for index, tool in enumerate(tools):
        if tool.get("server_url"):
            raise BadRequest(
                "'server_url' is not supported: nothing is fetched for a client.", param=f"tools[{index}]"
            )
    return [_tool(tool) for tool in tools] or None


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """What else it has counts with its description."""
    schema = next((name for name in ("input_schema", "parameters") if isinstance(tool.get(name), dict)), "")
    known = ("type", "name", "description", "cache_control", schema)
    others = _texts_in(value for name, value in tool.items() if name not in known)
    function = {
        "name": str(tool.get("name") or tool.get("type") or "tool"),
        "description": "\n".join([str(tool.get("description") or ""), *others]),
        "parameters": tool.get(schema, {}),
    }
    return {"type": "function", "function": function}
