"""`server.redis_url`, taken apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.redis_urls import RedisUrl, parse_redis_url


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("redis://h", RedisUrl("server", (("h", 6379),))),
        ("redis://:secret@h:1/3", RedisUrl("server", (("h", 1),), db=3, password="secret")),
        ("redis://h?db=3", RedisUrl("server", (("h", 6379),), db=3)),
        ("rediss://zoe:p%40%2F%3A@[::1]:7?ca=/etc/ca.pem",
         RedisUrl("server", (("::1", 7),), tls=True, ca="/etc/ca.pem", username="zoe", password="p@/:")),
        ("unix:///run/redis.sock?db=2", RedisUrl("socket", path="/run/redis.sock", db=2)),
        ("unix://:p@/run/redis.sock", RedisUrl("socket", path="/run/redis.sock", password="p")),
        ("redis+sentinel://:p@a:1,b/mymaster/4?sentinel_password=q",
         RedisUrl("sentinel", (("a", 1), ("b", 26379)), service="mymaster", db=4, password="p",
                  sentinel_password="q")),
        ("rediss+cluster://a,b:2/0", RedisUrl("cluster", (("a", 6379), ("b", 2)), tls=True)),
    ],
)  # fmt: skip
def test_each_form(url: str, parsed: RedisUrl) -> None:
    assert parse_redis_url(url) == parsed


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://h", "begins with redis://, rediss://"),
        ("redis://", "an empty host"),
        ("redis+cluster://a,,b", "an empty host"),
        ("redis://h:x", "a port that is none"),
        ("redis://h:99999", "a port that is none"),
        ("redis://h/x", "a database's number"),
        ("redis://h/1?db=2", "more behind the hosts"),
        ("redis://h/1/2", "more behind the hosts"),
        ("redis://a,b", "several hosts"),
        ("redis+cluster://a/1", "a cluster has 0 only"),
        ("redis+sentinel://a", "the name that the sentinels"),
        ("unix://", "the path of a socket"),
        ("unix://h/x", "the path of a socket"),
        ("redis://h?ca=/x", "rediss://"),
        ("redis://h?timeout=1", "not 1 of those"),
        ("redis://h?timeout", "has a query"),
        ("redis://h#x", "has a `#`"),
    ],
)
def test_what_is_wrong(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        parse_redis_url(url)


@given(
    st.sampled_from(["redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "htp"]),
    st.text(),
    st.text(),
)
def test_no_secret_is_told(scheme: str, before: str, after: str) -> None:
    """Whatever is written around it, and whether or not it can be read."""
    url = f"{scheme}://{before}:hunter2@{after}"
    try:
        parsed = parse_redis_url(url)
    except ValueError as error:
        assert "hunter2" not in str(error)
    else:
        if parsed.password is not None and "hunter2" in parsed.password:
            assert "hunter2" not in repr(parsed) + str(parsed)
