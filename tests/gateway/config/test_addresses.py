# ruff: noqa: E501  # a row of a table here is a whole message
"""Replica URLs and listeners: one spelling out, and no way to the metadata service."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.addresses import base_url, host_port, is_loopback


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("http://gpu1:8000", "http://gpu1:8000"),
        ("HTTP://GPU1:8000/", "http://gpu1:8000"),
        ("https://engine.example.com", "https://engine.example.com"),
        ("https://engine.example.com/v2//", "https://engine.example.com/v2"),
        ("http://10.0.0.7:80/base/path", "http://10.0.0.7:80/base/path"),
        ("http://[::1]:9000/", "http://[::1]:9000"),
        ("http://[2001:DB8:0:0::1]", "http://[2001:db8::1]"),
        ("http://short_pool_1:8000", "http://short_pool_1:8000"),
    ],
)
def test_good_urls_are_normalised(written: str, normal: str) -> None:
    assert base_url(written) == normal
    assert base_url(normal) == normal


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("gpu1:8000", "http"), ("file:///etc/passwd", "http"), ("gopher://x", "http"), ("ftp://x", "http"),
        ("http:gpu1", "http"), ("//gpu1", "http"), ("", "http"),
        ("http://user:pw@gpu1", "credentials"), ("http://a@b", "credentials"),
        ("http://gpu1/?x=1", "query"), ("http://gpu1?", "query"), ("http://gpu1/#f", "query"),
        ("http://gpu1:0", "host and port"), ("http://gpu1:99999", "host and port"), ("http://gpu1:", "host and port"),
        ("http://gpu1:x", "host and port"), ("http://", "host and port"), ("http://:80", "host and port"),
        ("http://gpu1.", "host and port"), ("http://-gpu", "host and port"), ("http://a..b", "host and port"),
        ("http://[::1", "host and port"), ("http://[zz]", "host and port"),
        ("http://gpu 1", "blank"), ("http://gpu1\n", "blank"), ("http://gpu1\\@x", "blank"), ("http://пул", "ASCII"),
        ("http://gpu1/../admin", "path"), ("http://gpu1/a|b", "path"),
        ("http://0x7f.1", "four plain"), ("http://2852039166", "four plain"), ("http://0251.254.169.254", "four plain"),
        ("http://127.1", "four plain"), ("http://1.2.3.4.5", "four plain"), ("http://0xa9fea9fe", "four plain"),
        ("http://169.254.169.254", "metadata"), ("http://169.254.0.1:80/x", "link-local"),
        ("http://[fe80::1]", "link-local"), ("http://[fe80::1%25eth0]", "zone"), ("http://[fe80::1%eth0]", "zone"),
        ("http://[::ffff:169.254.169.254]", "metadata"), ("http://[::ffff:a9fe:a9fe]:80", "metadata"),
        ("http://[fd00:ec2::254]", "metadata"), ("http://metadata.google.internal", "metadata"),
        ("http://METADATA.google.internal", "metadata"), ("http://100.100.100.200", "metadata"),
        ("http://0.0.0.0:8000", "one machine"), ("http://[::]:8000", "one machine"), ("http://224.0.0.1", "one machine"),
    ],
)  # fmt: skip
def test_bad_urls_are_refused(written: str, words: str) -> None:
    """Also the metadata address in every spelling that a resolver would read as one."""
    with pytest.raises(ValueError, match=words):
        base_url(written)


@given(
    st.text(alphabet="htps:/.@[]%?#0123456789abcdefx-_\\ é", max_size=40).map(lambda tail: "http://" + tail)
)
def test_any_text_is_normalised_or_refused(written: str) -> None:
    """What is accepted is a fixed point."""
    try:
        normal = base_url(written)
    except ValueError:
        return
    assert base_url(normal) == normal
    assert "@" not in normal.split("/")[2]


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:8080", ("::1", 8080)),
        ("gateway.local:65535", ("gateway.local", 65535)),
    ],
)
def test_listeners(written: str, address: tuple[str, int]) -> None:
    assert host_port(written) == address


@pytest.mark.parametrize(
    "written",
    ["", "8080", ":8080", "localhost", "localhost:", "h:65536", "h:-1", "h:8 ", "::1:80", "[::1]", "[x]:1"],
)
def test_bad_listeners(written: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        host_port(written)


def test_loopback_is_known_by_address_and_by_one_name() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "gateway")))
