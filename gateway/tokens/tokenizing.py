"""A model's tokenizer: its counter, its chat template and what it remembers. Synchronous; runs in threads.

A chat is counted as written: rendered with its template, control tokens left alone, because that is what an
engine with a template of its own will see. A chat rendered for an engine that takes text is neutralised
(see `templates`), and counted again where that changed it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from backends.contract import GenerateRequest
from gateway.call import PromptCount
from gateway.config.snapshot import Model, TokenizerSpec
from gateway.errors import GatewayError
from gateway.tokens.caching import CountCache, Recent, cache_of
from gateway.tokens.counters import (
    EstimateCounter,
    HuggingFaceCounter,
    RankedCounter,
    TiktokenCounter,
    TokenCounter,
    TokenizerError,
    TransformersCounter,
    tiktoken_file,
    utf8_length,
)
from gateway.tokens.lanes import Reason
from gateway.tokens.learning import Overhead
from gateway.tokens.media import TEXT_ONLY
from gateway.tokens.prompts import count_of, has_media, little, opening, prompt_texts, texts_in
from gateway.tokens.templates import ChatTemplate, ControlTokens, TemplateSource
from gateway.tokens.tiers import Form

__all__ = ["TOKENS_PER_MESSAGE", "Tokenized", "Tokenizer", "assumed", "estimated", "overheads"]

_AT_ONCE_CHARACTERS = 32 * 1024
"""Of what may be rendered and looked up on the event loop: 80 messages of 32 Ki characters take 0.4 ms."""
_AT_ONCE_FRESH = 2048
"""Bytes of it that may be counted for the first time, by tiktoken; `tokenizers` needs six times as long."""

TOKENS_PER_MESSAGE = 4
"""Assumed for role and separators where no template is known; OpenAI's cookbook has 3 to 4."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A prompt counted and, where the model has a tokenizer and the text is not long, its tokens."""

    count: PromptCount
    ids: Sequence[int] | None = None
    strings: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What a TokenizerSpec names, loaded. Synchronous; its methods run in a thread."""

    counter: TokenCounter
    template: ChatTemplate | None
    cache: CountCache | None = None
    """Counts as `counter` does, each part of a conversation once."""
    openings: Recent[int, bool] = field(default_factory=lambda: Recent(16384))
    """How the chats began that were counted; a digest of what is in their first messages."""

    @classmethod
    def load(cls, spec: TokenizerSpec) -> "Tokenizer":
        """Reads files and takes up to some seconds, most of it to prove that a faster way of counting gives
        the same (`ranks`); needs no network. Raises TokenizerError."""
        directory = None
        counter: TokenCounter
        if spec.kind in (
            "estimate",
            "engine",
        ):  # the latter is asked elsewhere: here is what stands in for it
            if spec.chat_template is not None:
                raise TokenizerError("a chat_template needs a tokenizer that knows its control tokens")
            return cls(EstimateCounter(spec.bytes_per_token), None)
        if spec.kind == "tiktoken":
            encoding = spec.encoding or ""
            file = tiktoken_file(encoding) if spec.path is None else Path(spec.path)
            counter = TiktokenCounter.from_file(file, encoding)
        elif spec.path is None:
            raise TokenizerError(f"a tokenizer of kind {spec.kind} needs a path")
        else:
            directory = Path(spec.path)
            if not directory.is_dir():
                raise TokenizerError(f"{directory} is not a directory")
            if (directory / "tokenizer.json").is_file():
                counter = HuggingFaceCounter.from_directory(directory)
            else:
                counter = TransformersCounter.from_directory(directory)
        source = TemplateSource.read(directory, Path(spec.chat_template) if spec.chat_template else None)
        template = (
            None if source is None else ChatTemplate(source, ControlTokens.proved(counter, source.text))
        )
        return cls(counter, template, cache_of(counter))

    def count(self, request: GenerateRequest) -> PromptCount:
        """The prompt as an engine with a template of its own will see it."""
        if request.messages is None:
            texts = prompt_texts(request)
            counts = [self._count(text, add_special_tokens=True) for text in texts]
            return count_of(counts, exact=self.counter.exact, source=self.counter.source)
        if self.template is None:
            parts = sum(self._count(text, add_special_tokens=False) for text in texts_in(request))
            tokens = parts + TOKENS_PER_MESSAGE * (len(request.messages) + 1)
            return count_of([tokens], exact=False, source=f"{self.counter.source}, no chat template")
        tokens = self._count(self._render(request, neutralise=False), add_special_tokens=False)
        self.openings.put(opening(request), True)
        if has_media(request):
            return count_of([tokens], exact=False, source=self.counter.source + TEXT_ONLY)
        return count_of([tokens], exact=self.counter.exact, source=self.counter.source)

    def remembered(self, request: GenerateRequest) -> PromptCount | None:
        """What `count` gives, if that is cheap enough for the event loop: a short prompt, or one of which all
        but a short rest was counted before. None otherwise. Takes half a millisecond at most.

        Raises BadRequest where the template refuses the messages.
        """
        if self.cache is None or (size := little(request, _AT_ONCE_CHARACTERS)) is None:
            return None
        fast = not isinstance(self.counter, HuggingFaceCounter) or isinstance(self.counter, RankedCounter)
        fresh = _AT_ONCE_FRESH if fast else _AT_ONCE_FRESH // 8
        if request.messages is None:
            text, added = prompt_texts(request)[0], True
        elif self.template is None:
            return None
        elif size > fresh and self.openings.get(opening(request)) is None:
            return None  # a new conversation: rendering it here would be for nothing
        else:
            text, added = self._render(request, neutralise=False), False
        if len(text) > 2 * _AT_ONCE_CHARACTERS:
            return None
        tokens = self.cache.remembered(text, fresh, add_special_tokens=added)
        if tokens is None:
            return None
        return count_of([tokens], exact=self.counter.exact, source=self.counter.source)

    def tokenize(
        self, request: GenerateRequest, *, add_special_tokens: bool, ids: bool, strings: bool
    ) -> Tokenized:
        """One prompt, or a chat in the model's template, with its `ids` and `strings` where asked for."""
        if request.messages is None:
            (text,) = prompt_texts(request)
        else:
            text = self._render(request, neutralise=False)
        if not ids:
            tokens = self._count(text, add_special_tokens=add_special_tokens)
            return Tokenized(count_of([tokens], exact=self.counter.exact, source=self.counter.source))
        found = self.counter.ids(text, add_special_tokens=add_special_tokens)
        count = count_of([len(found)], exact=self.counter.exact, source=self.counter.source)
        return Tokenized(count, found, self.counter.strings(found) if strings else None)

    def render(self, request: GenerateRequest, *, adds_bos: bool) -> tuple[str, bool]:
        """The chat as text for an engine, neutralised, and whether it has the tokens that `count` counts:
        nothing had to be neutralised, and there is the same BOS.

        Raises UnsupportedByEngine where the messages are not all text, BadRequest where the template
        refuses them.
        """
        assert self.template is not None
        full = self._render(request, neutralise=True)
        text = self.template.strip_bos(full) if adds_bos else full
        same_bos = not adds_bos or text != full
        return text, same_bos and full == self._render(request, neutralise=False)

    def count_rendered(self, text: str, *, adds_bos: bool) -> PromptCount:
        """A text of `render`, with the BOS that the engine adds."""
        tokens = self._count(text, add_special_tokens=adds_bos)
        return count_of([tokens], exact=self.counter.exact, source=self.counter.source)

    def _count(self, text: str, *, add_special_tokens: bool) -> int:
        counter = self.counter if self.cache is None else self.cache
        return counter.count(text, add_special_tokens=add_special_tokens)

    def _render(self, request: GenerateRequest, *, neutralise: bool) -> str:
        assert self.template is not None
        assert request.messages is not None
        tools = request.parameters.get("tools")
        variables = request.parameters.get("chat_template_kwargs")
        return self.template.render(
            request.messages,
            tools=tools if isinstance(tools, list) else None,
            variables=variables if isinstance(variables, Mapping) else None,
            add_generation_prompt=request.parameters.get("add_generation_prompt") is not False,
            continue_final_message=request.parameters.get("continue_final_message") is True,
            neutralise=neutralise,
            drop_media=not neutralise,
        )


def estimated(model: Model, request: GenerateRequest, reason: Reason) -> PromptCount:
    ratio = model.tokenizer.bytes_per_token
    source = f"estimate {ratio} bytes/token ({reason})"
    if request.messages is None:
        counts = [math.ceil(utf8_length(text) / ratio) for text in prompt_texts(request)]
        return count_of(counts, exact=False, source=source)
    tokens = math.ceil(sum(map(utf8_length, texts_in(request))) / ratio)
    return count_of([tokens + TOKENS_PER_MESSAGE * (len(request.messages) + 1)], exact=False, source=source)


def assumed(model: Model, request: GenerateRequest) -> PromptCount:
    """An estimate by the configured ratio, where no other is learned."""
    source = f"estimate {model.tokenizer.bytes_per_token} bytes/token"
    return replace(estimated(model, request, "failed"), source=source)


def overheads(tokenizer: Tokenizer) -> Mapping[Form, Overhead]:
    """What stands around texts, found by counting prompts of one token each."""

    def tokens(**prompt: Any) -> int:
        request = GenerateRequest(request_id="", model="", stream=False, **prompt)
        return tokenizer.count(request).tokens

    def chat(messages: int) -> int:
        roles = ("user", "assistant")
        turns = [{"role": roles[index % 2], "content": "x"} for index in range(messages)]
        return tokens(messages=turns)

    try:
        text = Overhead(request=tokens(prompt="x") - 1)
        one, three = chat(1), chat(3)
    except GatewayError:  # a template that wants other roles: learned with the ratio
        return {}
    message = max(0.0, (three - one) / 2 - 1)
    around = Overhead(request=one - 1 - message, message=message)
    return {"text": text, "chat": around, "tools": around}
