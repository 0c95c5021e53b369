"""Prometheus' text as engines write it: read where it fits, skipped where it does not."""

import math

from hypothesis import given
from hypothesis import strategies as st

from backends.prometheus import read_samples

TEXT = b"""# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a"} 3.0
vllm:num_requests_running{engine="1",model_name="a"} 4.0 1700000000000
plain 1e3
odd{text="a \\"quoted\\" }, back\\\\slash\\nline", } 2
unset NaN
huge +Inf
broken{a="b 1
no_value
  spaced  {  a = "b" }   7
"""


def test_samples_are_summed_averaged_and_told_apart() -> None:
    samples = read_samples(TEXT)
    assert samples.sum("vllm:num_requests_running") == 7
    assert samples.mean("vllm:num_requests_running") == 3.5
    assert samples.sum("vllm:num_requests_running", engine="1") == 4
    assert samples.values_of("engine", "vllm:num_requests_running") == ["0", "1"]
    assert samples.sum("plain") == 1000
    assert samples.sum("gone", "plain") == 1000
    assert samples.sum("spaced", a="b") == 7


def test_labels_are_unescaped() -> None:
    (sample,) = read_samples(TEXT).of("odd")
    assert sample.labels["text"] == 'a "quoted" }, back\\slash\nline'


def test_what_does_not_fit_is_untold() -> None:
    """An unset summary is NaN, a broken line is no metric; neither is zero."""
    samples = read_samples(TEXT)
    for name in ("unset", "huge", "broken", "no_value", "never"):
        assert samples.sum(name) is None
        assert samples.mean(name) is None


@given(st.binary(max_size=300) | st.text(alphabet='ab:_{}=",\\ 01.eN#\n', max_size=200).map(str.encode))
def test_nothing_crashes_it(body: bytes) -> None:
    """Whatever comes, each sample is finite."""
    samples = read_samples(body)
    for name in ("a", "b", "ab", "a:b", "_"):
        assert all(math.isfinite(sample.value) for sample in samples.of(name))


@given(
    st.dictionaries(
        st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]*", fullmatch=True), st.text(max_size=8), max_size=3
    ),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_what_was_written_is_read(labels: dict[str, str], value: float) -> None:
    """Any label value in its escaped form, any finite number."""

    def escape(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    text = ",".join(f'{name}="{escape(told)}"' for name, told in labels.items())
    (sample,) = read_samples(f"metric{{{text}}} {value!r}\n".encode()).of("metric")
    assert (dict(sample.labels), sample.value) == (labels, value)
