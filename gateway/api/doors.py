"""The bodies of native doors: what of them the gateway looks at. Pure.

Such a body goes to its engine as it came (`backends.doors`). Here it is read for what the gateway decides by:
the texts, so that they can be counted, as the chat or the prompts that an engine makes of them; and what must
not reach an engine, for which a 400 names the field:

    content by reference      URLs, file ids: no engine is sent to fetch something for a client
    what is kept by engines   `previous_response_id`, `conversation`, `background`: the next request may go to
                              another replica, which knows nothing of it
    what reaches past us      fields by which some engine lifts the bound, brings tokens that nobody counted,
                              chooses an adapter, or speaks to other machines (`NOT_FOR_CLIENTS`)

    embeddings   `input`, in OpenAI's four forms
    responses    `instructions`, `input`
    messages     `system`, `messages`
    rerank       `query` with each of `documents`
    score        each pair of `text_1` and `text_2` (also as `queries`, `documents` or `data_1`, `data_2`), or
                 `query` with each of `items`, as SGLang has it
"""

from collections.abc import Iterator, Mapping
from typing import Any

from backends.contract import Door, Prompt
from gateway.errors import BadRequest

__all__ = ["NATIVE", "NOT_FOR_CLIENTS", "OUTPUT_BOUNDS", "Reading", "read_body_of"]

NATIVE: frozenset[Door] = frozenset(("embeddings", "responses", "messages", "rerank", "score"))

OUTPUT_BOUNDS: Mapping[Door, tuple[str, ...]] = {
    "chat": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens", "max_completion_tokens"),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}
"""The fields that bound the output, the stronger one last."""

_BOUND = "it would lift the bound on the output"
_CHOICES = "there is one answer here"
_TOKENS = "it would bring tokens past the prompt that is counted"
_ADAPTER = "adapters are models here, and reached by their names"
_ENGINE = "it reaches into the engine"

NOT_FOR_CLIENTS: Mapping[str, str] = {
    "n_predict": _BOUND, "max_new_tokens": _BOUND,
    "n": _CHOICES, "n_cmpl": _CHOICES, "best_of": _CHOICES,
    "input_ids": _TOKENS, "input_embeds": _TOKENS, "prompt_embeds": _TOKENS, "prompt_token_ids": _TOKENS,
    "embed_overrides": _TOKENS, "previous_input_messages": _TOKENS,
    "lora": _ADAPTER, "lora_path": _ADAPTER, "lora_request": _ADAPTER,
    "request_id": "the gateway names requests: send the header x-request-id",
    "rid": "the gateway names requests: send the header x-request-id",
    **dict.fromkeys(
        (
            "beam_width", "bootstrap_host", "bootstrap_port", "bootstrap_room", "custom_logit_processor",
            "custom_params", "data_parallel_rank", "disagg_prefill_dp_rank", "disaggregated_params",
            "early_stopping", "ec_transfer_params", "guided_decoding_backend", "id_slot",
            "kv_transfer_params", "length_penalty", "logits_processors", "n_discard", "n_keep", "num_beams",
            "prompt_logprobs", "response_fields", "return_context_logits",
            "return_generation_logits", "return_hidden_states", "return_progress",
            "return_routed_experts", "routed_dp_rank", "session_params", "slot_id", "sse_ping_interval",
            "timings_per_token", "use_beam_search", "verbose",
        ),
        _ENGINE,
    ),
}  # fmt: skip
"""Fields of a native body that no client may send, and why. Chats have a rule for each field, by engine; a
body that is passed on would carry these to whichever engine acts on them. An `n` of 1 asks for nothing."""

MAX_ITEMS = 10_000
MAX_TEXTS = 2048
MAX_PAIRED = 8 * 1024 * 1024
"""Characters of all pairs together: the query counts with each document."""

_KEPT_BY_ENGINES = ("previous_response_id", "conversation", "background")
_PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"), ("query", "items"))
_BY_REFERENCE = frozenset({"file_id", "file_url"})
_URLS = frozenset({"image_url", "audio_url", "video_url"})
_MEDIA = frozenset(
    {"input_image", "input_file", "input_audio", "image_url", "audio_url", "video_url", "file"}
)
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
    for field in given.keys() & NOT_FOR_CLIENTS.keys():
        if NOT_FOR_CLIENTS[field] is not _CHOICES or given[field] != 1:
            raise BadRequest(f"{field!r} is not accepted: {NOT_FOR_CLIENTS[field]}.", param=field)
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


# --------------------------------------------------------------------------------------- lists of texts


def _embeddings(given: Mapping[str, Any]) -> Reading:
    if given.get("encoding_format", "float") not in _FORMATS:
        raise BadRequest(f"'encoding_format' is {' or '.join(_FORMATS)} here.", param="encoding_format")
    value = given.get("input")
    if value is None and isinstance(given.get("messages"), list):  # vLLM: one chat, of text or more
        return Reading(messages=_turns(given["messages"], "messages"))
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
    return Reading(prompt=_paired(query * len(documents), documents, "documents"))


def _score(given: Mapping[str, Any]) -> Reading:
    names = next((pair for pair in _PAIRS if pair[1] in given), _PAIRS[0])
    first, second = (_texts(given, name) for name in names)
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise BadRequest(f"'{names[0]}' must be one text, or as many as '{names[1]}' has.", param=names[0])
    return Reading(prompt=_paired(first, second, names[1]))


def _paired(first: list[str], second: list[str], field: str) -> list[str]:
    if sum(map(len, first)) + sum(map(len, second)) > MAX_PAIRED:
        raise BadRequest(f"The pairs have more than {MAX_PAIRED} characters together.", param=field)
    return [f"{one} {other}" for one, other in zip(first, second, strict=True)]


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
            texts.append(" ".join(_strings(each)))
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
    tools = _tools(given)
    return Reading(messages=turns, tools=tools, as_chat=not plain or bool(tools))


def _messages(given: Mapping[str, Any]) -> Reading:
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a list with at least one message.", param="messages")
    turns = _turns(messages, "messages")
    if (system := given.get("system")) is not None:
        turns.insert(0, {"role": "system", "content": _content(system, "system")})
    plain = _is_plain(messages) and isinstance(system, str | None)
    tools = _tools(given)
    return Reading(messages=turns, tools=tools, as_chat=not plain or bool(tools))


def _is_plain(items: list[Any]) -> bool:
    """Whether each item is a role and a text: of that all engines make the same chat."""
    return all(isinstance(item.get("content"), str) and isinstance(item.get("role"), str) for item in items)


def _turns(items: list[Any], field: str) -> list[dict[str, Any]]:
    """Items as messages of a chat: what has no content of its own (a call, its result) is all its texts."""
    if len(items) > MAX_ITEMS:
        raise BadRequest(f"'{field}' takes at most {MAX_ITEMS} items.", param=field)
    turns: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        where = f"{field}[{index}]"
        if not isinstance(item, dict):
            raise BadRequest("Each item must be an object.", param=where)
        role = item.get("role")
        if role is not None and not isinstance(role, str):
            raise BadRequest("A role must be a string.", param=f"{where}.role")
        if "content" in item and item["content"] is not None:
            content = _content(item["content"], f"{where}.content")
        else:
            _check_references(item, where)
            content = "\n".join(_strings(item))
        if role is None:
            role = "assistant" if item.get("type") in _OF_THE_MODEL else "user"
            last = turns[-1] if turns else {}
            if last.get("role") == role and isinstance(last["content"], str) and isinstance(content, str):
                last["content"] += "\n" + content  # templates want turns to alternate
                continue
        turns.append({"role": _ROLES.get(role, role), "content": content})
    return turns


def _content(value: Any, where: str) -> str | list[dict[str, Any]]:
    """Content as a chat has it: a text, or parts of text and of what is not text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRequest("Content must be a string or a list of parts.", param=where)
    parts: list[dict[str, Any]] = []
    others = 0
    for index, part in enumerate(value):
        if type(part) is dict and type(part.get("text")) is str:  # hostile bodies have tens of thousands
            parts.append({"type": "text", "text": part["text"]})
            continue
        others += 1
        if others > MAX_ITEMS:
            raise BadRequest(f"Content takes at most {MAX_ITEMS} parts that are not text.", param=where)
        if not isinstance(part, dict):
            raise BadRequest("A part of content must be an object.", param=f"{where}[{index}]")
        parts += _parts(part, f"{where}[{index}]")
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _parts(part: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """One part of either dialect that has no text of its own, as parts of a chat."""
    kind = part.get("type")
    if kind in ("image", "document"):  # Anthropic
        source = part.get("source")
        if not isinstance(source, dict) or source.get("type") not in ("base64", "text", "content"):
            raise BadRequest(
                "Content must be in the request itself: base64 or text.", param=f"{where}.source"
            )
        if source["type"] == "base64":
            yield {"type": "image_url" if kind == "image" else "file"}  # media_tokens knows them so
            return
    if kind == "tool_result" and isinstance(part.get("content"), list):
        content = _content(part["content"], f"{where}.content")
        yield from [{"type": "text", "text": content}] if isinstance(content, str) else content
        return
    if kind != "tool_use":  # arguments may be called as they like
        _check_references(part, where)
    if kind in _MEDIA:
        yield {"type": kind, "detail": part.get("detail")}
    else:
        yield {"type": "text", "text": "\n".join(_strings(part))}


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
            url = inner.get("url") if isinstance(inner, dict) else inner
            if name in _URLS and isinstance(url, str) and not url.startswith("data:"):
                raise BadRequest(
                    "Content must be in the request itself: a data: URL.", param=f"{where}.{name}"
                )
        left += [each for each in item.values() if isinstance(each, dict | list)]


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
    parameters = tool.get("input_schema", tool.get("parameters"))
    function = {
        "name": str(tool.get("name") or tool.get("type") or "tool"),
        "description": str(tool.get("description") or ""),
        "parameters": parameters if isinstance(parameters, dict) else {},
    }
    return {"type": "function", "function": function}


def _strings(value: Any) -> Iterator[str]:
    """All texts in a value but the words of the protocol."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            left += [each for name, each in reversed(item.items()) if name not in ("type", "role", "id")]
        elif isinstance(item, list):
            left += reversed(item)
