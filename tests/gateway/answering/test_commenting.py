"""Comments: one at a time, never beside the stream's own writes, and none after it has closed."""

import asyncio

from gateway.answering.commenting import Announcing, Comments


class Slate:
    """A reply whose comments take as long as the test likes."""

    def __init__(self, *, stuck: bool = False) -> None:
        self.begun: list[str] = []
        self.said: list[str] = []
        self.go = asyncio.Event()
        if not stuck:
            self.go.set()

    async def comment(self, text: str) -> None:
        self.begun.append(text)
        await self.go.wait()
        self.said.append(text)


async def test_the_next_write_waits_until_a_comment_has_left():
    slate = Slate(stuck=True)
    comments = Comments(slate)
    await comments.quiet()  # at once: nothing is on its way
    comments.say("one")
    assert comments.leaving
    comments.say("two")  # dropped: the first has not left
    asyncio.get_running_loop().call_later(0.01, slate.go.set)
    await comments.quiet()
    assert (slate.said, comments.leaving) == (["one"], False)
    comments.say("three")
    await comments.quiet()
    assert slate.said == ["one", "three"]


async def test_what_has_not_begun_never_does_after_the_end():
    slate = Slate()
    comments = Comments(slate)
    comments.say("too late")
    comments.close()
    await comments.quiet()
    assert (slate.begun, comments.leaving) == ([], False)


async def test_a_comment_that_nobody_reads_ends_with_the_reply():
    slate = Slate(stuck=True)
    comments = Comments(slate)
    comments.say("stuck")
    await asyncio.sleep(0)
    comments.close()
    async with asyncio.timeout(1):
        await comments.quiet()
    assert (slate.begun, slate.said) == (["stuck"], [])


async def test_a_comment_that_fails_is_no_lost_exception():
    class Broken:
        async def comment(self, text: str) -> None:
            raise RuntimeError("no connection")

    comments = Comments(Broken())
    comments.say("x")
    await comments.quiet()
    assert not comments.leaving


async def test_announcements_come_so_often_until_there_are_no_more():
    slate = Slate()
    answers = iter(["one", None, "two", False])
    done = asyncio.Event()

    def say():
        answer = next(answers)
        if answer is False:
            done.set()
        return answer

    with Announcing(Comments(slate), 0.005, say):
        assert slate.said == []
        async with asyncio.timeout(2):
            await done.wait()
        await asyncio.sleep(0.02)  # a fifth would find nothing in `answers`
    assert slate.said == ["one", "two"]


async def test_leaving_ends_them():
    slate = Slate()
    with Announcing(Comments(slate), 0.005, lambda: "again"):
        pass
    await asyncio.sleep(0.02)
    assert slate.said == []
