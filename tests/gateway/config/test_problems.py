"""How a problem reads, and what it never shows."""

from gateway.config.positions import parse
from gateway.config.problems import ConfigInvalid, Problem, Report, nearest, written


def test_a_problem_reads_like_a_compiler_message() -> None:
    problem = Problem(
        12, 13, "pools.short-pool.engine", "'tgii' is not an engine kind", "did you mean 'tgi'?"
    )
    assert str(problem) == (
        "routes.yaml:12:13: pools.short-pool.engine: 'tgii' is not an engine kind (did you mean 'tgi'?)"
    )
    assert str(Problem(0, 0, "", "cannot be read")) == "routes.yaml: cannot be read"


def test_paths_read_like_code_and_end_where_keys_may_be_secret() -> None:
    assert written(("pools", "p", "replicas", 0, "url")) == "pools.p.replicas[0].url"
    assert written(("models", "two words", "context")) == "models.'two words'.context"
    assert written(("pools", "p", "upstream", "headers", "Bearer hunter2")) == "pools.p.upstream.headers"


def test_hints_name_the_nearest_or_all_of_a_few() -> None:
    assert nearest("tgii", ("trtllm", "tgi")) == "did you mean 'tgi'?"
    assert nearest("zzz", ("b", "a")) == "valid: a, b"
    assert nearest("zzz", map(str, range(1000, 1020))) == ""
    assert nearest("x", ()) == ""


def test_values_are_shown_as_written_unless_they_may_be_secret() -> None:
    text = """\
a: ${PASSWORD}
n: 12
q: "12"
keys: [{id: hunter2}]
upstream: {api_key_file: hunter2}
url: http://u:hunter2@h
long: %s
m: {}
""" % ("x" * 100)
    report = Report("routes.yaml", parse(text.encode()))
    assert report.shown(("a",)) == "'${PASSWORD}'"
    assert report.shown(("n",)) == "12"
    assert report.shown(("q",)) == "'12'"
    assert report.shown(("m",)) == report.shown(("absent",)) == "this"
    assert len(report.shown(("long",))) < 70
    for path in (("keys", 0, "id"), ("upstream", "api_key_file"), ("url",)):
        assert report.shown(path) == "the value"


def test_what_is_spoiled_is_told_once_and_is_not_sound() -> None:
    report = Report("routes.yaml", parse(b"a: {b: {c: 1}, d: 2}\n"))
    report.spoil(("a", "b"), "is bad")
    report.error(("a", "b", "c"), "is bad because of that")
    report.error(("a", "d"), "is bad by itself")
    assert [problem.path for problem in report.errors] == ["a.b", "a.d"]
    assert not report.sound(("a",))
    assert not report.sound(("a", "b"))
    assert not report.sound(("a", "b", "c"))
    assert report.sound(("a", "d"))


def test_problems_come_in_the_order_of_lines_and_the_error_prints_them_all() -> None:
    report = Report("routes.yaml", parse(b"a: 1\nb: 2\n"))
    report.error(("b",), "second")
    report.error(("a",), "first")
    report.error(("b",), "second")
    error = ConfigInvalid(report.errors)
    assert str(error) == "routes.yaml:1:4: a: first\nroutes.yaml:2:4: b: second"
