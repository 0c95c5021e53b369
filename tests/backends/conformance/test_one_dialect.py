"""The same words from every engine are the same answer to a client: text, reason, usage, tool calls, stops.

Each engine says a text that the test gives it, at its own wire and with its own oddities; a client of the
gateway must see what is expected, which is one thing for all of them. Where an engine cannot, the difference
is one of `engines.Difference`, and nothing else is let pass.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from backends.registry import REGISTRY
from backends.simulated.speech import Speaker
from tests.backends.conformance.conftest import Fleet, a_fleet
from tests.backends.conformance.engines import ENGINES, Difference, tables
from tests.backends.conformance.observing import Choice, Refused, Seen
from tests.conftest import REPO
from tests.end_to_end.world import tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

every_engine = pytest.mark.parametrize("name", ENGINES)
both_ways = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
both_doors = pytest.mark.parametrize("door", ["chat", "completions"])

WORDS = 'The gate at the head of the canal opens slowly, and 1 < 2 & "so on".\n\nEnd.'
SIGNS = "Шлюз é 渠首 🚪👩‍👩‍👧 ½\u2028\\u"
"""Characters of one to four bytes, joined emoji, a line separator that is none to SSE, what looks escaped."""
ASKED = {"chat": {}, "completions": {"prompt": "What does a headgate do?"}}


def tokens_of(text: str, *, spelled: bool = False) -> int:
    """Tokens of an answer that says `text` and ends by itself."""
    return 1 + (len(text.encode()) if spelled else len(tokenizer().encode(text, add_special_tokens=False)))


def check(name: str, seen: Seen | Refused, text: str, tokens: int, reason: str = "stop") -> None:
    """The answer is `text`, ended for `reason`, and made of so many tokens."""
    assert isinstance(seen, Seen), seen
    assert seen.error is None
    assert seen.choices == {0: Choice(text=text, reason=reason)}
    if Difference.COUNTED_HERE not in ENGINES[name].differs:
        assert seen.completion_tokens == tokens
    else:
        assert seen.completion_tokens is not None


# ------------------------------------------------------------------------------------------------ text


@every_engine
@both_ways
@both_doors
async def test_words(fleet: Fleet, name: str, stream: bool, door: str) -> None:
    """Text, reason and usage; the prompt counts what the engine counts."""
    fleet.recite(name, WORDS)
    seen = await fleet.ask(name, stream=stream, **ASKED[door])
    check(name, seen, WORDS, tokens_of(WORDS))
    assert isinstance(seen, Seen)
    prompt = tokenizer().render([{"role": "user", "content": "What does a headgate do?"}])
    special = door == "completions"
    if special:
        prompt = str(ASKED[door]["prompt"])
    assert seen.prompt_tokens == len(tokenizer().encode(prompt, add_special_tokens=special))


PROMPTS: dict[str, dict[str, Any]] = {
    "a chat": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Что делает шлюз?"},
            {"role": "assistant", "content": "Открывается."},
            {"role": "user", "content": [{"type": "text", "text": "水闸"}, {"type": "text", "text": "?"}]},
        ]
    },
    "a text": {"prompt": "def open_gate(level):\n    return level > "},
}


@every_engine
@pytest.mark.parametrize("prompt", PROMPTS)
async def test_every_engine_reads_the_same(fleet: Fleet, name: str, prompt: str) -> None:
    """Left to itself an engine says a hash of the ids that it was given: one wrong token, a second BOS, a
    missing turn gives other words."""
    fleet.recite(name, None)
    asked = {**PROMPTS[prompt], "max_tokens": 24}
    if "messages" in asked:
        ids = tokenizer().encode(tokenizer().render(asked["messages"]), add_special_tokens=False)
    else:
        ids = tokenizer().encode(asked["prompt"], add_special_tokens=True)
    speech = Speaker(tokenizer()).speak(ids)
    said = tokenizer().decode([speech.next() for _ in range(24)])
    for stream in (True, False):
        seen = await fleet.ask(name, stream=stream, **asked)
        assert isinstance(seen, Seen)
        assert (seen.only.text, seen.prompt_tokens) == (said, len(ids))


@every_engine
@both_ways
async def test_usage_is_told_to_those_who_ask(fleet: Fleet, name: str, stream: bool) -> None:
    fleet.recite(name, "Yes.")
    seen = await fleet.ask(
        name, stream=stream, **({"stream_options": {"include_usage": False}} if stream else {})
    )
    assert isinstance(seen, Seen)
    assert (seen.only.text, seen.completion_tokens is None) == ("Yes.", stream)


@every_engine
@both_ways
@both_doors
async def test_characters_in_pieces(fleet: Fleet, name: str, stream: bool, door: str) -> None:
    """Every byte is a token, so that characters are split over events at every place."""
    fleet.recite(name, SIGNS, spelled=True)
    seen = await fleet.ask(name, stream=stream, **ASKED[door])
    text = SIGNS
    if stream and Difference.BROKEN_CHARACTERS in ENGINES[name].differs:
        text = "".join(sign if sign.isascii() else "\ufffd" * len(sign.encode()) for sign in SIGNS)
    check(name, seen, text, tokens_of(SIGNS, spelled=True))


@every_engine
@both_ways
@both_doors
async def test_nothing_to_say(fleet: Fleet, name: str, stream: bool, door: str) -> None:
    """A model that ends at once gives an empty answer, which is an answer."""
    fleet.recite(name, "")
    check(name, await fleet.ask(name, stream=stream, **ASKED[door]), "", 1)


@every_engine
@both_ways
async def test_white_space_is_text(fleet: Fleet, name: str, stream: bool) -> None:
    """At the beginning, at the end, and alone."""
    for text in ("\n\n", " ", "  The gate \n"):
        fleet.recite(name, text, spelled=True)
        check(name, await fleet.ask(name, stream=stream), text, tokens_of(text, spelled=True))


@every_engine
@both_ways
async def test_text_that_repeats_itself(fleet: Fleet, name: str, stream: bool) -> None:
    """What comes again is not taken for all text so far, nor the other way round."""
    for text in ("aaaaaa", "ha ha ha ha", "no no, no no, no"):
        fleet.recite(name, text, spelled=True)
        check(name, await fleet.ask(name, stream=stream), text, tokens_of(text, spelled=True))


@every_engine
@both_ways
async def test_the_length_ends_it(fleet: Fleet, name: str, stream: bool) -> None:
    fleet.recite(name, "abcdefghij", spelled=True)
    seen = await fleet.ask(name, stream=stream, max_tokens=4)
    untold = not stream and Difference.WHOLE_LENGTH_UNTOLD in ENGINES[name].differs
    check(name, seen, "abcd", 4, "stop" if untold else "length")


@every_engine
@both_ways
async def test_no_more_is_counted_than_was_asked_for(fleet: Fleet, name: str, stream: bool) -> None:
    """A guess by the bytes of the text stops at the bound, and is the bound where that ended the answer."""
    fleet.recite(name, "internationalisation " * 50)
    seen = await fleet.ask(name, stream=stream, max_tokens=12)
    assert isinstance(seen, Seen), seen
    assert seen.completion_tokens is not None
    assert seen.completion_tokens <= 12
    if seen.only.reason == "length":
        assert seen.completion_tokens == 12


# ------------------------------------------------------------------------------------------- stop strings

STOPS = {
    "in the middle": ("The gate STOPs here", ["STOP"], "The gate "),
    "at the beginning": ("STOP it", ["STOP"], ""),
    "at the end": ("The gate STOP", ["STOP"], "The gate "),
    "begun and not finished": ("The STO gate ST", ["STOP"], None),
    "the first of two": ("one two three", ["three", "two"], "one "),
    "one within the other": ("one two three", ["o three", "two"], "one "),
    "begun twice": ("SSTSTOP!", ["STOP"], "SST"),
    "of signs": ("Шлюз 🚪 открыт", ["🚪 о"], "Шлюз "),
    "a line end": ("one\ntwo\n", ["\n"], "one"),
}


@every_engine
@both_ways
@pytest.mark.parametrize("case", STOPS)
async def test_stop_strings(fleet: Fleet, name: str, stream: bool, case: str) -> None:
    """Never shown, not even their beginning, though each of their bytes comes in an event of its own."""
    said, stops, text = STOPS[case]
    fleet.recite(name, said, spelled=True)
    seen = await fleet.ask(name, stream=stream, stop=stops)
    if case == "of signs" and stream and Difference.BROKEN_CHARACTERS in ENGINES[name].differs:
        return  # there is no such sign in its text
    assert isinstance(seen, Seen)
    assert seen.choices == {0: Choice(text=said if text is None else text, reason="stop")}


# ------------------------------------------------------------------------------------------ several choices


@every_engine
@both_ways
@both_doors
async def test_several_choices(fleet: Fleet, name: str, stream: bool, door: str) -> None:
    """Each is whole, with a number of its own; the prompt counts once."""
    fleet.recite(name, WORDS)
    one = await fleet.ask(name, stream=stream, **ASKED[door])
    seen = await fleet.ask(name, stream=stream, n=3, **ASKED[door])
    assert isinstance(one, Seen)
    assert isinstance(seen, Seen)
    assert seen.choices == dict.fromkeys(range(3), Choice(text=WORDS, reason="stop"))
    assert seen.prompt_tokens == one.prompt_tokens
    if Difference.COUNTED_HERE not in ENGINES[name].differs:
        assert seen.completion_tokens == 3 * tokens_of(WORDS)


# ---------------------------------------------------------------------------------------------- tool calls

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "open_gate",
            "description": "Opens a gate.",
            "parameters": {
                "type": "object",
                "properties": {"gate": {"const": "Шлюз 🚪"}, "centimetres": {"type": "integer"}},
                "required": ["gate", "centimetres"],
            },
        },
    }
]


@every_engine
@both_ways
async def test_tool_calls(fleet: Fleet, name: str, stream: bool) -> None:
    """One call with its arguments put together from their pieces; it is the reason, and there is no text."""
    fleet.recite(name, "I would rather not.", spelled=True)
    choice = {"type": "function", "function": {"name": "open_gate"}}
    seen = await fleet.ask(name, stream=stream, tools=TOOLS, tool_choice=choice)
    if Difference.NO_TOOLS in ENGINES[name].differs:
        assert seen == Refused(400, "unsupported_parameter", "tools")
        return
    assert isinstance(seen, Seen)
    [[called, arguments]] = seen.only.calls
    assert called == "open_gate"
    assert json.loads(arguments) == {"gate": "Шлюз 🚪", "centimetres": 7}
    assert (seen.only.text, seen.only.reason) == ("", "tool_calls")


# ------------------------------------------------------------------------------------------ log probabilities


@every_engine
@both_ways
@both_doors
async def test_logprobs(fleet: Fleet, name: str, stream: bool, door: str) -> None:
    """One entry for each token of the text, in OpenAI's shape for the door."""
    fleet.recite(name, "The gate opens.")
    differs = ENGINES[name].differs
    seen = await fleet.ask(name, stream=stream, logprobs=True if door == "chat" else 1, **ASKED[door])
    none = Difference.NO_LOGPROBS if door == "chat" else Difference.NO_COMPLETION_LOGPROBS
    if differs & {Difference.NO_LOGPROBS, none}:
        assert seen == Refused(400, "unsupported_parameter", "logprobs")
        return
    assert isinstance(seen, Seen)
    said = [token for token, _ in seen.only.logprobs if token != "<|eot_id|>"]  # some tell that of the end
    assert "".join(said) == "The gate opens." == seen.only.text
    assert all(value <= 0 for _, value in seen.only.logprobs)
    assert len(said) + 1 == seen.completion_tokens


# ------------------------------------------------------------------------------------------------- reasoning

THINKING = {name: row for name, row in ENGINES.items() if Difference.NO_REASONING not in row.differs}


@pytest.mark.parametrize("name", {name: row for name, row in THINKING.items() if row.kind != "openai"})
@both_ways
async def test_reasoning(tmp_path: Path, name: str, stream: bool) -> None:
    """What a model thinks has one name, whatever its engine calls it."""
    engines = {name: ENGINES[name]}
    async with a_fleet(tmp_path, engines, says="Hm, so.Open.", spells=True, reasoning_tokens=7) as fleet:
        seen = await fleet.ask(name, stream=stream)
    assert isinstance(seen, Seen)
    assert seen.choices == {0: Choice(text="Open.", reasoning="Hm, so.", reason="stop")}
    assert seen.completion_tokens == 13


# ------------------------------------------------------------------------------ put together by the gateway


@every_engine
async def test_whole_answers_made_of_streams(streaming: Fleet, name: str) -> None:
    """The client did not ask for a stream, the gateway did: the answer is as whole as the engine's own."""
    differs = ENGINES[name].differs
    streaming.recite(name, WORDS)
    check(name, await streaming.ask(name, stream=False), WORDS, tokens_of(WORDS))
    seen = await streaming.ask(name, stream=False, n=2, **ASKED["completions"])
    assert isinstance(seen, Seen)
    assert seen.choices == dict.fromkeys(range(2), Choice(text=WORDS, reason="stop"))
    if Difference.NO_TOOLS not in differs:
        seen = await streaming.ask(name, stream=False, tools=TOOLS, tool_choice="required")
        assert isinstance(seen, Seen)
        assert [called for called, _ in seen.only.calls] == ["open_gate"]
        assert json.loads(seen.only.calls[0][1])["gate"] == "Шлюз 🚪"
    if Difference.NO_LOGPROBS not in differs:
        seen = await streaming.ask(name, stream=False, logprobs=True)
        assert isinstance(seen, Seen)
        assert "".join(token for token, _ in seen.only.logprobs).startswith(WORDS)
    streaming.recite(name, "abcdefghij", spelled=True)
    check(name, await streaming.ask(name, stream=False, max_tokens=4), "abcd", 4, "length")
    said, stops, text = STOPS["in the middle"]
    streaming.recite(name, said, spelled=True)
    seen = await streaming.ask(name, stream=False, stop=stops)
    assert isinstance(seen, Seen)
    assert seen.choices == {0: Choice(text=str(text), reason="stop")}


# ---------------------------------------------------------------------------------------------- the table


async def test_every_kind_has_a_row() -> None:
    """A new adapter is in this suite, or the suite fails."""
    assert {row.kind for row in ENGINES.values()} == set(REGISTRY.kinds())


@pytest.mark.parametrize("name", tables())
async def test_the_page_says_the_same(name: str) -> None:
    """docs/engines.md shows these tables between its markers."""
    page = (REPO / "docs" / "engines.md").read_text()
    begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
    shown = page[page.index(begin) + len(begin) : page.index(end)]
    assert shown.splitlines() == tables()[name]
