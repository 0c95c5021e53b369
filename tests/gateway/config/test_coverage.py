"""First match wins: what is left for each rule, compared with trying every request."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from gateway.config.coverage import coverage
from gateway.config.snapshot import PriorityClass, Range, When

MODELS = ("a", "b", "c")
TENANTS = ("t", "anonymous")


def test_the_shipped_shape() -> None:
    """Short, long, code, else: each rule is reached by its own models, and nothing is left over."""
    rules = [
        When(model=("a",), estimated_total_tokens=Range(lte=4096)),
        When(model=("a",)),
        When(model=("b",)),
        When(),
    ]
    found = coverage(rules, MODELS, TENANTS)
    assert found.reaching == ({"a"}, {"a"}, {"b"}, {"c"})
    assert found.untaken == frozenset()


def test_two_halves_take_everything_together() -> None:
    """No single rule covers the last one, but both together do."""
    halves = [When(prompt_tokens=Range(lt=100)), When(prompt_tokens=Range(gte=100)), When(model=("a",))]
    assert coverage(halves, MODELS, TENANTS).reaching[2] == frozenset()
    gap = [When(prompt_tokens=Range(lt=100)), When(prompt_tokens=Range(gt=100)), When(model=("a",))]
    assert coverage(gap, MODELS, TENANTS).reaching[2] == {"a"}


def test_if_clamped_may_reach_more_than_it_surely_takes() -> None:
    """A second short rule is reached by what the first leaves; and neither leaves nothing over."""
    short = Range(lte=100)
    rules = [When(estimated_total_tokens=short), When(estimated_total_tokens=short, if_clamped=16)]
    found = coverage(rules, MODELS, TENANTS)
    assert found.reaching[1] == frozenset(MODELS)
    assert found.untaken == frozenset(MODELS)


def test_an_unknown_condition_takes_nothing() -> None:
    assert coverage([None, When()], MODELS, TENANTS).reaching == (frozenset(), frozenset(MODELS))


def test_an_impossible_range_reaches_nothing() -> None:
    found = coverage([When(prompt_tokens=Range(gt=10, lt=5))], MODELS, TENANTS)
    assert found.reaching == (frozenset(),)
    assert found.untaken == frozenset(MODELS)


bounds = st.none() | st.integers(0, 4)
ranges = st.none() | st.builds(Range, lt=bounds, lte=bounds, gt=bounds, gte=bounds)
conditions = st.builds(
    When,
    model=st.lists(st.sampled_from(MODELS), unique=True, max_size=2).map(tuple),
    tenant=st.lists(st.sampled_from(TENANTS), unique=True, max_size=1).map(tuple),
    priority_class=st.lists(st.sampled_from(PriorityClass), unique=True, max_size=2).map(tuple),
    estimated_total_tokens=ranges,
    prompt_tokens=ranges,
    stream=st.none() | st.booleans(),
)


def matches(
    when: When, model: str, tenant: str, level: PriorityClass, stream: bool, total: int, prompt: int
) -> bool:
    return (
        (not when.model or model in when.model)
        and (not when.tenant or tenant in when.tenant)
        and (not when.priority_class or level in when.priority_class)
        and (when.stream is None or when.stream == stream)
        and (when.estimated_total_tokens is None or when.estimated_total_tokens.holds(total))
        and (when.prompt_tokens is None or when.prompt_tokens.holds(prompt))
    )


@given(st.lists(conditions, max_size=5))
def test_it_agrees_with_trying_every_request(rules: list[When]) -> None:
    reached: list[set[str]] = [set() for _ in rules]
    untaken: set[str] = set()
    # Numbers up to 6 are enough: all bounds are below.
    for request in product(MODELS, TENANTS, PriorityClass, (True, False), range(7), range(7)):
        for index, rule in enumerate(rules):
            if matches(rule, *request):
                reached[index].add(request[0])
                break
        else:
            untaken.add(request[0])
    found = coverage(rules, MODELS, TENANTS)
    assert [set(models) for models in found.reaching] == reached
    assert found.untaken == untaken
