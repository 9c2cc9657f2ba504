"""The pool of buffers: bounded, first come first served, and used again."""

from __future__ import annotations

import trio
import trio.testing

from gridfs.grid.buffers import BufferPool
from storage.format.share import BLOCK_SIZE


async def test_sizes_are_powers_of_two_of_blocks() -> None:
    pool = BufferPool(1 << 30, 1 << 30)
    for size, blocks in ((0, 1), (1, 1), (BLOCK_SIZE, 1), (BLOCK_SIZE + 1, 2), (5 * BLOCK_SIZE, 8)):
        assert len(await pool.take(size)) == blocks * BLOCK_SIZE


async def test_a_buffer_is_used_again_unless_somebody_may_write_into_it() -> None:
    pool = BufferPool(1 << 30, 1 << 30)
    first = await pool.take(10)
    pool.give(first, reuse=True)
    assert await pool.take(20) is first
    pool.give(first, reuse=False)
    assert await pool.take(20) is not first
    assert pool.kept_bytes == 0


async def test_no_more_is_kept_than_allowed() -> None:
    pool = BufferPool(3 * BLOCK_SIZE, 1 << 30)
    for buffer in [await pool.take(BLOCK_SIZE) for _ in range(5)]:
        pool.give(buffer, reuse=True)
    assert pool.kept_bytes == 3 * BLOCK_SIZE
    assert pool.lent_bytes == 0


async def test_who_finds_no_room_waits_in_line() -> None:
    pool = BufferPool(0, 4 * BLOCK_SIZE)
    held = [await pool.take(2 * BLOCK_SIZE), await pool.take(BLOCK_SIZE)]
    order: list[int] = []

    async def take(blocks: int) -> None:
        held.append(await pool.take(blocks * BLOCK_SIZE))
        order.append(blocks)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, 4)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(take, 1)  # there is room for it, but it is not its turn
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        pool.give(held.pop(0), reuse=False)
        pool.give(held.pop(0), reuse=False)
        await trio.testing.wait_all_tasks_blocked()
        assert order == [4]
        pool.give(held.pop(), reuse=False)
    assert order == [4, 1]
    assert pool.lent_bytes == BLOCK_SIZE


async def test_a_size_above_the_bound_is_lent_alone_and_holders_need_not_wait() -> None:
    pool = BufferPool(0, BLOCK_SIZE)
    large = await pool.take(8 * BLOCK_SIZE)
    more = pool.take_nowait(BLOCK_SIZE)
    assert pool.lent_bytes == 9 * BLOCK_SIZE
    pool.give(large, reuse=False)
    pool.give(more, reuse=False)
    assert pool.lent_bytes == 0


async def test_a_waiter_that_is_cancelled_gives_its_turn_away() -> None:
    pool = BufferPool(0, BLOCK_SIZE)
    held = await pool.take(1)
    with trio.move_on_after(0):
        await pool.take(1)
    pool.give(held, reuse=False)
    assert len(await pool.take(1)) == BLOCK_SIZE
