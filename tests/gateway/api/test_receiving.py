"""Bodies within their bounds, and noticing when the client is gone, at any moment."""

import asyncio

import pytest

from gateway.api import receiving
from gateway.api.receiving import DisconnectWatch, check_media_type, read_body
from gateway.errors import BodyTimeout, BodyTooLarge, ClientGone, UnsupportedMedia
from tests.gateway.api.asgi import Client, a_scope

# ------------------------------------------------------------------------------------------ media types


@pytest.mark.parametrize(
    "value",
    [
        b"application/json",
        b"Application/JSON",
        b"application/json; charset=utf-8",
        b'application/json;charset="UTF-8"',
        b"application/json ; charset=utf8",
        b"application/json; charset=utf-8; boundary=x",
    ],
)
def test_json_in_utf8_is_taken(value):
    check_media_type(a_scope(headers=[(b"content-type", value), (b"content-encoding", b"Identity")]))


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="B50 missing"),
        pytest.param([(b"content-type", b"")], id="B50 empty"),
        pytest.param([(b"content-type", b"text/plain")], id="B50 text"),
        pytest.param([(b"content-type", b"multipart/form-data; boundary=x")], id="B50 multipart"),
        pytest.param([(b"content-type", b"application/jsonp")], id="B50 longer"),
        pytest.param([(b"content-type", b"application/json; charset=utf-7")], id="B50 utf-7"),
        pytest.param([(b"content-type", b"application/json; charset=utf-16")], id="B50 utf-16"),
        pytest.param([(b"content-type", b"\xff\xfe")], id="not ASCII"),
        pytest.param(
            [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")], id="B21 compressed"
        ),
    ],
)
def test_everything_else_is_415(headers):
    with pytest.raises(UnsupportedMedia) as refused:
        check_media_type(a_scope(headers=headers))
    assert refused.value.status == 415


# ----------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("chunks", [(b"",), (b"abc",), (b"a", b"", b"bc")])
async def test_a_body_in_any_pieces(chunks):
    assert await read_body(a_scope(), Client(*chunks).receive, 3) == b"".join(chunks)


async def test_a_declared_length_over_the_limit_is_refused_unread():
    """B22: before a byte of it is read."""
    client = Client(b"x" * 10)
    for declared in (b"4", b"9" * 20, b"9" * 5000):
        with pytest.raises(BodyTooLarge):
            await read_body(a_scope(headers=[(b"content-length", declared)]), client.receive, 3)
    assert client.received == 0


async def test_chunks_are_refused_at_the_limit_and_not_read_on():
    """B22: at limit + 1, whatever was declared."""
    client = Client(*[b"xx"] * 10)
    with pytest.raises(BodyTooLarge):
        await read_body(a_scope(headers=[(b"content-length", b"3")]), client.receive, 3)
    assert client.received == 2


async def test_a_hundred_thousand_chunks_of_one_byte():
    """B23: linear."""
    assert len(await read_body(a_scope(), Client(*[b"x"] * 100_000).receive, 1 << 20)) == 100_000


async def test_a_client_that_leaves_while_sending():
    async def receive():
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        await read_body(a_scope(), receive, 3)


async def test_a_client_that_dawdles_is_told_408(monkeypatch):
    monkeypatch.setattr(receiving, "RECEIPT_SECONDS", 0.01)

    async def receive():
        await asyncio.sleep(30)

    with pytest.raises(BodyTimeout) as refused:
        await read_body(a_scope(), receive, 3)
    assert refused.value.status == 408


# ----------------------------------------------------------------------------------------- the watch


@pytest.fixture(autouse=True)
async def _no_task_is_left():
    """I7."""
    yield
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_client_that_stays_is_not_noticed():
    client = Client()
    async with DisconnectWatch(client.receive) as watch:
        await turns(5)
    client.leave()
    await turns(5)
    assert not watch.gone
    assert cancelling() == 0


async def test_a_client_that_was_gone_before():
    client = Client()
    client.leave()
    with pytest.raises(ClientGone):
        async with DisconnectWatch(client.receive) as watch:
            await asyncio.sleep(30)
    assert watch.gone
    assert cancelling() == 0, "this task is its own again"
    await asyncio.sleep(0)


@pytest.mark.parametrize("after", range(6))
async def test_a_client_that_leaves_in_the_middle(after):
    """After any number of turns of the loop."""
    client = Client()
    ran = []

    async def leave():
        await turns(after)
        client.leave()

    async with asyncio.TaskGroup() as group:
        group.create_task(leave())
        with pytest.raises(ClientGone):
            async with DisconnectWatch(client.receive):
                try:
                    await asyncio.sleep(30)
                finally:
                    await asyncio.sleep(0)  # cleaning up may wait
                    ran.append("cleaned up")
        await asyncio.sleep(0)
    assert ran == ["cleaned up"]
    assert cancelling() == 0


async def test_a_client_that_leaves_in_the_tick_in_which_the_work_is_done():
    """The work's last wait and the disconnect end together: either way, nothing is left behind."""
    client = Client()
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(done.set_result, None)
    asyncio.get_running_loop().call_soon(client.leave)
    try:
        async with DisconnectWatch(client.receive):
            await done
    except ClientGone:
        pass
    assert cancelling() == 0
    await asyncio.sleep(0)


async def test_work_that_never_waits_ends_well_whoever_is_gone():
    client = Client()
    client.leave()
    async with DisconnectWatch(client.receive) as watch:
        pass
    assert not watch.gone
    assert cancelling() == 0


async def test_a_server_that_holds_the_cancellation_back_is_waited_for():
    ended = []

    async def receive():
        try:
            await asyncio.sleep(30)
        finally:
            await turns(5)
            ended.append(True)

    async with DisconnectWatch(receive):
        await turns(2)
    assert ended


async def test_disarmed_a_disconnect_is_the_normal_end():
    """Servers report one after each complete answer, while the last message is still being sent."""
    client = Client()
    async with DisconnectWatch(client.receive) as watch:
        await asyncio.sleep(0)
        watch.disarm()
        client.leave()
        await turns(5)
    assert not watch.gone


async def test_more_of_the_body_is_not_a_disconnect():
    client = Client(b"a", b"b")
    async with DisconnectWatch(client.receive) as watch:
        await turns(5)
    assert not watch.gone


async def test_what_the_work_raises_passes():
    with pytest.raises(RuntimeError, match="mine"):
        async with DisconnectWatch(Client().receive):
            raise RuntimeError("mine")


async def test_what_the_work_raises_on_its_way_out_passes_too():
    """The client is gone and the cleaning up fails: the failure is the news. The task is its own again."""
    client = Client()
    client.leave()
    with pytest.raises(RuntimeError, match="mine"):
        async with DisconnectWatch(client.receive):
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                raise RuntimeError("mine") from None
    assert cancelling() == 0


@pytest.mark.parametrize("gone_first", [None, False, True])
@pytest.mark.parametrize("turns_between", [0, 1, 2])
async def test_cancelled_from_outside_stays_cancelled(gone_first, turns_between):
    """Shutdown wins, whether or not the client goes at the same time, before or after."""
    client = Client()
    begun = asyncio.Event()

    async def work():
        async with DisconnectWatch(client.receive):
            begun.set()
            try:
                await asyncio.sleep(30)
            finally:
                await turns(3)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(work())
        await begun.wait()
        await asyncio.sleep(0)
        if gone_first is True:
            client.leave()
            await turns(turns_between)
        task.cancel()
        if gone_first is False:
            await turns(turns_between)
            client.leave()
        await asyncio.wait([task])
    assert task.cancelled()


async def test_a_timeout_inside_is_a_timeout():
    with pytest.raises(TimeoutError):
        async with DisconnectWatch(Client().receive) as watch:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(30)
    assert not watch.gone


async def test_gone_inside_a_timeout_inside_is_gone():
    """The inner timeout sees a cancel that is not its own, and lets it pass."""
    client = Client()
    client.leave()
    with pytest.raises(ClientGone):
        async with DisconnectWatch(client.receive):
            async with asyncio.timeout(30):
                await asyncio.sleep(30)
    assert cancelling() == 0


async def test_gone_and_timed_out_in_one_tick():
    """Both fire before the work runs again. It must end once, as one of them, with the count put right."""
    client = Client()
    with pytest.raises((ClientGone, TimeoutError)):
        async with DisconnectWatch(client.receive):
            await turns(2)
            async with asyncio.timeout(0):
                client.leave()
                await asyncio.sleep(30)
    assert cancelling() == 0
    await asyncio.sleep(0)


async def test_a_timeout_outside_is_a_timeout():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            async with DisconnectWatch(Client().receive):
                await asyncio.sleep(30)
    assert cancelling() == 0


async def test_gone_inside_a_timeout_outside_is_gone():
    client = Client()
    client.leave()
    with pytest.raises(ClientGone):
        async with asyncio.timeout(30):
            async with DisconnectWatch(client.receive):
                await asyncio.sleep(30)
    assert cancelling() == 0


async def test_gone_and_timed_out_outside_in_one_tick():
    """Somebody else wants this task to end too: that one's verdict stands."""
    client = Client()
    with pytest.raises((ClientGone, TimeoutError)):
        async with asyncio.timeout(None) as outside:
            async with DisconnectWatch(client.receive):
                await turns(2)
                client.leave()
                outside.reschedule(asyncio.get_running_loop().time())
                await asyncio.sleep(30)
    assert cancelling() == 0
    await asyncio.sleep(0)


async def test_a_task_that_was_being_cancelled_already_may_still_watch():
    """`cancelling` of the task at entry is the base line, not zero."""

    async def work():
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            pass  # as a shutdown handler does, to say a last word
        client = Client()
        client.leave()
        with pytest.raises(ClientGone):
            async with DisconnectWatch(client.receive):
                await asyncio.sleep(30)
        assert task.cancelling() == 1

    async with asyncio.TaskGroup() as group:
        task = group.create_task(work())
    assert not task.cancelled()
