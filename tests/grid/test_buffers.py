"""Room for sealed bytes: bounded, first come first served; memory is used again once nobody refers to it."""

from __future__ import annotations

import ctypes

import trio
import trio.testing

from gridfs.grid.buffers import BufferPool
from storage.pages import HEAP_BYTES_MAX, PagePool, lent_size

SIZE = HEAP_BYTES_MAX + 1


def bounded(lent_bytes_max: int) -> BufferPool:
    return BufferPool(PagePool(0), lent_bytes_max)


async def test_memory_is_used_again_unless_somebody_may_write_into_it() -> None:
    pages = PagePool(1 << 30)
    pool = BufferPool(pages, 1 << 30)
    first = await pool.take(SIZE)
    part = first[5:]
    pool.give(first)
    where = ctypes.addressof(ctypes.c_char.from_buffer(first))
    del first
    assert (pool.lent_bytes, pages.lent_bytes) == (0, lent_size(SIZE))
    other = await pool.take(SIZE)
    assert ctypes.addressof(ctypes.c_char.from_buffer(other)) != where
    del part
    assert pages.lent_bytes == lent_size(SIZE)
    again = await pool.take(SIZE)
    assert ctypes.addressof(ctypes.c_char.from_buffer(again)) == where


async def test_little_comes_from_the_heap() -> None:
    pages = PagePool(1 << 30)
    pool = BufferPool(pages, 1 << 30)
    buffer = await pool.take(HEAP_BYTES_MAX)
    assert (len(buffer), pool.lent_bytes, pages.lent_bytes) == (HEAP_BYTES_MAX, HEAP_BYTES_MAX, 0)
    pool.give(buffer)
    assert pool.lent_bytes == 0


async def test_who_finds_no_room_waits_in_line() -> None:
    pool = bounded(4 * SIZE)
    held = [await pool.take(2 * SIZE), await pool.take(SIZE)]
    order: list[int] = []

    async def take(parts: int) -> None:
        held.append(await pool.take(parts * SIZE))
        order.append(parts)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, 4)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(take, 1)  # there is room for it, but it is not its turn
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        pool.give(held.pop(0))
        pool.give(held.pop(0))
        await trio.testing.wait_all_tasks_blocked()
        assert order == [4]
        pool.give(held.pop())
    assert order == [4, 1]
    assert pool.lent_bytes == SIZE


async def test_a_size_above_the_bound_is_lent_alone_and_holders_need_not_wait() -> None:
    pool = bounded(SIZE)
    large = await pool.take(8 * SIZE)
    more = pool.take_nowait(SIZE)
    assert pool.lent_bytes == 9 * SIZE
    pool.give(large)
    pool.give(more)
    assert pool.lent_bytes == 0


async def test_a_waiter_that_is_cancelled_gives_its_turn_away() -> None:
    pool = bounded(SIZE)
    held = await pool.take(SIZE)
    with trio.move_on_after(0):
        await pool.take(SIZE)
    pool.give(held)
    assert len(await pool.take(SIZE)) == SIZE
