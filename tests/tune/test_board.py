from __future__ import annotations

import asyncio

from tune.board import Board


def test_a_trial_waits_until_the_driver_has_answered() -> None:
    async def meet() -> list[str | None]:
        board = Board()
        waiting = asyncio.create_task(board.verdict("a", 8))
        other = asyncio.create_task(board.verdict("b", 8))
        await asyncio.sleep(0)
        assert not waiting.done()
        await board.answer("a", 8, "bad")
        await board.answer("b", 8, None)
        # An answer stays: a trial that is started again asks again.
        return [await waiting, await other, await board.verdict("a", 8)]

    assert asyncio.run(meet()) == ["bad", None, "bad"]


def test_what_the_workers_post_is_taken_in_order_by_their_own_trial() -> None:
    async def meet() -> list[object]:
        board = Board()
        await board.post("a", {"epoch": 1})
        await board.post("a", {"epoch": 2})
        await board.post("b", {"epoch": 7})
        return [await board.take(name, 0.0) for name in ("a", "b", "a", "a")]

    assert asyncio.run(meet()) == [{"epoch": 1}, {"epoch": 7}, {"epoch": 2}, None]
