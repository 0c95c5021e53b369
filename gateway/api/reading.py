"""Reading: a JSON body -> a `Call`. Every refusal is a 400 that names the field.

Known OpenAI fields are checked here so that an engine never sees a value that could crash it. Fields that
OpenAI does not define are kept for engines that take them. Fields that would let a client choose its own
route or template are refused.
"""

import gc
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from backends.contract import GenerateRequest, NativeRequest
from gateway.api.doors import NATIVE, OUTPUT_BOUNDS, read_body_of
from gateway.call import PROMPT_FIELDS, STREAMING, Call, Dialect
from gateway.config.snapshot import MediaTokens, Model, PriorityClass, Snapshot, Tenant
from gateway.errors import BadRequest, ModelNotFound, UnsupportedByEngine
from gateway.tokens.media import cost_of

MAX_DEPTH = 64
MAX_CONTAINERS = 250_000
"""Objects and lists in a body, roughly: `{` and `[` are counted, those inside strings too. Decoding them is
work on the event loop, about 10 ms for that many."""
MAX_FIELDS = 1000
MAX_PROMPTS = 2048
MAX_MESSAGES = 10_000
MAX_CHOICES = 16
MAX_STOPS = 16
MAX_TEXT = 1024
"""Characters of a stop string, a `user` and the like."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

ROUTING_FIELDS = frozenset(
    {
        "api_base", "api_key", "api_version", "backend", "backends", "base_url", "custom_llm_provider",
        "deployment_id", "engine", "pool", "provider", "replica", "upstream", "upstream_url",
    }
)  # fmt: skip
"""Refused: where a request goes is for the gateway's rules to say (LiteLLM CVE-2024-6587)."""

TEMPLATE_FIELDS = frozenset({"chat_template"})
"""Refused: a template is a program (vLLM GHSA-6fvq-23cw-5628)."""

READ_FIELDS = frozenset(
    {
        "model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n",
        "stop", "service_tier", "priority",
    }
)  # fmt: skip
"""Fields that the gateway itself acts on; all others travel as `GenerateRequest.parameters`."""

KEPT_FIELDS = ("prompt_cache_key", "cache_salt")
"""Fields of a native body that say where its prompt may be found computed; the others are its engine's."""

_MEDIA: Mapping[str, str] = {
    "image_url": "url", "video_url": "url", "audio_url": "url", "input_audio": "data", "file": "file_data",
}  # fmt: skip
"""Types of parts that are not text, and which field of theirs holds the content."""

TIER_CLASSES: Mapping[str, PriorityClass] = {
    "priority": PriorityClass.interactive,
    "fast": PriorityClass.interactive,
    "flex": PriorityClass.batch,
}


_WHOLE_CHARACTERS = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?:[^dD]|[dD][0-7])|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F])*+", re.DOTALL
)
"""JSON up to the first escape that is half a character."""
_HALF = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def decode_body(body: bytes) -> dict[str, Any]:
    """The body as a JSON object, or BadRequest."""
    if len(body) > MAX_CONTAINERS and body.count(b"{") + body.count(b"[") > MAX_CONTAINERS:
        raise BadRequest(f"The body has more than {MAX_CONTAINERS} objects and lists.")
    try:
        value = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        text = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadRequest(f"The body is not valid JSON: {_half_a_character(body) or text}.") from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.")
    if len(value) > MAX_FIELDS:
        raise BadRequest(f"The body has more than {MAX_FIELDS} fields.")
    return value


def _half_a_character(body: bytes) -> str | None:
    """What a JSON decoder says of a lone surrogate misleads (`truncated`); this says it. None where there is
    none."""
    whole = _WHOLE_CHARACTERS.match(body)
    half = _HALF.match(body, whole.end()) if whole is not None else None
    if half is None:
        return None
    escape = half[0].decode()
    return f"{escape} at byte {half.start()} is half of a surrogate pair, without its other half"


def _decode(body: bytes) -> Any:
    """JSON without the garbage collector, which would look at every new object again and again: seven times
    the time for a body of many small lists."""
    paused = len(body) > 65536 and gc.isenabled()
    if paused:
        gc.disable()
    try:
        return msgspec.json.decode(body)
    finally:
        if paused:
            gc.enable()


def read_call(
    body: Mapping[str, Any],
    *,
    dialect: Dialect,
    call_id: str,
    snapshot: Snapshot,
    tenant: Tenant,
    key_id: str | None,
    received: float,
    deadline: float | None = None,
    stop_at: float | None = None,
    traceparent: str | None = None,
    degradable: bool = True,
    size: int = 0,
    session_id: str | None = None,
) -> Call:
    """A checked, frozen Call. Raises BadRequest or ModelNotFound."""
    for field in body:
        if field in ROUTING_FIELDS:
            raise BadRequest(f"{field!r} is not accepted: the gateway chooses the engine.", param=field)
        if field in TEMPLATE_FIELDS:
            raise BadRequest(f"{field!r} is not accepted: the model's own template is used.", param=field)
    given = {name: value for name, value in body.items() if value is not None}
    asked_model = _model_name(given)
    model = permitted_model(snapshot, tenant, asked_model)
    if dialect not in NATIVE:
        for name, value in model.defaults.items():
            given.setdefault(name, value)
    stream = _checked(given, "stream", _boolean, default=False)
    parameters = {name: value for name, value in given.items() if name not in READ_FIELDS}
    for name, value in parameters.items():
        CHECKS[dialect].get(name, _any)(value, name)
        _check_depth(value, name)
    _check_template_arguments(parameters)
    as_chat = False
    if dialect in NATIVE:
        request, as_chat = _native_request(given, dialect, call_id, stream, model.media_tokens)
    else:
        if "top_logprobs" in parameters and not parameters.get("logprobs"):
            raise BadRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
        choices = _checked(given, "n", _integers(1, MAX_CHOICES), default=1)
        if parameters.get("best_of", choices) < choices:
            raise BadRequest(f"'best_of' must be at least 'n', which is {choices}.", param="best_of")
        request = GenerateRequest(
            request_id=call_id,
            model="",
            stream=stream,
            messages=_messages(given, model.media_tokens) if dialect == "chat" else None,
            prompt=_prompt(given) if dialect == "completions" else None,
            n=choices,
            stop=_stops(given.get("stop")),
            parameters=parameters,
        )
    return Call(
        id=call_id,
        dialect=dialect,
        tenant=tenant,
        key_id=key_id,
        priority_class=_priority_class(given, tenant),
        model=model,
        asked_model=asked_model,
        request=request,
        stream=stream,
        include_usage=_include_usage(given, stream),
        as_chat=as_chat,
        asked_max_tokens=_asked_max_tokens(given, dialect),
        received=received,
        deadline=deadline,
        stop_at=stop_at,
        traceparent=traceparent,
        degradable=degradable and tenant.degrade,
        size=size,
        session_id=session_id,
        asked_priority=_checked(given, "priority", _integers(-1000, 1000), default=0),
    )


def permitted_model(snapshot: Snapshot, tenant: Tenant, asked: str) -> Model:
    """The model of that name, if there is one and the tenant may use it; else ModelNotFound alike."""
    model = snapshot.model(asked)
    if model is None or not tenant.allow.model(asked if model.name == "*" else model.name):
        raise ModelNotFound(
            f"The model {asked[:100]!r} does not exist here. GET /v1/models lists what does.", param="model"
        )
    return model


# ------------------------------------------------------------------------------------- the known fields


def _model_name(given: Mapping[str, Any]) -> str:
    name = given.get("model")
    if not isinstance(name, str) or not name:
        raise BadRequest("'model' must name a model. GET /v1/models lists them.", param="model")
    if "\x00" in name or len(name) > MAX_TEXT:
        raise BadRequest(f"'model' has at most {MAX_TEXT} characters and no NUL.", param="model")
    return name


def _native_request(
    given: Mapping[str, Any], dialect: Dialect, call_id: str, stream: bool, media: MediaTokens
) -> tuple[GenerateRequest, bool]:
    """What is counted of a body that goes to its engine as it came, and whether that is only nearly so."""
    if stream and dialect not in STREAMING:
        raise BadRequest("There is nothing to stream here.", param="stream")
    _check_depth(given.get("messages"), "messages")
    reading = read_body_of(dialect, given)
    for message in reading.messages or ():
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] != "text" and cost_of(part, media) is None:
                raise UnsupportedByEngine(
                    f"Content parts of type {part['type']} are not supported: only text is.",
                    param=PROMPT_FIELDS[dialect],
                )
    parameters = {name: given[name] for name in KEPT_FIELDS if name in given}
    if reading.tools is not None:
        parameters["tools"] = reading.tools
    request = GenerateRequest(
        request_id=call_id,
        model="",
        stream=stream,
        messages=reading.messages,
        prompt=reading.prompt,
        parameters=parameters,
        native=NativeRequest(door=dialect, body=b"{}"),
    )
    return request, reading.as_chat


def _asked_max_tokens(given: Mapping[str, Any], dialect: Dialect) -> int | None:
    """Of two names, the newer one wins where both are given. 0 where nothing is generated."""
    asked: int | None = None if dialect in STREAMING else 0
    for name in OUTPUT_BOUNDS.get(dialect, ()):
        if name in given:
            asked = _integer(given[name], name, 1, 2**31 - 1)
    return asked


def _priority_class(given: Mapping[str, Any], tenant: Tenant) -> PriorityClass:
    tier = given.get("service_tier")
    if tier is not None and not isinstance(tier, str):
        raise BadRequest("'service_tier' must be a string.", param="service_tier")
    return min(TIER_CLASSES.get(tier or "", tenant.priority_class), tenant.max_class)


def _include_usage(given: Mapping[str, Any], stream: bool) -> bool:
    options = given.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise BadRequest("'stream_options' must be an object.", param="stream_options")
    if not stream:
        raise BadRequest("'stream_options' needs 'stream': true.", param="stream_options")
    wanted = options.get("include_usage")
    return False if wanted is None else _boolean(wanted, "stream_options.include_usage")


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise BadRequest("'stop' must be a string or a list of strings.", param="stop")
    if len(stops) > MAX_STOPS:
        raise BadRequest(f"'stop' takes at most {MAX_STOPS} strings.", param="stop")
    if any(len(stop) > MAX_TEXT for stop in stops):
        raise BadRequest(f"A stop string has at most {MAX_TEXT} characters.", param="stop")
    return tuple(stop for stop in stops if stop)


def _messages(given: Mapping[str, Any], media: MediaTokens) -> list[dict[str, Any]]:
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a list with at least one message.", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise BadRequest(f"'messages' takes at most {MAX_MESSAGES} messages.", param="messages")
    for i, message in enumerate(messages):
        _check_message(message, f"messages[{i}]", media)
    return messages


def _check_message(message: object, where: str, media: MediaTokens) -> None:
    if not isinstance(message, dict):
        raise BadRequest("A message must be an object.", param=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRequest(f"A message's role is one of {', '.join(sorted(ROLES))}.", param=f"{where}.role")
    content = message.get("content")
    if isinstance(content, list):
        for j, part in enumerate(content):
            # Hostile bodies have tens of thousands of them, on the event loop.
            if type(part) is dict and part.get("type") == "text" and type(part.get("text")) is str:
                continue
            _check_part(part, f"{where}.content[{j}]", media)
    elif content is None:
        if role != "assistant" or not (message.get("tool_calls") or message.get("function_call")):
            raise BadRequest(
                "'content' may be null only in an assistant's message with tool calls.",
                param=f"{where}.content",
            )
    elif not isinstance(content, str):
        raise BadRequest("'content' must be a string or a list of parts.", param=f"{where}.content")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(each, dict) for each in calls)):
        raise BadRequest("'tool_calls' must be a list of objects.", param=f"{where}.tool_calls")
    _check_depth(message, where)


def _check_part(part: object, where: str, media: MediaTokens) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise BadRequest("A content part must be an object with a 'type'.", param=where)
    if part["type"] in _MEDIA and cost_of(part, media) is not None:
        _check_media(part, where)
        return
    if part["type"] not in ("text", "refusal"):
        raise UnsupportedByEngine(
            f"Content parts of type {part['type'][:40]!r} are not supported: only text is.", param=where
        )
    if not isinstance(part.get(part["type"]), str):
        raise BadRequest(f"A {part['type']} part needs a string {part['type']!r}.", param=where)


def _check_media(part: Mapping[str, Any], where: str) -> None:
    """A part that is not text holds its content itself: no engine is sent to fetch something for a client."""
    kind = part["type"]
    holder, field = part.get(kind), _MEDIA[kind]
    content = holder.get(field) if isinstance(holder, dict) else None
    if not isinstance(content, str) or (field == "url" and not content.startswith("data:")):
        what = "a data: URL" if field == "url" else "base64"
        raise BadRequest(f"A {kind} part needs {kind}.{field}: {what}.", param=where)
    if "text" in part or any(other in part for other in _MEDIA if other != kind):
        raise BadRequest(f"A {kind} part holds nothing but {kind}.", param=where)


def _prompt(given: Mapping[str, Any]) -> Any:
    """OpenAI's four forms: text, texts, token ids, lists of token ids."""
    prompt = given.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and len(prompt) > 0:
        if len(prompt) > MAX_PROMPTS and not isinstance(prompt[0], int):
            raise BadRequest(f"'prompt' takes at most {MAX_PROMPTS} prompts.", param="prompt")
        if all(isinstance(each, str) for each in prompt) or _token_ids(prompt):
            return prompt
        if all(isinstance(each, list) and each and _token_ids(each) for each in prompt):
            return prompt
    raise BadRequest(
        "'prompt' must be a string, a list of strings, a list of token ids, or a list of such lists.",
        param="prompt",
    )


def _token_ids(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**31 for value in values)


def _check_template_arguments(parameters: Mapping[str, Any]) -> None:
    arguments = parameters.get("chat_template_kwargs")
    if arguments is None:
        return
    if not isinstance(arguments, dict):
        raise BadRequest("'chat_template_kwargs' must be an object.", param="chat_template_kwargs")
    if "chat_template" in arguments:
        raise BadRequest(
            "'chat_template' is not accepted: the model's own template is used.",
            param="chat_template_kwargs",
        )


# ------------------------------------------------------------------------------------------ the checks


Check = Callable[[Any, str], Any]


def _checked(given: Mapping[str, Any], field: str, check: Check, *, default: Any) -> Any:
    return check(given[field], field) if field in given else default


def _any(value: object, field: str) -> None:
    """Nothing is known of this field."""


def _boolean(value: object, field: str) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"'{field}' must be true or false.", param=field)
    return value


def _integer(value: object, field: str, low: int, high: int) -> int:
    if type(value) is not int:
        raise BadRequest(f"'{field}' must be an integer.", param=field)
    if not low <= value <= high:
        raise BadRequest(f"'{field}' must be between {low} and {high}.", param=field)
    return value


def _integers(low: int, high: int) -> Check:
    return lambda value, field: _integer(value, field, low, high)


def _numbers(low: float, high: float) -> Check:
    def check(value: object, field: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadRequest(f"'{field}' must be a number.", param=field)
        if not low <= value <= high:  # also false for NaN
            raise BadRequest(f"'{field}' must be between {low:g} and {high:g}.", param=field)

    return check


def _short_string(value: object, field: str) -> None:
    if not isinstance(value, str) or len(value) > MAX_TEXT or "\x00" in value:
        raise BadRequest(f"'{field}' must be a string of at most {MAX_TEXT} characters.", param=field)


def _text(value: object, field: str) -> None:
    if not isinstance(value, str):
        raise BadRequest(f"'{field}' must be a string.", param=field)


def _object(value: object, field: str) -> None:
    if not isinstance(value, dict):
        raise BadRequest(f"'{field}' must be an object.", param=field)


def _tools(value: object, field: str) -> None:
    if not isinstance(value, list) or len(value) > 512 or not all(isinstance(tool, dict) for tool in value):
        raise BadRequest(f"'{field}' must be a list of at most 512 objects.", param=field)


def _tool_choice(value: object, field: str) -> None:
    if not isinstance(value, (str, dict)):
        raise BadRequest(f"'{field}' must be a string or an object.", param=field)


def _logit_bias(value: object, field: str) -> None:
    _object(value, field)
    assert isinstance(value, dict)
    if len(value) > 1024:
        raise BadRequest(f"'{field}' takes at most 1024 tokens.", param=field)
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 9):
            raise BadRequest(f"'{field}' must map token ids to numbers.", param=field)
        _numbers(-100, 100)(bias, field)


COMMON_CHECKS: Mapping[str, Check] = {
    "temperature": _numbers(0, 2),
    "top_p": _numbers(0, 1),
    "presence_penalty": _numbers(-2, 2),
    "frequency_penalty": _numbers(-2, 2),
    "repetition_penalty": _numbers(0.01, 10),
    "min_p": _numbers(0, 1),
    "top_k": _integers(-1, 2**31 - 1),
    "min_tokens": _integers(0, 2**31 - 1),
    "seed": _integers(-(2**63), 2**64 - 1),
    "best_of": _integers(1, MAX_CHOICES),
    "logit_bias": _logit_bias,
    "echo": _boolean,
    "suffix": _text,
    "user": _short_string,
    "safety_identifier": _short_string,
    "prompt_cache_key": _short_string,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _boolean,
    "response_format": _object,
    "metadata": _object,
    "ignore_eos": _boolean,
}

CHECKS: Mapping[Dialect, Mapping[str, Check]] = {
    "chat": {**COMMON_CHECKS, "logprobs": _boolean, "top_logprobs": _integers(0, 20)},
    "completions": {**COMMON_CHECKS, "logprobs": _integers(0, 20)},
    # Engines check the rest: no value that is known to crash one has a way in here.
    "embeddings": {"dimensions": _integers(1, 2**20), "user": _short_string, "cache_salt": _short_string},
    "responses": {
        "temperature": _numbers(0, 2),
        "top_p": _numbers(0, 1),
        "top_logprobs": _integers(0, 20),
        "user": _short_string,
        "safety_identifier": _short_string,
        "prompt_cache_key": _short_string,
        "cache_salt": _short_string,
        "metadata": _object,
    },
    "messages": {
        "temperature": _numbers(0, 2),
        "top_p": _numbers(0, 1),
        "top_k": _integers(-1, 2**31 - 1),
        "cache_salt": _short_string,
        "metadata": _object,
    },
    "rerank": {"top_n": _integers(0, 2**20), "cache_salt": _short_string},
    "score": {"cache_salt": _short_string},
}


def _check_depth(value: object, field: str) -> None:
    """At most MAX_DEPTH levels: engines compile schemas recursively."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for each in level
            if isinstance(each, (dict, list))
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise BadRequest(f"'{field}' is nested more than {MAX_DEPTH} levels deep.", param=field)
