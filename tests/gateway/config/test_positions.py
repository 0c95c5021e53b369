"""YAML with lines: what is accepted, what is refused, and where the refusal points."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.positions import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    Document,
    Position,
    Unreadable,
    Variable,
    parse,
    resolved,
    values,
)


def plain(text: str, **environ: str) -> object:
    document = parse(text.encode())
    data, faults = values(document, environ)
    assert not (document.faults or faults)
    return data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-7", -7), ("+7", 7), ("0", 0), ("1.5", 1.5), (".5", 0.5), ("1e3", 1000.0), ("2.", 2.0),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"),
        ("0123", "0123"), ("0x1F", "0x1F"), ("1_000", "1_000"), ("2026-01-01", "2026-01-01"),
        ("12:30:00", "12:30:00"),
        ("9" * 18, int("9" * 18)), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    """`off` stays a word and 0123 is nobody's number."""
    assert resolved(text) == value
    assert type(resolved(text)) is type(value)


def test_keys_are_text_and_quotes_make_text() -> None:
    assert plain("on: 'off'\n1: \"2\"\nnull: |\n  3\n") == {"on": "off", "1": "2", "null": "3\n"}


def test_a_byte_order_mark_is_no_fault() -> None:
    assert plain("\ufeffa: 1") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a:\n\tb: 1\n", 2, 1, "a tab"),
        ("a: 1\nb: [1,\n", 2, 7, "not YAML"),
        ("a: 1\n---\nb: 2\n", 2, 1, "second document"),
        ("", 1, 1, "empty"),
        ("# only a comment\n", 1, 1, "empty"),
        ("a: *b\n", 1, 4, "no anchor"),
        ("a: &x\n  b: *x\n", 2, 6, "no anchor"),
        ("? [1]\n: 2\n", 1, 3, "a key must be text"),
        ("a: 1\nb: \x07\n", 2, 4, "control character"),
        ("a: {k: ${V}}\n", 1, 9, "needs quotes"),
    ],
)
def test_syntax_faults_have_a_place_and_one_line(text: str, line: int, column: int, words: str) -> None:
    with pytest.raises(Unreadable, match=words) as caught:
        parse(text.encode())
    assert caught.value.position == Position(line, column)
    assert "\n" not in caught.value.message


def test_text_that_is_not_utf8_names_its_line() -> None:
    with pytest.raises(Unreadable, match="UTF-8") as caught:
        parse(b"a: 1\nb: \xff\n")
    assert caught.value.position.line == 2


def test_a_file_of_100_mib_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(Unreadable, match="larger than 4 MiB"):
        parse(b"a" * (MAX_BYTES + 1))


def bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


def test_an_alias_bomb_is_refused_at_once() -> None:
    """Ten to the ninth values in ten lines."""
    started = time.process_time()
    with pytest.raises(Unreadable, match=f"more than {MAX_NODES} values"):
        parse(bomb(10, 10).encode())
    assert time.process_time() - started < 1


@pytest.mark.parametrize("text", ["[" * 5000, "a: " + "{a: " * 5000, bomb(MAX_DEPTH + 3, 1)])
def test_deep_nesting_is_refused_written_out_or_by_aliases(text: str) -> None:
    with pytest.raises(Unreadable, match="levels deep"):
        parse(text.encode())


def test_aliases_are_the_same_value() -> None:
    assert plain("a: &x {k: [1, 2]}\nb: *x\n*x2 : 1\n".replace("*x2 ", "c")) == {
        "a": {"k": [1, 2]},
        "b": {"k": [1, 2]},
        "c": 1,
    }


def test_tags_duplicates_and_merges_are_told_together() -> None:
    document = parse(b"a: !!python/object:os.system x\nb: 1\nb: 2\nc:\n  - {<<: {d: 1}, e: !mine [1]}\n")
    found = [(fault.path, fault.position.line, fault.spoils) for fault in document.faults]
    assert found == [
        (("a",), 1, True),
        (("b",), 3, False),
        (("c", 0, "<<"), 5, False),
        (("c", 0, "e"), 5, True),
    ]
    assert "line 2" in document.faults[1].message
    assert values(document, {})[0] == {"a": "x", "b": 1, "c": [{"e": [1]}]}


@pytest.mark.parametrize(
    ("path", "line", "column"),
    [
        (("pools",), 2, 1),
        (("pools", "p"), 3, 3),
        (("pools", "p", "n"), 4, 9),
        (("pools", "p", "list", 1), 7, 9),
        (("pools", "p", "list", 2, "k"), 8, 14),
        (("pools", "p", "absent", "deeper"), 3, 3),
        (("pools", "p", "list", 9), 5, 5),
        ((), 1, 1),
    ],
)
def test_places_of_values(path: tuple[str | int, ...], line: int, column: int) -> None:
    """A scalar is where it stands, a container where its key stands, what is absent where it should be."""
    document = parse(
        b"version: 1\npools:\n  p:\n    n:  7\n    list:\n      - a\n      - b\n      - {k:  1}\n"
    )
    assert document.locate(path) == Position(line, column)
    if path:
        assert document.locate(path, key=True).line == line


# ------------------------------------------------------------------------------------------ variables


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "one"), ("x-${A}-${B}", "x-one-2"), ("${NONE:-d}", "d"), ("${EMPTY:-d}", "d"),
        ("${EMPTY}", ""),
        ("${A:-d}", "one"), ("$$A", "$A"), ("$${A}", "${A}"), ("$A $ 5", "$A $ 5"), ("${NONE:-}", ""),
        ("${NONE:-http://h:1/p?x}", "http://h:1/p?x"), ("${YAML}", "{a: [1]}"), ("${DOLLAR}", "${A}"),
    ],
)  # fmt: skip
def test_variables_are_replaced_once_and_after_parsing(text: str, value: str) -> None:
    """What a variable holds is never YAML and never a variable again."""
    environ = {"A": "one", "B": "2", "EMPTY": "", "YAML": "{a: [1]}", "DOLLAR": "${A}"}
    assert plain(f"k: '{text}'", **environ) == {"k": value}
    assert plain(f"k: {text}", **environ) == {"k": value}


def test_only_a_scalar_that_is_one_variable_may_be_typed() -> None:
    data = plain('a: ${N}\nb: "${N}"\nc: ${N}0\nd: $$\n', N="64")
    assert isinstance(data, dict)
    assert [isinstance(data[key], Variable) for key in "abcd"] == [True, True, False, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${NONE}", "NONE is not set"),
        ("${NONE}${OTHER}", "NONE, OTHER is not set"),
        ("${", "begins no variable"),
        ("${1X}", "begins no variable"),
        ("${A:?needed}", "begins no variable"),
        ("${A:-${B}}", "begins no variable"),
    ],
)
def test_a_bad_variable_is_told_with_its_line(text: str, words: str) -> None:
    data, faults = values(parse(f"a: 1\nb:\n  - '{text}'\n".encode()), {"A": "x"})
    assert [(fault.path, fault.position, fault.spoils) for fault in faults] == [
        (("b", 0), Position(3, 5), True)
    ]
    assert words in faults[0].message
    assert data == {"a": 1, "b": [text]}


@given(st.text())
def test_any_text_is_a_document_or_unreadable(text: str) -> None:
    """No other exception, and a place within the text."""
    try:
        document = parse(text.encode("utf-8", "surrogatepass"))
    except Unreadable as error:
        assert 1 <= error.position.line <= max(1, len(text.splitlines()) + 1)
        assert error.position.column >= 1
    else:
        assert isinstance(document, Document)
        values(document, {})
