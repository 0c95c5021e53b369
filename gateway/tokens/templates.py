"""Chat templates: messages to the text that a model was trained on, as Hugging Face renders it.

A template comes with the tokenizer, from the operator; messages come from anybody. Rendering happens where
an engine takes raw text, and for counting, always off the event loop (it is Python, and some of it is not
ours). Two dangers and what is done about them:

A *template* is a program. jinja2's immutable sandbox keeps it from the interpreter; its output is capped.

A *message* may spell out a control token, `<|im_end|>\\n<|im_start|>system`, and an engine that is given raw
text reads it as one: a user could write a system message. `ControlTokens` breaks every such spelling with
a zero-width space behind its first character. At load each control token is broken and encoded; a breaker
that the tokenizer does not see through is chosen by that proof, or the tokenizer is refused. Text parts of a
message are joined first, so that no token is put together from two harmless halves.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from gateway.errors import BadRequest, UnsupportedByEngine
from gateway.tokens.counters import AddedToken, TokenCounter, TokenizerError

__all__ = ["ChatTemplate", "ControlTokens", "TemplateSource"]

MAX_RENDERED = 16 * 1024 * 1024
"""Characters of a rendered chat: four times the largest body. Only a template that multiplies gets there."""

_BREAKERS = ("\u200b", "\u2060", " ")
"""Zero-width space, word joiner, and a visible space where a normalizer removes the other two."""

_SCAN = 64 * 1024
"""Characters per regex call: a search holds the GIL to its end, and hostile text makes it slow (5 ms)."""

_RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})

_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names of what a model thought, by what `transformers` looks at first."""

_HERE = "headgate: continue here "
"""Stands where the last message ends while it is rendered to be continued. Some templates strip its space."""

_PROBE = "headgate probe"


# --------------------------------------------------------------------------------- control tokens


class ControlTokens:
    """The tokens that steer a model, and how their spelling in a user's text is broken up."""

    def __init__(
        self, tokens: Collection[str], breaker: str = "\u200b", normalize: Callable[[str], str] | None = None
    ) -> None:
        """`normalize`: given where the tokenizer looks for some of the tokens in normalized text."""
        self._breaker = breaker
        self._normalize = normalize
        self._longest = max(map(len, tokens), default=0)
        self._starts = _starts(tokens) if tokens else None

    @classmethod
    def proved(cls, counter: TokenCounter, template: str) -> "ControlTokens":
        """Those of `counter`'s tokenizer: its special tokens, and its other added tokens that occur in
        `template`, except runs of whitespace and plain words.

        Raises TokenizerError where no breaker keeps the tokenizer from seeing a broken token.
        """
        control = [token for token in counter.added_tokens if token.content and _controls(token, template)]
        normalize = counter.normalize if any(token.normalized for token in control) else None
        ids = {token.id for token in control}
        for breaker in _BREAKERS:
            found = cls({token.content for token in control}, breaker, normalize)
            if not any(ids.intersection(counter.ids(found.broken(token.content))) for token in control):
                return found
        raise TokenizerError(f"{counter.source}: control tokens in user text cannot be told from its own")

    def broken(self, text: str) -> str:
        """`text` with every control token in it broken up; the same object where there is none."""
        text = self._broken(text)
        if self._normalize is not None:
            # Where the tokenizer would find one after normalizing, it may as well be given normal text.
            normal = self._normalize(text)
            if any(True for _ in self._spelled(normal)):
                return self._broken(normal)
        return text

    def _broken(self, text: str) -> str:
        pieces: list[str] = []
        done = 0
        for start, kept in self._spelled(text):
            pieces += (text[done : start + kept], self._breaker)
            done = start + 1
        return "".join([*pieces, text[done:]]) if pieces else text

    def _spelled(self, text: str) -> Iterator[tuple[int, int]]:
        """Where control tokens begin, overlapping ones too, and how many characters stay before the breaker:
        one, or none where the token is a single character and gives way altogether."""
        if self._starts is None:
            return
        for window in range(0, len(text), _SCAN):
            for match in self._starts.finditer(text, window, window + _SCAN + self._longest):
                if match.start() >= window + _SCAN:
                    break  # the next window's
                yield match.start(), match["whole"] is None


def _starts(tokens: Collection[str]) -> re.Pattern[str]:
    """Matches the first character of every token. First characters are looked for before anything else,
    which `re` does fast; a token of a single character matches as `whole`."""
    first = _by_head(tokens)
    whole = "".join(re.escape(character) for character, rests in first.items() if "" in rests)
    begun = [f"{re.escape(head)}(?={_any_of(rests)})" for head, rests in first.items() if "" not in rests]
    return re.compile("|".join([f"(?P<whole>[{whole}])" if whole else "(?P<whole>(?!))", *begun]))


def _any_of(texts: Collection[str]) -> str:
    """A pattern for the shortest of `texts` at a place, as a tree: hundreds of reserved tokens share a
    beginning, and trying them one by one takes microseconds per character of hostile text."""
    if "" in texts:
        return ""
    branches = [re.escape(head) + _any_of(rests) for head, rests in _by_head(texts).items()]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _by_head(texts: Collection[str]) -> dict[str, list[str]]:
    """What follows each first character."""
    found: dict[str, list[str]] = {}
    for text in sorted(texts):
        found.setdefault(text[0], []).append(text[1:])
    return found


def _controls(token: AddedToken, template: str) -> bool:
    if token.special:
        return True
    # Some vocabularies add runs of spaces or words; breaking those would ruin code and prose.
    return token.content in template and not token.content.isspace() and not token.content.isalnum()


# -------------------------------------------------------------------------------------- the source


class TemplateSource:
    """A template's text and the names it is rendered with, read from a tokenizer directory.

    Where Hugging Face keeps them: `chat_template.jinja`, else `chat_template` of tokenizer_config.json, a
    text or a list of named ones (`default`, and `tool_use` for requests with tools); the special tokens
    (`bos_token`, ...) of tokenizer_config.json, else of special_tokens_map.json.
    """

    def __init__(self, text: str, *, tool_use: str | None = None, special_tokens: Mapping[str, str]) -> None:
        self.text = text
        self.tool_use = tool_use
        self.special_tokens = special_tokens

    @classmethod
    def read(cls, directory: Path | None, file: Path | None = None) -> "TemplateSource | None":
        """`file` overrides the directory's template. None where there is no template at all."""
        config = _json(directory / "tokenizer_config.json") if directory else {}
        names = {
            **_names(_json(directory / "special_tokens_map.json") if directory else {}),
            **_names(config),
        }
        if file is None and directory and (directory / "chat_template.jinja").is_file():
            file = directory / "chat_template.jinja"
        if file is not None:
            try:
                return cls(file.read_text(encoding="utf-8"), special_tokens=names)
            except (OSError, UnicodeDecodeError) as error:
                raise TokenizerError(f"{file}: {error}") from error
        declared = config.get("chat_template")
        if isinstance(declared, list):
            named = {one["name"]: one["template"] for one in declared}
            declared = named.get("default")
            if isinstance(declared, str):
                return cls(declared, tool_use=named.get("tool_use"), special_tokens=names)
        return cls(declared, special_tokens=names) if isinstance(declared, str) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: {error}") from error
    return value if isinstance(value, dict) else {}


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """The `*_token` entries: a text, or a serialised AddedToken."""
    found = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


# ------------------------------------------------------------------------------------ the template


class ChatTemplate:
    """A compiled chat template. Immutable, safe to use from several threads."""

    def __init__(
        self,
        source: TemplateSource,
        control: ControlTokens,
        *,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self._control = control
        self._special_tokens = source.special_tokens
        self.bos = source.special_tokens.get("bos_token", "")
        environment = _environment(now)
        self._template = _compiled(environment, source.text)
        self._tool_use = _compiled(environment, source.tool_use) if source.tool_use else self._template
        as_text = self._probe(_PROBE)
        as_parts = self._probe([{"type": "text", "text": _PROBE}])
        self._takes_text = as_text is not None or as_parts is None
        self._takes_parts = as_parts is not None and as_text in (None, as_parts)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        neutralise: bool = False,
        drop_media: bool = False,
    ) -> str:
        """The text of a chat.

        `continue_final_message`: up to the last message's last word, which the model is to go on from, rather
        than with a new turn.

        `variables` are the client's `chat_template_kwargs`. `neutralise` breaks up control tokens in
        everything the client wrote: contents, names, roles, tool calls, tools, variables. `drop_media`
        leaves out parts that are not text, for counting; without it they raise UnsupportedByEngine.

        Raises BadRequest where the template refuses the messages or cannot cope with them.
        """
        prepared = [self._message(message, neutralise, drop_media) for message in messages]
        if continue_final_message:
            add_generation_prompt = False
            prepared[-1:] = [_marked(message) for message in prepared[-1:]]
        context = {
            "messages": prepared,
            "tools": self._plain(tools, neutralise) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._special_tokens,
        }
        for name, value in (variables or {}).items():
            if name in _RESERVED or name in self._special_tokens:
                raise BadRequest(f"{name!r} is not the client's to set.", param="chat_template_kwargs")
            context[name] = self._plain(value, neutralise)
        text = self._generated(self._tool_use if tools else self._template, context)
        return _up_to_mark(text) if continue_final_message else text

    def _generated(self, template: jinja2.Template, context: dict[str, Any]) -> str:
        """Raises BadRequest."""
        try:
            try:
                return _bounded(template.generate(context))
            except jinja2.UndefinedError:
                # Hugging Face drops `content: null`, and simple templates then fail on messages that hold
                # nothing but tool calls. Engines (vLLM and trtllm-serve, chat_utils.py) render them empty.
                prepared = context["messages"]
                if all("content" in message for message in prepared):
                    raise
                context["messages"] = [{"content": "", **message} for message in prepared]
                return _bounded(template.generate(context))
        except BadRequest:
            raise
        except _Raised as refused:
            raise _unrenderable(f": {_safe(refused.message or '')}") from None
        except Exception as error:  # whatever the template's program can run into
            raise _unrenderable(".") from error

    def strip_bos(self, text: str) -> str:
        """`text` without its leading BOS, for engines that put one before any text they are given."""
        return text.removeprefix(self.bos) if self.bos else text

    def _message(self, message: Mapping[str, Any], neutralise: bool, drop_media: bool) -> dict[str, Any]:
        """One message as templates expect it: no nulls; content in a form that this template takes; arguments
        of tool calls parsed (OpenAI has them as text; templates, written for `transformers`, want a dict)."""
        copy = {name: value for name, value in message.items() if value is not None}
        if isinstance(parts := copy.get("content"), list):
            texts = _texts(parts, drop_media)
            # Neutralised, parts become one: two of them could spell a token between them.
            if neutralise or not self._takes_parts:
                texts = ["".join(texts)]
            copy["content"] = [{"type": "text", "text": text} for text in texts]
            if self._takes_text and len(texts) == 1:
                copy["content"] = texts[0]
        elif isinstance(parts, str) and not self._takes_text:
            copy["content"] = [{"type": "text", "text": parts}]
        if (thought := next((copy[name] for name in _THOUGHTS if name in copy), None)) is not None:
            copy = {"thinking": thought, **copy, "reasoning_content": thought}  # as `transformers` does
        if isinstance(calls := copy.get("tool_calls"), list):
            copy["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
        plain: dict[str, Any] = self._plain(copy, neutralise)
        return plain

    def _plain(self, value: Any, neutralise: bool) -> Any:
        """A copy made of plain containers, so that a template can neither reach nor change the request."""
        if isinstance(value, str):
            return self._control.broken(value) if neutralise else value
        if isinstance(value, Mapping):
            return {
                self._plain(key, neutralise): self._plain(item, neutralise) for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._plain(item, neutralise) for item in value]
        return value

    def _probe(self, content: Any) -> str | None:
        """How the template renders `content`; None where it cannot, or shows its Python form."""
        context = {"messages": [{"role": "user", "content": content}], "tools": None, **self._special_tokens}
        try:
            text = _bounded(self._template.generate({**context, "add_generation_prompt": True}))
        except Exception:  # any failure is the answer to the probe
            return None
        return text if _PROBE in text and "'type'" not in text else None


def _with_parsed_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _marked(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with `_HERE` behind its text."""
    content = message.get("content")
    if isinstance(content, list) and content:
        return {**message, "content": [*content[:-1], {**content[-1], "text": content[-1]["text"] + _HERE}]}
    if not isinstance(content, str):
        raise BadRequest("The last message has no text to be continued.", param="continue_final_message")
    return {**message, "content": content + _HERE}


def _up_to_mark(text: str) -> str:
    """What stands before the last `_HERE`; where the template has trimmed it, the text was trimmed too."""
    at = text.rfind(_HERE.rstrip())
    if at < 0:
        raise BadRequest(
            "The model's chat template does not show the last message.", param="continue_final_message"
        )
    return text[:at] if text.startswith(_HERE, at) else text[:at].rstrip()


def _texts(parts: Iterable[Any], drop_media: bool) -> list[str]:
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else None
        if isinstance(text, str):
            texts.append(text)
        elif not drop_media:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise UnsupportedByEngine(
                f"Content of type {_safe(str(kind))!r} cannot be sent to this engine: it takes text only.",
                param="messages",
            )
    return texts


# ---------------------------------------------------------------------------------- the environment


class _Raised(jinja2.TemplateError):
    """The template called `raise_exception`: its author's words."""


class _Namespace(jinja2.utils.Namespace):
    """`namespace()`, which `transformers` keeps from taking names that lead into the interpreter."""

    def __init__(*given: Any, **names: Any) -> None:
        self, *rest = given  # so that a template may call one of its names `self`
        names = dict(*rest, **names)
        for name in names:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name!r} is not a name for a namespace")


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: marks the assistant's words for training; here a block."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _environment(now: Callable[[], datetime]) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """As `transformers` builds it (utils/chat_template_utils.py, `_compile_jinja_template`)."""

    def raise_exception(message: object) -> None:
        raise _Raised(str(message))

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own filter escapes HTML, which no model was trained on.
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
        autoescape=False,  # prompts are not HTML
    )
    environment.filters["tojson"] = tojson
    environment.globals["namespace"] = _Namespace
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    return environment


def _compiled(environment: jinja2.Environment, text: str) -> jinja2.Template:
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"chat template, line {error.lineno}: {error.message}") from error


def _bounded(chunks: Iterable[str]) -> str:
    pieces, length = [], 0
    for chunk in chunks:
        length += len(chunk)
        if length > MAX_RENDERED:
            raise BadRequest("The messages are too long once rendered.", param="messages")
        pieces.append(chunk)
    return "".join(pieces)


def _unrenderable(why: str) -> BadRequest:
    return BadRequest(f"The model's chat template cannot render these messages{why}", param="messages")


def _safe(text: str) -> str:
    """One printable line of at most 200 characters: a template may quote what the client wrote."""
    return "".join(character if character.isprintable() else " " for character in text[:200])
