"""The administrator's key: given, kept, or made and shown once."""

import os
import stat

import pytest

from gateway.admin.admin_key import FILE_NAME, MIN_LENGTH, AdminKeyRefused, find_admin_key
from gateway.tenants.authentication import digest_of

GIVEN = "g" * MIN_LENGTH


@pytest.mark.parametrize("loopback", [True, False])
def test_a_given_key_is_in_force_and_written_nowhere(tmp_path, loopback):
    key = find_admin_key(GIVEN, tmp_path, loopback=loopback)
    assert (key.digest, key.made) == (digest_of(GIVEN), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("weak", ["", " ", "admin", "g" * (MIN_LENGTH - 1)])
def test_a_weak_key_is_refused(tmp_path, weak):
    """S5: also the empty one, which must not mean `none`."""
    with pytest.raises(AdminKeyRefused, match="32"):
        find_admin_key(weak, tmp_path, loopback=True)


def test_off_loopback_a_key_must_be_given(tmp_path):
    """S5: even if one was made here before."""
    find_admin_key(None, tmp_path, loopback=True)
    with pytest.raises(AdminKeyRefused, match="HEADGATE_ADMIN_KEY"):
        find_admin_key(None, tmp_path, loopback=False)


def test_made_once_kept_hashed_shown_once(tmp_path):
    state = tmp_path / "deep" / "state"
    first = find_admin_key(None, state, loopback=True)
    assert first.made is not None
    assert len(first.made) >= MIN_LENGTH
    assert first.digest == digest_of(first.made)
    kept = state / FILE_NAME
    assert kept.read_text() == first.digest + "\n"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    second = find_admin_key(None, state, loopback=True)
    assert (second.digest, second.made) == (first.digest, None)


@pytest.mark.parametrize("broken", [b"", b"\n", b"not a digest", b"\xff\xfe", b"A" * 64, b"0" * 63])
def test_a_broken_file_shuts_nobody_out(tmp_path, broken):
    """A crash while it was written must not lock the administrator out for good: a new key is made."""
    (tmp_path / FILE_NAME).write_bytes(broken)
    key = find_admin_key(None, tmp_path, loopback=True)
    assert key.made is not None
    assert (tmp_path / FILE_NAME).read_text().strip() == key.digest


def test_where_nothing_is_writable_the_key_holds_for_this_process(tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    key = find_admin_key(None, blocked / "state", loopback=True)
    assert key.made is not None
    assert os.listdir(tmp_path) == ["a file"]


def test_the_key_is_in_no_repr(tmp_path):
    key = find_admin_key(None, tmp_path, loopback=True)
    assert key.made is not None
    assert key.made not in repr(key)
    assert key.digest not in repr(key)
