"""Finding engines: all kinds over real HTTP, upstreams that are none, and the routes.yaml made of them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import EngineLimits, Identified
from backends.registry import REGISTRY
from gateway.admin.admin_key import AdminKey
from gateway.app import Gateway, discovery_of, load_snapshot
from gateway.cli.upstreams import SOURCE, Upstreams
from gateway.config.drafting import MOST_MODELS, Found, draft, usable_names
from gateway.config.snapshot import Snapshot
from gateway.examining.discovery import MAX_ANSWER, Discovery
from gateway.reloading import Source
from gateway.tenants.authentication import digest_of
from gateway.tokens.counting import Counting
from tests.end_to_end.world import tokenizer

NOBODY = "http://127.0.0.1:1"
VLLM = (
    b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
    + json.dumps({"object": "list", "data": [{"id": "m", "owned_by": "vllm"}]}).encode()
)
"""To every question."""


def drafted(*found: Found, **given: Any) -> str:
    return draft(found, "ab" * 32, listen="127.0.0.1:8080", admin="127.0.0.1:8081", **given)


def loaded(text: str) -> Snapshot:
    """What `headgate check` would load; it must have nothing to say of it."""
    snapshot, warnings = load_snapshot("routes.yaml", content=text.encode())
    assert warnings == ()
    return snapshot


def found(number: int = 1, models: Mapping[str, str] | None = None, **fields: Any) -> Found:
    identified = Identified(
        kind=fields.pop("kind", "vllm"),
        options=fields.pop("options", {}),
        how="",
        models={"m": "m"} if models is None else models,
        limits=EngineLimits(**fields),
    )
    return Found(number, f"http://gpu{number}:8000", identified)


@contextlib.asynccontextmanager
async def raw_server(pieces: Sequence[bytes], then: str = "close") -> AsyncIterator[str]:
    """Answers every connection with `pieces`; then closes, or says nothing more."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if then == "hang":
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def why(*pieces: bytes, then: str = "close") -> str:
    """Why such an upstream is missing."""
    async with raw_server(pieces, then) as url:
        discovery = Discovery([url], REGISTRY, answer_timeout=0.3)
        assert await discovery.look() == ()
        (missing,) = discovery.missing
        return missing.why


# ---------------------------------------------------------------------------------------- looking


async def test_all_simulated_kinds_are_found_and_load() -> None:
    """Side by side; each as a pool of its own engine, and an unreachable one named."""
    from backends.simulated.server import serve  # slow to import

    kinds = [
        ("trtllm", {}), ("triton", {}), ("triton", {"vocabulary": "llmapi"}), ("triton-openai", {}),
        ("tgi", {}), ("vllm", {}), ("sglang", {}), ("llamacpp", {}), ("openai", {}),
    ]  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        urls = []
        for number, (kind, options) in enumerate(kinds):
            server = serve(kind, tokenizer=tokenizer(), model=f"org/m{number}", **options)
            urls.append((await stack.enter_async_context(server)).url)
        discovery = discovery_of([*urls, NOBODY])
        await discovery.look()
    assert [(found.url, found.identified.kind) for found in discovery.found] == [
        (url, kind) for url, (kind, _) in zip(urls, kinds, strict=True)
    ]
    assert [(missing.url, missing.why) for missing in discovery.missing] == [(NOBODY, "Connection refused")]
    snapshot = loaded(drafted(*discovery.found))
    assert sorted(pool.engine for pool in snapshot.pools.values()) == sorted(kind for kind, _ in kinds)
    assert [replica.url for pool in snapshot.pools.values() for replica in pool.replicas] == urls


async def test_those_that_come_later_are_found_later() -> None:
    """Only the missing are asked again; numbers are places on the command line."""
    loading = b"HTTP/1.1 503 Loading\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    late = [loading]
    async with raw_server(late) as first, raw_server([VLLM]) as second:
        discovery = discovery_of([first, second])
        assert [found.number for found in await discovery.look()] == [2]
        assert discovery.missing[0].why == "not ready: it answers 503"
        assert await discovery.look() == ()
        late[:] = [VLLM]
        assert [found.number for found in await discovery.look()] == [1]
    assert await discovery.look() == ()
    assert ([found.number for found in discovery.found], discovery.missing) == ([1, 2], ())


async def test_what_is_no_engine_is_named_with_its_reason() -> None:
    page = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>"
    assert await why(page) == "it answers (200), but as no engine that is known"
    locked = b"HTTP/1.1 401 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert "upstream.api_key" in await why(locked)
    assert await why(b"", then="hang") == "no answer in 0.3 s"
    assert "disconnected" in await why(b"")
    assert await why(b"SSH-2.0-OpenSSH\r\n")
    discovery = discovery_of(["http://nowhere.invalid"])
    await discovery.look()
    assert "not known" in discovery.missing[0].why or "resolution" in discovery.missing[0].why


async def test_answers_are_bounded_in_size_and_time() -> None:
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
    assert await why(head, b" " * (MAX_ANSWER + 1)) == f"an answer of more than {MAX_ANSWER} bytes"
    assert await why(head, b"{", then="hang") == "no answer in 0.3 s"


async def test_redirects_are_not_followed() -> None:
    async with raw_server([VLLM]) as target:
        moved = f"HTTP/1.1 307 Moved\r\nlocation: {target}/v1/models\r\nconnection: close\r\n\r\n".encode()
        assert "307" in await why(moved)
        discovery = discovery_of([target])
        assert await discovery.look()  # it would have been found there


def test_urls_are_those_of_replicas() -> None:
    for url in ("ftp://gpu1", "gpu1:8000", "http://user@gpu1", "http://169.254.169.254"):
        with pytest.raises(ValueError, match=url):
            discovery_of([url])
    assert len(discovery_of(["http://gpu1:8000/", "http://GPU1:8000"]).missing) == 1


# --------------------------------------------------------------------------------------- drafting


def test_replicas_with_the_same_models_and_limits_are_one_pool() -> None:
    same = {"context_tokens": 4096, "in_flight": 8}
    text = drafted(found(1, **same), found(2, **same), found(3, context_tokens=8192), found(4, kind="sglang"))
    snapshot = loaded(text)
    assert {name: [r.id for r in pool.replicas] for name, pool in snapshot.pools.items()} == {
        "vllm": ["upstream-1", "upstream-2"], "vllm-2": ["upstream-3"], "sglang": ["upstream-4"],
    }  # fmt: skip
    assert (snapshot.pools["vllm"].limits.total, snapshot.pools["vllm"].limits.in_flight) == (4096, 8)
    (rule,) = snapshot.rules
    assert [hop.pool for hop in rule.chain] == ["vllm", "vllm-2", "sglang"]
    assert "overloaded" in rule.on


def test_the_context_is_the_widest_that_is_sure() -> None:
    both = loaded(drafted(found(1, context_tokens=4096), found(2, context_tokens=8192))).models["m"]
    assert (both.context, both.max_tokens.default) == (8192, 1024)
    assert loaded(drafted(found(1, context_tokens=4096), found(2))).models["m"].context is None
    untold = loaded(drafted(found())).models["m"]
    assert (untold.context, untold.max_tokens.default) == (None, None)


def test_engines_options_and_own_names_are_kept() -> None:
    pool = loaded(drafted(found(kind="tgi", models={"org/m": "tgi"}, options={"api": "messages"}))).pools[
        "tgi"
    ]
    assert (pool.serves, pool.adapter.applies_template) == ({"org/m": "tgi"}, True)


def test_a_tokenizer_counts_where_it_is_given(tmp_path: Path) -> None:
    text = drafted(found(), tokenizers={"m": str(tmp_path)})
    assert loaded(text).models["m"].tokenizer.path == str(tmp_path)


def test_upstreams_cannot_read_the_environment() -> None:
    """A model called ${SECRET} is that, not what the variable holds."""
    snapshot = loaded(drafted(found(models={"${HOME}": "${HOME}$"})))
    assert list(snapshot.pools["vllm"].serves.values()) == ["${HOME}$"]


def test_names_that_cannot_be_written_are_left_out() -> None:
    assert usable_names({"a": "a", "b\x1b[2J": "b", "c": "\ud800", "d" * 600: "d", "": "e"}) == {"a": "a"}
    assert len(usable_names({f"m{number}": "m" for number in range(999)})) == MOST_MODELS


NAMES = st.text(max_size=12) | st.sampled_from(
    ["*", "yes", "null", "1e3", "/a/b.gguf", "../a/b.gguf", "${A}", "m"]
)


@given(st.lists(st.dictionaries(NAMES, NAMES, max_size=4), min_size=1, max_size=3), st.data())
def test_any_upstreams_make_a_file_that_loads(upstreams: list[dict[str, str]], data: st.DataObject) -> None:
    """Nothing that an upstream says of itself makes a file that check has something to say of."""
    counts = st.none() | st.integers(0, 10**14)
    several = [
        found(
            number,
            models=usable_names(models),
            context_tokens=data.draw(counts),
            prompt_tokens=data.draw(counts),
            in_flight=data.draw(counts),
        )
        for number, models in enumerate(upstreams, 1)
    ]
    several = [one for one in several if one.identified.models]
    if several:
        text = drafted(*several)
        snapshot = loaded(text)
        assert {own for pool in snapshot.pools.values() for own in pool.serves.values()} == {
            own for one in several for own in one.identified.models.values()
        }
        assert yaml.safe_load(text)["version"] == 1


# ---------------------------------------------------------------------------------------- serving


async def test_a_late_upstream_is_taken_in_while_others_serve(monkeypatch, tmp_path: Path) -> None:
    """By a reload; the key stays, and the replica that was there keeps its id."""
    monkeypatch.setattr("gateway.cli.upstreams.RETRY_SERVING", 0.01)
    monkeypatch.setenv("HEADGATE_STATE", str(tmp_path))
    late = [b"HTTP/1.1 503 Loading\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"]
    async with raw_server(late) as first, raw_server([VLLM]) as second:
        upstreams = Upstreams([first, second], listen="127.0.0.1:0", admin="127.0.0.1:0", tokenizers={})
        await upstreams.wait(5)
        snapshot, _ = upstreams.load()
        gateway = Gateway(
            snapshot,
            Counting.build(snapshot),
            AdminKey(digest_of("hg-admin")),
            probe=False,
            source=Source(SOURCE, upstreams.load, snapshot.server),
        )
        async with gateway, asyncio.timeout(10):
            keys = gateway.runtime.snapshot.keys.keys()
            assert [ledger.replica.id for _, ledger in gateway.runtime.ledgers()] == ["upstream-2"]
            late[:] = [VLLM]
            await upstreams.follow(gateway)
            assert [ledger.replica.id for _, ledger in gateway.runtime.ledgers()] == [
                "upstream-1",
                "upstream-2",
            ]
            assert gateway.runtime.snapshot.keys.keys() == keys
            assert gateway.reloader.last.by == "upstream"
