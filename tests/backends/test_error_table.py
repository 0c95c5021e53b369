"""Engines' tables of errors: total, in order, and each row as the engine's decoder reads it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.contract import ErrorKind
from backends.decoding import EngineWords, engine_words, lenient_json
from backends.error_table import BY_STATUS, TOO_LONG, ErrorTable, Example, Rule, event
from backends.openai_errors import OPENAI
from backends.sse import SseFramer
from gateway.cli.error_page import COLUMNS, failure_of, rows, table_of
from tests.backends.vectors import adapter_of, body_of, load, names

every_engine = pytest.mark.parametrize("engine", COLUMNS)
WORDS = st.builds(
    EngineWords, st.text(max_size=40), st.text(max_size=20), st.none() | st.integers(400, 599), st.none()
)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "Prompt length (5056) exceeds maximum input length (2048)",
        "[TensorRT-LLM][ERROR] Assertion failed: Prompt length (5056) exceeds maximum input length (2048).",
        "The sum of prompt length (38049.0), query length (0) should not exceed max_num_tokens (32768)",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5 `inputs`",
        "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000",
        "`default_max_tokens` (-5) should be greater than 0",
    ],
)
def test_too_long_is_told_in_many_words(message: str) -> None:
    """Every engine has its own."""
    assert TOO_LONG.search(message)
    assert not TOO_LONG.search("length of the input")


@settings(deadline=None)
@given(st.integers() | st.none())
def test_every_status_has_a_kind(status: int | None) -> None:
    """Total, and the engine's fault where nothing is known."""
    table = ErrorTable(BY_STATUS)
    assert table(status, EngineWords("boom")) in ErrorKind


@every_engine
@settings(deadline=None, max_examples=30)
@given(status=st.none() | st.integers(400, 599), words=WORDS)
def test_a_table_has_a_word_for_everything(engine: str, status: int | None, words: EngineWords) -> None:
    """Whatever an engine may say."""
    assert table_of(engine)(status, words) in ErrorKind


@every_engine
def test_every_row_is_read_as_its_rule_says(engine: str) -> None:
    """Through the decoder of that engine; and in the middle of an answer nothing is to be retried."""
    for row in rows(engine):
        assert row.error.kind is row.expected, row
        refused = row.expected in (ErrorKind.CLIENT, ErrorKind.CONTEXT_LENGTH, ErrorKind.UNSUPPORTED)
        assert row.error.retryable is (not row.begun and not refused), row


@every_engine
def test_no_row_stands_in_anothers_shadow(engine: str) -> None:
    """An example is taken by the rule under whose name it is listed, by none above it; names are unique, and
    every rule of the engine's own has an example."""
    table = table_of(engine)
    listed = [rule.name for rule in table.rules]
    assert len(set(listed)) == len(listed)
    assert set(table.examples) <= set(listed)
    for name, examples in table.examples.items():
        for example in examples:
            frames = [frame.data for frame in SseFramer().feed(example.body) if frame.data]
            data = frames[0] if frames else example.body
            try:
                words = engine_words(lenient_json(data))
            except ValueError:
                words = None
            words = words or EngineWords(data.decode())
            status = None if 200 <= example.status < 300 else example.status
            assert table.rule(status, words).name == name, example
    openai = {rule.name for rule in (*OPENAI.rules, *BY_STATUS)}
    shared = {"words of an overload", "words of a failed generation"} if engine == "tgi" else set()
    assert set(listed) - openai - shared <= set(table.examples)


def test_rules_are_tried_from_the_top() -> None:
    """And what nobody knows is the engine's fault."""
    first = Rule("first", "overload", ErrorKind.OVERLOADED, {400})
    table = ErrorTable((first, *BY_STATUS))
    assert table.rule(400, EngineWords("no")) is first
    assert table(None, EngineWords("no")) is ErrorKind.ENGINE
    assert table(None, EngineWords("no", code=400)) is ErrorKind.OVERLOADED


def test_a_400_of_trtllm_proves_nothing() -> None:
    """The same status, and only words about a value make it the client's."""
    kinds = {
        row.error.kind
        for row in rows("trtllm")
        if row.example.status == 400 and row.error.kind is not ErrorKind.CONTEXT_LENGTH
    }
    assert kinds == {ErrorKind.CLIENT, ErrorKind.ENGINE}


def test_every_engine_has_the_situations_that_it_can_be_in() -> None:
    """What a table says nothing of is named here: trtllm-serve and llama.cpp have no overload by load."""
    wanted = {"overload", "validation", "context length", "model absent", "auth", "crash"}
    for engine in COLUMNS:
        missing = wanted - {row.situation for row in rows(engine)}
        assert missing == ({"overload", "auth"} if engine == "trtllm" else set()), engine


@pytest.mark.parametrize("name", names("error"))
def test_recorded_errors_fall_under_rules(name: str) -> None:
    """Every recorded error is taken by the rules, or the ending, whose situation is its class."""
    vector = load(name)
    response = vector["response"]
    error = failure_of(adapter_of(vector), Example(response["status"], body_of(response)))
    assert error.kind in {vector["expect"]["error"]["class"], *vector["expect"]["error"].get("also", ())}


def test_an_event_of_a_stream_is_one() -> None:
    """The helper that examples are written with."""
    assert event({"error": "x"}, done=True).body == b'data: {"error":"x"}\n\ndata: [DONE]\n\n'
