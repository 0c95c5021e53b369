"""Keys -> tenants; one answer for every wrong key; no way from one listener's key to the other's door."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.snapshot import ANONYMOUS, Server
from gateway.errors import GatewayError, InvalidKey, NotAdmin
from gateway.tenants.authentication import KEY_PREFIX, Authenticator, bearer, digest_of, new_key
from tests.gateway.builders import a_snapshot, a_tenant

ADMIN = "admin-key-of-at-least-32-characters"
SNAPSHOT = a_snapshot(tenants=[a_tenant("acme", keys=["one", "two"]), a_tenant("globex", keys=["three"])])
GUARD = Authenticator(digest_of(ADMIN))


def who(authorization: bytes | None, snapshot=SNAPSHOT):
    tenant, key = GUARD.tenant(snapshot, authorization)
    return tenant.name, key and key.id


def test_keys_are_stored_as_their_sha256():
    assert digest_of("one") == hashlib.sha256(b"one").hexdigest()


def test_new_keys_are_long_and_random():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith(KEY_PREFIX) and len(key) >= 32 for key in keys)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (b"Bearer one", "one"),
        (b"bearer one", "one"),
        (b"BEARER   one ", "one"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"Basic one", None),
        (b"Bearerone", None),
        (b"one", None),
        (b"", None),
        (None, None),
        (b"Bearer \xff", "\xff"),
    ],
)
def test_the_bearers_key(header, key):
    assert bearer(header) == key


@pytest.mark.parametrize(
    ("header", "expected"),
    [(b"Bearer one", ("acme", "k0")), (b"Bearer two", ("acme", "k1")), (b"Bearer three", ("globex", "k0"))],
)
def test_each_key_has_its_tenant(header, expected):
    assert who(header) == expected


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"Bearer four", id="unknown"),
        pytest.param(b"Bearer onE", id="B34 nearly"),
        pytest.param(b"Bearer one, Bearer two", id="B32 two in one"),
        pytest.param(b"Bearer ' OR 1=1 --", id="B33 SQL"),
        pytest.param(b"Bearer *", id="B33 glob"),
        pytest.param(b"Bearer \x00", id="B33 NUL"),
        pytest.param(b"Bearer " + b"k" * 65536, id="B33 64 KiB"),
        pytest.param(b"Bearer \xff\xfe", id="not ASCII"),
        pytest.param(b"Bearer " + digest_of("one").encode(), id="the stored hash is no key"),
    ],
)
def test_every_wrong_key_gets_the_same_answer(header):
    """B35: no difference that tells a revoked key from one that never was."""
    with pytest.raises(InvalidKey) as refused:
        who(header)
    assert refused.value.status == 401
    assert refused.value.message == "This key is not valid."


@pytest.mark.parametrize("header", [None, b"", b"Basic b25l", b"Bearer"])
def test_no_key_is_told_how_to_send_one(header):
    """B31, B32."""
    with pytest.raises(InvalidKey, match="Bearer"):
        who(header)


def test_the_administrators_key_does_not_run_models():
    """B37."""
    with pytest.raises(NotAdmin) as refused:
        who(b"Bearer " + ADMIN.encode())
    assert refused.value.status == 403


def test_authentication_off_is_anonymous_or_the_tenant_of_that_name():
    off = Server(authentication="off")
    assert who(b"Bearer whatever", a_snapshot(server=off)) == ("anonymous", None)
    named = a_tenant("anonymous", max_tokens=7)
    assert GUARD.tenant(a_snapshot(server=off, tenants=[named]), None) == (named, None)
    assert ANONYMOUS.max_tokens is None


def test_the_admin_door():
    GUARD.require_admin(SNAPSHOT, b"Bearer " + ADMIN.encode())
    with pytest.raises(NotAdmin):
        GUARD.require_admin(SNAPSHOT, b"Bearer one")
    for header in (None, b"Bearer", b"Bearer four", b"Basic x"):
        with pytest.raises(InvalidKey):
            GUARD.require_admin(SNAPSHOT, header)


def test_the_admin_door_stays_shut_where_authentication_is_off():
    with pytest.raises(InvalidKey):
        GUARD.require_admin(a_snapshot(server=Server(authentication="off")), None)


def test_without_an_admin_key_nobody_is_admin():
    assert not Authenticator(None).is_admin(b"Bearer " + ADMIN.encode())
    assert not Authenticator(None).is_admin(None)


@given(st.binary(max_size=80))
def test_arbitrary_headers_never_raise_anything_else(header):
    for door in (GUARD.tenant, GUARD.require_admin):
        with pytest.raises(GatewayError) as refused:
            door(SNAPSHOT, header)
        assert refused.value.status in (401, 403)
