"""A tokenizer directory as an engine reads it: text to ids, ids to bytes, messages to a prompt.

The directory is the one that Hugging Face models ship: tokenizer.json, tokenizer_config.json, and the
chat template in chat_template.jinja or under `chat_template` of the configuration. Templates run in
jinja2's immutable sandbox with the settings and helpers that `transformers` gives them
(utils/chat_template_utils.py: trim_blocks, lstrip_blocks, `raise_exception`, `tojson` without HTML
escapes).
"""

import codecs
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import Tokenizer

__all__ = ["Detokenizer", "EngineTokenizer", "TemplateError", "default_tokenizer_directory"]


class TemplateError(ValueError):
    """The chat template refused the messages, or there is no template."""


def default_tokenizer_directory() -> Path:
    """Where `headgate-mini` lies: in the wheel beside this module, in a checkout under `deploy`.

    Raises FileNotFoundError where it is in neither place.
    """
    here = Path(__file__).resolve()
    packaged = here.parent / "headgate-mini"
    for directory in (packaged, here.parents[2] / "deploy" / "tokenizers" / "headgate-mini"):
        if (directory / "tokenizer.json").is_file():
            return directory
    raise FileNotFoundError(f"no tokenizer in {packaged}: name a directory that has a tokenizer.json")


class EngineTokenizer:
    """One model's tokenizer and chat template. Immutable once built; share it between engines."""

    def __init__(self, tokenizer: Tokenizer, configuration: Mapping[str, Any], template: str | None) -> None:
        self._tokenizer = tokenizer
        self._configuration = configuration
        self._template_source = template
        self.size: int = tokenizer.get_vocab_size()
        self.special_ids: frozenset[int] = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self.bos_id = self._named("bos_token")
        self.eos_id = self._named("eos_token")

    @classmethod
    def load(cls, directory: Path) -> "EngineTokenizer":
        """Read a tokenizer directory. Raises OSError or ValueError."""
        configuration: dict[str, Any] = {}
        if (file := directory / "tokenizer_config.json").is_file():
            configuration = json.loads(file.read_text(encoding="utf-8"))
        template = configuration.get("chat_template")
        if (file := directory / "chat_template.jinja").is_file():
            template = file.read_text(encoding="utf-8")
        text = (directory / "tokenizer.json").read_text(encoding="utf-8")
        return cls(Tokenizer.from_str(text), configuration, template)

    def _token(self, key: str) -> str | None:
        value = self._configuration.get(key)
        return value["content"] if isinstance(value, dict) else value

    def _named(self, key: str) -> int | None:
        token = self._token(key)
        return None if token is None else self._tokenizer.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; with `add_special_tokens` what the post-processor adds (a BOS for Llama 3)."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def offsets(self, text: str, *, add_special_tokens: bool = True) -> list[tuple[int, str, int, int]]:
        """(id, text, start, stop) of each token, as TGI's /tokenize tells them."""
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return [
            (token_id, text[start:stop], start, stop)
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes of each token by id, special tokens by their names.

        Exact for byte-level vocabularies. For others (SentencePiece) it is what the token gives when
        decoded alone, which loses its leading space, as it does in an engine that decodes token by token.
        """
        decoder = json.loads(self._tokenizer.to_str()).get("decoder") or {}
        table = _byte_level_table() if decoder.get("type") == "ByteLevel" else None
        pieces = []
        for token_id in range(self.size):
            token = self._tokenizer.id_to_token(token_id)
            if token is None:
                pieces.append(b"")
            elif token_id in self.special_ids:
                pieces.append(token.encode())
            elif table is not None and all(character in table for character in token):
                pieces.append(bytes(table[character] for character in token))
            else:
                pieces.append(self.decode([token_id], skip_special_tokens=False).encode())
        return tuple(pieces)

    @cached_property
    def byte_ids(self) -> Mapping[int, int]:
        """Byte -> the token that is this byte alone. Byte-level vocabularies have one for each."""
        return {piece[0]: token_id for token_id, piece in enumerate(self.pieces) if len(piece) == 1}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for `messages`, control tokens and BOS included. Raises TemplateError."""
        if self._template_source is None:
            raise TemplateError("this model has no chat template")
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._token("bos_token") or "",
                eos_token=self._token("eos_token") or "",
                **variables,
            )
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError) as error:
            raise TemplateError(str(error)) from error

    @cached_property
    def _template(self) -> jinja2.Template:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        return environment.from_string(self._template_source or "")


class Detokenizer:
    """Ids to text, one at a time. Bytes of a character that is not complete yet are held back."""

    def __init__(self, tokenizer: EngineTokenizer) -> None:
        self._pieces = tokenizer.pieces
        self._special = tokenizer.special_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        """The text that this token completes; often "" in the middle of a character."""
        if token_id in self._special:
            return ""
        return self._decoder.decode(self._pieces[token_id])

    @property
    def held(self) -> bytes:
        """The bytes held back."""
        return self._decoder.getstate()[0]


def _byte_level_table() -> dict[str, int]:
    """GPT-2's map from printable characters to bytes, turned round (openai/gpt-2 src/encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(256 + number): byte for number, byte in enumerate(others)})
    return table


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
