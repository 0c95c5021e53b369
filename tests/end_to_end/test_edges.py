"""The edges of the HTTP surface: who may reach which route, probes, metrics, odd requests."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from gateway import edge
from tests.end_to_end.world import ADMIN_KEY, KEY, World, world

ANYONE, TENANT, ADMIN, WRONG = None, KEY, ADMIN_KEY, "hg-nobody"

MATRIX: dict[tuple[str, str, str], dict[str | None, int]] = {
    # listener, method, path: status by principal (on loopback)
    ("data", "GET", "/livez"): {ANYONE: 200, TENANT: 200, ADMIN: 200, WRONG: 200},
    ("data", "GET", "/readyz"): {ANYONE: 200, TENANT: 200, ADMIN: 200, WRONG: 200},
    ("data", "GET", "/health"): {ANYONE: 200, TENANT: 200, ADMIN: 200, WRONG: 200},
    ("data", "GET", "/metrics"): {ANYONE: 200, TENANT: 200, ADMIN: 200, WRONG: 200},
    ("data", "GET", "/v1/models"): {ANYONE: 401, TENANT: 200, ADMIN: 403, WRONG: 401},
    ("data", "GET", "/v1/models/{model:path}"): {ANYONE: 401, TENANT: 200, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/v1/chat/completions"): {ANYONE: 401, TENANT: 200, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/v1/completions"): {ANYONE: 401, TENANT: 200, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/v1/responses"): {ANYONE: 401, TENANT: 200, ADMIN: 403, WRONG: 401},
    ("data", "GET", "/v1/responses/{id:path}"): {ANYONE: 401, TENANT: 501, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/v1/responses/{id:path}"): {ANYONE: 401, TENANT: 501, ADMIN: 403, WRONG: 401},
    ("data", "DELETE", "/v1/responses/{id:path}"): {ANYONE: 401, TENANT: 501, ADMIN: 403, WRONG: 401},
    # The engine here (trtllm) serves none of these.
    ("data", "POST", "/v1/embeddings"): {ANYONE: 401, TENANT: 404, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/v1/messages"): {ANYONE: 401, TENANT: 404, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/v1/messages/count_tokens"): {ANYONE: 401, TENANT: 404, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/rerank"): {ANYONE: 401, TENANT: 404, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/v1/rerank"): {ANYONE: 401, TENANT: 404, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/v2/rerank"): {ANYONE: 401, TENANT: 404, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/score"): {ANYONE: 401, TENANT: 404, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/v1/score"): {ANYONE: 401, TENANT: 404, ADMIN: 403, WRONG: 401},
    ("data", "POST", "/tokenize"): {ANYONE: 401, TENANT: 200, ADMIN: 403, WRONG: 401},
    ("admin", "GET", "/livez"): {ANYONE: 200, TENANT: 200, ADMIN: 200, WRONG: 200},
    ("admin", "GET", "/readyz"): {ANYONE: 200, TENANT: 200, ADMIN: 200, WRONG: 200},
    ("admin", "GET", "/health"): {ANYONE: 200, TENANT: 200, ADMIN: 200, WRONG: 200},
    ("admin", "GET", "/metrics"): {ANYONE: 200, TENANT: 200, ADMIN: 200, WRONG: 200},
    ("admin", "GET", "/admin/pools"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "GET", "/admin/replicas"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "GET", "/admin/requests"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "GET", "/admin/queues"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "GET", "/admin/lengths"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "GET", "/admin/limits"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "POST", "/admin/limits/try"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "POST", "/admin/routes/explain"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "GET", "/admin/keys"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "POST", "/admin/keys"): {ANYONE: 401, TENANT: 403, ADMIN: 201, WRONG: 401},
    ("admin", "POST", "/admin/keys/{id}/rotate"): {ANYONE: 401, TENANT: 403, ADMIN: 201, WRONG: 401},
    ("admin", "POST", "/admin/keys/{id}/revoke"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "POST", "/admin/replicas/{id}/drain"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "POST", "/admin/replicas/{id}/enable"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "POST", "/admin/pools/{name}/wake"): {ANYONE: 401, TENANT: 403, ADMIN: 409, WRONG: 401},
    ("admin", "POST", "/admin/pools/{name}/cool"): {ANYONE: 401, TENANT: 403, ADMIN: 409, WRONG: 401},
    ("admin", "GET", "/admin/config"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "POST", "/admin/config/reload"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
    ("admin", "GET", "/admin/audit"): {ANYONE: 401, TENANT: 403, ADMIN: 200, WRONG: 401},
}

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
BODIES: dict[str, Any] = {
    "/admin/limits/try": {"tenant": "tenant", "tokens": 10},
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "m", "prompt": "Hi", "max_tokens": 2},
    "/tokenize": {"model": "m", "prompt": "Hi"},
    "/v1/responses": {"model": "m", "input": "Hi", "max_output_tokens": 2},
    "/v1/embeddings": {"model": "m", "input": "Hi"},
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": CHAT,
    **{f"{prefix}/rerank": {"model": "m", "query": "a", "documents": ["b"]} for prefix in ("", "/v1", "/v2")},
    **{f"{prefix}/score": {"model": "m", "text_1": "a", "text_2": "b"} for prefix in ("", "/v1")},
    "/admin/routes/explain": {"tenant": "tenant", "request": CHAT},
    "/admin/keys": {"tenant": "tenant"},
}


def routes_of(app: Any) -> set[tuple[str, str]]:
    """(method, path) of every route below the rings, HEAD aside."""
    router = app
    while not hasattr(router, "routes"):
        router = getattr(router, "_app", None) or router.__closure__[0].cell_contents
    return {
        (method, route.path)
        for route in router.routes
        if isinstance(route, Route)
        for method in (route.methods or ())
        if method != "HEAD"
    }


async def test_every_route_has_its_row_and_obeys_it(tmp_path: Path) -> None:
    """A route without a row in the matrix fails here: default deny is a decision, not an accident."""
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here:
        listeners = {"data": here.gateway.data_app, "admin": here.gateway.admin_app}
        there = {(name, *route) for name, app in listeners.items() for route in routes_of(app)}
        assert there == set(MATRIX)
        for (listener, method, path), row in MATRIX.items():
            for key, status in row.items():
                client = here.http(key) if listener == "data" else here.admin(key)
                async with client:
                    # The keys of the other tenant: nobody here uses them.
                    where = path.replace("{model:path}", "m").replace("{name}", "pool")
                    where = where.replace("{id:path}", "resp_1")
                    where = where.replace("{id}", "other-1" if "/keys/" in path else "pool-1")
                    answer = await client.request(
                        method, where, json=BODIES.get(path) if method == "POST" else None
                    )
                assert answer.status_code == status, (listener, method, path, key, answer.text)
                if status >= 400:
                    shape = {"message", "type", "param", "code"}
                    if path.startswith("/v1/messages"):
                        shape = {"message", "type", "details"}
                    assert set(answer.json()["error"]) == shape


async def test_the_same_401_for_every_bad_key(tmp_path: Path) -> None:
    """Unknown, empty, odd and huge keys are all told the same."""
    headers = [
        "Bearer hg-test-tenant-wrongtail",
        "Bearer '; DROP TABLE keys",
        "Bearer *",
        "Bearer " + "x" * 8000,
    ]
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http(None) as http:
        answers = [
            await http.post("/v1/chat/completions", json=CHAT, headers={"authorization": h}) for h in headers
        ]
        assert {answer.status_code for answer in answers} == {401}
        assert len({answer.json()["error"]["message"] for answer in answers}) == 1
        for header in ("Bearer", "Basic aGk6aGk=", KEY):
            answer = await http.post("/v1/chat/completions", json=CHAT, headers={"authorization": header})
            assert answer.status_code == 401
        query = await http.post(f"/v1/chat/completions?api_key={KEY}", json=CHAT)
        assert query.status_code == 401


async def test_probes_answer_head_and_metrics_too(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http(None) as http:
        for path in ("/livez", "/readyz", "/health", "/metrics"):
            answer = await http.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
            assert int(answer.headers["content-length"]) > 0


async def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http() as http:
        for stream in (True, False):
            assert (
                await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
            ).status_code == 200
        assert (await http.post("/v1/chat/completions", json={**CHAT, "model": 'x"\n'})).status_code == 404
        await here.wait_at_rest()
        text = (await http.get("/metrics")).text
        labels = 'model="m",outcome="completed",pool="pool",tenant="tenant"'
        assert f'headgate_requests_total{{code="",{labels}}} 2.0' in text
        assert 'headgate_tokens_total{kind="completion",model="m",pool="pool",tenant="tenant"} 4.0' in text
        assert 'headgate_time_to_first_token_seconds_count{model="m",pool="pool"} 2.0' in text
        assert 'headgate_in_flight_requests{pool="pool",replica="pool-1"} 0.0' in text
        assert 'headgate_attempts_total{outcome="ok",pool="pool"} 2.0' in text
        assert 'code="model_not_found",model="",outcome="rejected"' in text


async def test_readiness_follows_the_replicas(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, probe=True) as here, here.http(None) as http:
        async with asyncio.timeout(5):
            while not all(ledger.ready for _, ledger in here.gateway.runtime.ledgers()):
                await asyncio.sleep(0.01)
        assert (await http.get("/readyz")).status_code == 200
        here.engine().arm("refuse=0")
        for _, ledger in here.gateway.runtime.ledgers():
            ledger.ready = False  # as the next probe will find
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "no replica"})
        assert (await http.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("GET", "/v1/chat/completions", {}, b"", 405),
        ("PUT", "/v1/chat/completions", {}, b"", 405),
        ("POST", "/v1/nothing", {}, b"{}", 404),
        ("POST", "/v1/chat/completions/", {}, b"{}", 404),
        ("POST", "//admin/pools", {}, b"{}", 404),
        ("GET", "/admin/pools", {}, b"", 404),
        ("POST", "/v1/chat/completions", {"content-type": "text/plain"}, b"{}", 415),
        ("POST", "/v1/chat/completions", {"content-type": "application/json; charset=utf-7"}, b"{}", 415),
        ("POST", "/v1/chat/completions", {"content-type": ""}, b"{}", 415),
        ("POST", "/v1/chat/completions", {"content-encoding": "gzip"}, b"{}", 415),
        ("POST", "/v1/chat/completions", {}, b"", 400),
        ("POST", "/v1/chat/completions", {}, b"[]", 400),
        ("POST", "/v1/chat/completions", {}, b"{} {}", 400),
        ("POST", "/v1/chat/completions", {}, b"\xef\xbb\xbf{}", 400),
        ("POST", "/v1/chat/completions", {}, b'{"model": NaN}', 400),
        ("POST", "/v1/chat/completions", {}, b'{"model": "\xff"}', 400),
        ("POST", "/v1/chat/completions", {}, b"[" * 100_000, 400),
        ("POST", "/v1/chat/completions", {}, b'{"max_tokens": ' + b"9" * 5000 + b"}", 400),
        ("POST", "/v1/chat/completions", {}, b" " * (4 * 1024 * 1024 + 1), 413),
    ],
)  # fmt: skip
async def test_odd_requests_get_their_status(
    method: str, path: str, headers: dict[str, str], content: bytes, status: int, tmp_path: Path
) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http() as http:
        given = {"content-type": "application/json", **headers}
        answer = await http.request(method, path, headers=given, content=content)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"]["message"]
        assert answer.headers["x-request-id"]


async def test_a_chunked_body_is_bounded_too(tmp_path: Path) -> None:
    async def chunks() -> Any:
        for _ in range(80):
            yield b" " * 65536

    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http() as http:
        answer = await http.post(
            "/v1/chat/completions", content=chunks(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413


async def test_clients_headers_do_not_go_upstream(tmp_path: Path) -> None:
    """The pool's credentials do; the client's key, cookies and forwarded addresses do not."""
    pools = {"pool": {"upstream": {"api_key": "engine-secret", "headers": {"x-site": "b"}}}}
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}, pools=pools) as here, here.http() as http:
        sent = {"cookie": "a=b", "x-forwarded-for": "1.2.3.4", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        assert (await http.post("/v1/chat/completions", json=CHAT, headers=sent)).status_code == 200
        headers = here.engine().statistics().recent[0].headers
        assert headers["authorization"] == "Bearer engine-secret"
        assert headers["x-site"] == "b"
        assert headers["traceparent"] == sent["traceparent"]
        assert "cookie" not in headers
        assert "x-forwarded-for" not in headers
        assert KEY not in json.dumps(dict(headers))


async def test_secrets_and_prompts_are_in_no_log_metric_or_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """I11: canaries in the prompt, the keys and the engine's credentials."""
    caplog.set_level("DEBUG")
    canary = "canary-prompt-4711"
    pools = {"pool": {"upstream": {"api_key": "canary-engine-key"}}}
    async with world(tmp_path, {"pool": {"kind": "tgi"}}, pools=pools) as here, here.http() as http:
        body = {**CHAT, "messages": [{"role": "user", "content": canary}]}
        texts = []
        for more in ({}, {"stream": True}, {"temperature": 9}, {"model": "nope"}):
            texts.append((await http.post("/v1/chat/completions", json={**body, **more})).text)
        here.engine().arm("error_after=0")
        texts.append((await http.post("/v1/chat/completions", json=body)).text)
        async with here.admin() as admin:
            for path in ("/admin/pools", "/admin/replicas", "/admin/requests", "/metrics"):
                texts.append((await admin.get(path)).text)
    logged = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    for secret in (canary, KEY, "canary-engine-key", ADMIN_KEY):
        assert all(secret not in text for text in texts[2:]), secret
        assert secret not in logged, secret


async def test_requests_are_listed_while_they_live(tmp_path: Path) -> None:
    engines = {"pool": {"kind": "trtllm", "mean_tokens": 4000.0, "speed": 1.0}}
    async with world(tmp_path, engines) as here, here.http() as http, here.admin() as admin:
        async with http.stream(
            "POST", "/v1/chat/completions", json={**CHAT, "max_tokens": 4000, "stream": True}
        ):
            (row,) = [
                r for r in (await admin.get("/admin/requests")).json()["requests"] if r["path"][:3] == "/v1"
            ]
            assert row["stage"] == "streaming"
            assert (row["pool"], row["replica"], row["tenant"]) == ("pool", "pool-1", "tenant")
            (pool,) = (await admin.get("/admin/pools")).json()["pools"]
            assert pool["queue"]["in_flight"] == 1
            assert pool["relay"] == "patched"
            assert pool["replicas"][0]["outstanding_tokens"] > 0


async def explain(here: World, **asked: Any) -> dict[str, Any]:
    async with here.admin() as admin:
        answer = await admin.post("/admin/routes/explain", json=asked)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


async def test_explain_decides_as_the_request_does(tmp_path: Path) -> None:
    """Every rule tried, the count, the bounds, the chain, each candidate, and why; nothing is sent."""
    rules = [
        {"name": "short", "when": {"estimated_total_tokens": {"lte": 100}}, "pools": ["a", "b"]},
        {"name": "long", "pools": ["b"]},
    ]
    engines = {"a": {"kind": "trtllm", "replicas": 2}, "b": {"kind": "tgi"}}
    async with world(tmp_path, engines, rules=rules) as here, here.sdk() as sdk:
        for text, more in (("Hi", {}), ("Hi", {"max_tokens": 500}), ("Hi " * 500, {}), ("Hi", {"n": 2})):
            body = {**CHAT, "messages": [{"role": "user", "content": text}], **more}
            why = await explain(here, tenant="tenant", request=body)
            raw = await sdk.chat.completions.with_raw_response.create(**body)
            assert why["goes_to"] == raw.headers["x-headgate-pool"]
            assert why["rule"] == raw.headers["x-headgate-rule"]
            assert why["prompt"]["tokens"] == int(raw.headers["x-headgate-prompt-tokens"])
            assert (
                why["estimate"]["total"]
                == why["prompt"]["tokens"] + why["estimate"]["n"] * why["estimate"]["output"]
            )
            assert [trial["matched"] for trial in why["rules"]][-1] is True
            assert all(trial["why"] for trial in why["rules"])
            assert why["chain"][0]["candidates"][0]["why"]
        assert sum(engine.statistics().requests for engine in here.engines.values()) == 4


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\n"
OK_HOST = b"Host: x\r\n"


async def exchange(here: World, sent: bytes) -> bytes:
    """What comes back on a raw connection until the gateway closes it."""
    host, port = here.addresses.data.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(sent)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (HEAD + b"\r\n", 400),
        (HEAD + b"Host: \r\n\r\n", 400),
        (HEAD + b"Host: a b\r\n\r\n", 400),
        (HEAD + b"Host: x/?\r\n\r\n", 400),
        (HEAD + b"Host: x#\r\n\r\n", 400),
        (HEAD + b"Host: a\r\nHost: b\r\n\r\n", 400),
        (HEAD + OK_HOST + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (HEAD + OK_HOST + b"content-length: +5\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n" + OK_HOST + b"\r\n", 414),
        (HEAD + OK_HOST + b"a: " + b"x" * 17000 + b"\r\n\r\n", 431),
        (HEAD + OK_HOST + b"a: b\r\n" * 101 + b"\r\n", 431),
        (HEAD + OK_HOST + b"a: " + b"x" * 200_000, 431),
        (HEAD + OK_HOST + (b"a: " + b"x" * 60 + b"\r\n") * 4000, 431),
    ],
)
async def test_bad_heads_are_refused_before_any_code_runs(sent: bytes, status: int, tmp_path: Path) -> None:
    """B2, B3, B10, B13, B14, B17: the envelope, then the connection is closed."""
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here:
        try:
            got = await exchange(here, sent)
        except ConnectionResetError:
            assert len(sent) > edge.MAX_HEAD, "what was still under way hides the answer"
        else:
            assert got.startswith(b"HTTP/1.1 %d " % status), got[:100]
            assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["message"]
        assert here.gateway.book.accepted == 0


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + OK_HOST + b"a: b"])
async def test_slow_heads_are_not_waited_for(
    sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F61: silence and half a head end with 408."""
    monkeypatch.setattr(edge, "HEAD_SECONDS", 0.1)
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here:
        assert (await exchange(here, sent)).startswith(b"HTTP/1.1 408 ")


async def test_a_client_that_offers_http_2_is_served(tmp_path: Path) -> None:
    """As Java's own client does with each request over plain HTTP."""
    upgrade = {
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": "h2c",
        "http2-settings": "AAEAAEAAAAIAAAAB",
    }
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http() as http:
        for _ in range(2):
            answer = await http.post("/v1/chat/completions", json=CHAT, headers=upgrade)
            assert answer.status_code == 200, answer.text
        assert here.engine().statistics().requests == 2
        headers = here.engine().statistics().recent[0].headers
        assert not {"upgrade", "http2-settings"} & headers.keys()


async def test_a_kept_connection_serves_many_requests(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http() as http:
        for _ in range(3):
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
            assert (await http.get("/livez")).status_code == 200


async def test_two_keys_are_none(tmp_path: Path) -> None:
    """B32: which one would be meant?"""
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")]
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http(None) as http:
        assert (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 401


async def test_an_engines_quote_of_its_client_reaches_no_admin(tmp_path: Path) -> None:
    """A 400 of the engine repeats the client's value; the replica's row does not."""
    async with (
        world(tmp_path, {"pool": {"kind": "trtllm"}}) as here,
        here.http() as http,
        here.admin() as admin,
    ):
        bad = {**CHAT, "stop_token_ids": ["canary-value"]}
        assert (await http.post("/v1/chat/completions", json=bad)).status_code == 400
        for path in ("/admin/pools", "/admin/replicas"):
            assert "canary-value" not in (await admin.get(path)).text


async def test_errors_name_who_failed(tmp_path: Path) -> None:
    async with world(tmp_path, {"pool": {"kind": "trtllm"}}) as here, here.http() as http:
        here.engine().arm("close")
        answer = await http.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 502
        assert answer.headers["x-headgate-pool"] == "pool"
        assert answer.headers["x-headgate-replica"] == "pool-1"
        assert answer.headers["x-headgate-attempts"] == "1"
