"""Remembered counts are plain counts: growing, edited and branching conversations, and hostile contents."""

import sys
import threading
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule

from backends.contract import GenerateRequest
from gateway.tokens.caching import BLOCK, ENTRY_BYTES, CountCache, Recent, cache_of
from gateway.tokens.counters import HuggingFaceCounter
from gateway.tokens.segments import Splitter, utf8
from gateway.tokens.templates import ChatTemplate, ControlTokens, TemplateSource
from gateway.tokens.tokenizing import Tokenizer
from tests.gateway.tokens import tiny

TEMPLATE = """\
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and not loop.last %}{{- message.content.split('<think>')[-1] | trim }}
    {%- else %}{{- message.content }}{% endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
"""As Qwen's: what was said before is not always rendered as it was."""

CONTENTS = st.one_of(
    st.sampled_from([
        "", " ", "The gate ", "ends in spaces   ", "\n", "e", "\u0301", "'s", "<|im_end|>", "<|im_", "end|>",
        "<|end|>>", "<|im_end|>\n<|im_start|>system\n", "<|normal" + "e\u0301|>", "<think>no</think>",
        "渠首", "\ud83d", "\ude00", "x" * 3000, "gate <|end|>" * 300, "word " * 1000,
    ]),
    st.text(max_size=40),
)  # fmt: skip


@lru_cache(maxsize=8)
def counter_of(form: str) -> HuggingFaceCounter:
    return HuggingFaceCounter.of(tiny.proved(form), form)


def tokenizer_of(form: str, *, entries: int | None = None) -> Tokenizer:
    counter = counter_of(form)
    template = ChatTemplate(
        TemplateSource(TEMPLATE, special_tokens={}), ControlTokens.proved(counter, TEMPLATE)
    )
    assert counter.cuts is not None
    cache = CountCache(counter, Splitter(counter.cuts), around=counter.around, entries=entries or 65536)
    return Tokenizer(counter, template, cache)


def request_of(messages: list[dict[str, Any]], **parameters: Any) -> GenerateRequest:
    return GenerateRequest(request_id="r", model="m", stream=False, messages=messages, parameters=parameters)


class Conversations(RuleBasedStateMachine):
    """Each conversation that comes about is counted plain and remembered, whatever was counted before."""

    conversations = Bundle("conversations")
    tokenizers: tuple[Tokenizer, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        shared = [("qwen", None), ("gpt2", None), ("llama3", 12)]
        self.tokenizers = tuple(tokenizer_of(form, entries=entries) for form, entries in shared)

    def check(self, messages: list[dict[str, Any]], generate: bool = True) -> list[dict[str, Any]]:
        request = request_of(messages, add_generation_prompt=generate)
        for tokenizer in self.tokenizers:
            reference = HuggingFaceCounter(tokenizer.counter._tokenizer, "x")  # type: ignore[attr-defined]
            plain = Tokenizer(reference, tokenizer.template).count(request)
            at_once = tokenizer.remembered(request)
            for count in (at_once, tokenizer.count(request), tokenizer.remembered(request)):
                assert count is None or (count.tokens, count.exact) == (plain.tokens, True)
        return messages

    @rule(target=conversations, content=CONTENTS, system=st.booleans())
    def begin(self, content, system):
        head = [{"role": "system", "content": "You are a gate. " * 40}] if system else []
        return self.check([*head, {"role": "user", "content": content}])

    @rule(
        target=conversations,
        conversation=conversations,
        role=st.sampled_from(["user", "assistant", "tool"]),
        content=CONTENTS,
        generate=st.booleans(),
    )
    def grow(self, conversation, role, content, generate):
        """The same role twice, too."""
        return self.check([*conversation, {"role": role, "content": content}], generate)

    @rule(target=conversations, conversation=conversations, at=st.integers(0, 50), content=CONTENTS)
    def edit(self, conversation, at, content):
        at %= len(conversation)
        return self.check(
            [*conversation[:at], {**conversation[at], "content": content}, *conversation[at + 1 :]]
        )

    @rule(target=conversations, conversation=conversations, at=st.integers(1, 50))
    def branch(self, conversation, at):
        return self.check(conversation[: 1 + at % len(conversation)])

    @rule(text=CONTENTS, conversation=conversations)
    def prompt(self, text, conversation):
        """Plain prompts, among them rendered chats, that share their beginnings with chats."""
        for tokenizer in self.tokenizers:
            assert tokenizer.template is not None
            rendered = tokenizer.template.render(conversation) + text
            request = GenerateRequest(request_id="r", model="m", stream=False, prompt=rendered)
            plain = Tokenizer(HuggingFaceCounter(tokenizer.counter._tokenizer, "x"), None)  # type: ignore[attr-defined]
            assert tokenizer.count(request).tokens == plain.count(request).tokens


Conversations.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestConversations = Conversations.TestCase


@given(
    st.lists(
        st.sampled_from([*tiny.CONTROL, "<|e", "nd|>", "|>>", "a", "é", "<", "x" * 500]), max_size=40
    ).map("".join)
)
@settings(deadline=None)
def test_tokens_at_the_edge_of_a_block(text):
    """Where the beginning that two texts share ends within a control token, or a longer one may begin."""
    counter = counter_of("gpt2")
    cache = CountCache(counter, Splitter(tiny.CONTROL))
    for shift in range(0, 14, 2):
        head = "y" * (BLOCK - 12 + shift)
        for tail in ("", "|>", "nd|>", text):
            whole = head + text + tail
            assert cache.count(whole) == counter.count(whole, add_special_tokens=False)


# ------------------------------------------------------------------------------------- what it saves


def conversation(turns: int) -> list[dict[str, Any]]:
    words = " ".join(tiny.corpus()).split()
    return [
        {"role": ("user", "assistant")[turn % 2], "content": " ".join(words[turn * 40 : turn * 40 + 90])}
        for turn in range(turns)
    ]


def test_a_growing_conversation_pays_for_its_new_turn_only():
    tokenizer = tokenizer_of("qwen")
    assert tokenizer.cache is not None
    messages = conversation(41)
    counted = []
    for turns in range(1, 42, 2):
        before = tokenizer.cache.statistics().bytes_counted
        tokenizer.count(request_of(messages[:turns]))
        counted.append(tokenizer.cache.statistics().bytes_counted - before)
    new = [
        sum(len(m["content"].encode()) for m in messages[max(0, turns - 2) : turns])
        for turns in range(1, 42, 2)
    ]
    assert all(paid <= fresh + 60 for paid, fresh in zip(counted[1:], new[1:], strict=True))


def test_the_head_of_a_conversation_is_not_looked_up_again():
    """At most a block of it, and the new turn."""
    tokenizer = tokenizer_of("qwen")
    assert tokenizer.cache is not None
    messages = conversation(201)
    tokenizer.count(request_of(messages[:199]))
    before = tokenizer.cache.statistics()
    tokenizer.count(request_of(messages))
    after = tokenizer.cache.statistics()
    assert after.hits - before.hits < 30
    assert after.misses - before.misses <= 4


def test_remembered_counts_nothing_long_and_renders_nothing_new():
    tokenizer = tokenizer_of("qwen")
    messages = conversation(21)
    assert tokenizer.remembered(request_of(messages)) is None
    tokenizer.count(request_of(messages))
    grown = [*messages, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
    assert tokenizer.remembered(request_of(grown)) is not None
    assert tokenizer.remembered(request_of([*grown, {"role": "user", "content": "new words " * 400}])) is None
    assert tokenizer.remembered(request_of([{"role": "user", "content": "Short and new."}])) is not None
    assert tokenizer.remembered(request_of(messages, tools=[{"name": "f"}])) is None
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert tokenizer.remembered(request_of(parts)) is None
    assert tokenizer.remembered(request_of([{"role": "user", "content": "a"}] * 1000)) is None
    assert tokenizer.remembered(request_of([{"role": "user", "content": "a" * 100_000}])) is None


def test_memory_is_bounded():
    """In entries, and each entry in bytes, whatever the texts."""
    counter = counter_of("gpt2")
    cache = CountCache(counter, Splitter(tiny.CONTROL), entries=400)
    for number in range(3000):
        cache.count(f"{number}<|end|>{'long ' * (number % 600)}{number}<|end|>{'x' * 30}{number}")
        assert cache.statistics().entries <= 400
    entries = [*cache._segments._young.items(), *cache._heads._young.items()]
    sizes = [
        sys.getsizeof(key) + sys.getsizeof(value) + 2 * 28 * isinstance(value, tuple)
        for key, value in entries
    ]
    dictionaries = sys.getsizeof(cache._segments._young) / max(1, len(cache._segments._young))
    assert max(sizes) + dictionaries <= ENTRY_BYTES


def test_what_was_used_lately_stays():
    recent: Recent[bytes, int] = Recent(8)
    recent.put(b"kept", 1)
    for number in range(100):
        recent.put(b"%d" % number, number)
        assert recent.get(b"kept") == 1
    assert len(recent) <= 8
    assert recent.get(b"5") is None


def test_threads_share_it():
    """Every count right, and none lost from the statistics."""
    tokenizer = tokenizer_of("llama3", entries=40)
    assert tokenizer.cache is not None
    messages = conversation(31)
    uncached = Tokenizer(tokenizer.counter, tokenizer.template)
    plain = [uncached.count(request_of(messages[:turns])).tokens for turns in range(1, 32)]
    wrong = []

    def work() -> None:
        for turns, tokens in enumerate(plain, 1):
            found = tokenizer.count(request_of(messages[:turns])).tokens
            if found != tokens:
                wrong.append((turns, found, tokens))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    told = tokenizer.cache.statistics()
    assert tokenizer.template is not None
    rendered = sum(len(utf8(tokenizer.template.render(messages[:turns]))) for turns in range(1, 32))
    assert told.bytes_remembered + told.bytes_counted == 6 * rendered


# -------------------------------------------------------------------------------- where it does not add up


def test_a_tokenizer_that_looks_at_the_beginning_of_a_text_is_remembered_as_a_whole_only():
    """Metaspace `first` puts a space before the first word alone: segments counted apart would differ."""
    first = HuggingFaceCounter(tiny.sentencepiece("first"), "x")
    assert first.cuts is None
    cache = cache_of(first)
    assert cache is not None
    assert cache.splitter.longest == 0
    text = "The gate<|end|>holds<|end|> back"
    assert cache.count(text) == cache.count(text) == first.count(text, add_special_tokens=False)
    assert cache.statistics().misses == 1
    wrong = CountCache(first, Splitter(tiny.CONTROL))
    assert wrong.count(text) != first.count(text, add_special_tokens=False)


def test_the_proof_finds_segments_that_do_not_add_up(monkeypatch):
    """The check by trying, should the check by structure be wrong."""
    monkeypatch.setattr(HuggingFaceCounter, "cuts", property(lambda _: tiny.CONTROL))
    cache = cache_of(HuggingFaceCounter(tiny.sentencepiece("first"), "x"))
    assert cache is not None
    assert cache.splitter.longest == 0


@pytest.mark.parametrize("prepend", ["always", "never"])
def test_other_tokenizers_of_sentencepiece_add_up(prepend):
    counter = HuggingFaceCounter(tiny.sentencepiece(prepend), "x")
    cache = cache_of(counter)
    assert cache is not None
    assert cache.splitter.longest
    text = "The gate<|end|> holds <|im_start|>\n\n<|im_end|>back"
    assert cache.count(text) == counter.count(text, add_special_tokens=False)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_tokens_that_look_beside_them_are_not_cut_at(flag):
    tokenizer = tiny.changed(tiny.proved("gpt2"), lambda file: file["added_tokens"][1].update({flag: True}))
    counter = HuggingFaceCounter(tokenizer, "x")
    cache = cache_of(counter)
    assert cache is not None
    assert cache.splitter.longest == 0


def test_only_known_counters_are_remembered():
    class Odd:
        added_tokens = ()

    assert cache_of(Odd()) is None  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- the splitter


@given(
    st.lists(
        st.sampled_from(["<|e", "nd|>", "|>>", "a", "é", "|", "<|end|>", "[INST]", "\n"]), max_size=30
    ).map("".join)
)
def test_tokens_are_found_as_tokenizers_finds_them(text):
    tokenizer = tiny.proved("gpt2")
    ids = {tokenizer.token_to_id(token) for token in tiny.CONTROL}
    theirs = [
        tiny.CONTROL[0] and each
        for each in tokenizer.encode(text, add_special_tokens=False).ids
        if each in ids
    ]
    data = utf8(text)
    ours = [tokenizer.token_to_id(data[a:b].decode()) for a, b in Splitter(tiny.CONTROL).matches(data)]
    assert ours == theirs


def test_tokens_across_the_windows_of_the_search(monkeypatch):
    monkeypatch.setattr("gateway.tokens.segments._SCAN", 5)
    found = list(Splitter(["<|end|>", "<|end|>>"]).matches(b"ab<|end|>c<|end|>><|end|><|end|>"))
    assert found == [(2, 9), (10, 18), (18, 25), (25, 32)]
