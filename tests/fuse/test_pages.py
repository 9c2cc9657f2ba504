"""What is stored in the page cache: whole pages, of nothing that may have changed since it was read."""

from __future__ import annotations

import threading

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gridfs.files.reader import Opened
from gridfs.fuse.pages import PAGE, WAITING_BYTES_MAX, Pages, whole_pages
from storage.ports import Buffer

INO = 7
SIZE = 1 << 20


class Kernel:
    """Takes pages, once it is let."""

    def __init__(self) -> None:
        self.stored: list[tuple[int, int, bytes]] = []
        self.may = threading.Event()
        self.may.set()

    def store(self, ino: int, offset: int, data: Buffer) -> None:
        assert self.may.wait(10)
        self.stored.append((ino, offset, bytes(data)))


def read(pages: Pages, offset: int = 0, length: int = PAGE, opened: int = 16 * PAGE) -> None:
    """A read of an inode that had the segment at 0 opened for it."""
    reading = pages.begin(INO, offset, length)
    if reading is not None:
        reading.opened.append(Opened(0, memoryview(bytes(opened))))
        pages.end(reading, SIZE)


async def test_the_rest_of_a_segment_is_stored_around_what_was_asked_for() -> None:
    kernel = Kernel()
    pages = Pages(SIZE, kernel.store)
    other = pages.begin(INO, 8 * PAGE, PAGE)
    assert other is not None
    read(pages, 2 * PAGE)
    pages.end(other, None)
    await pages.still(INO)
    places = [(offset // PAGE, len(data) // PAGE) for _, offset, data in kernel.stored]
    assert places == [(0, 2), (3, 5), (9, 7)]
    pages.close()


async def test_a_change_waits_until_everything_has_arrived() -> None:
    kernel = Kernel()
    pages = Pages(SIZE, kernel.store)
    kernel.may.clear()
    read(pages)
    begun = pages.begin(INO, 0, PAGE)
    assert begun is not None
    with trio.move_on_after(0.1) as scope:
        await pages.still(INO)
    assert scope.cancelled_caught
    await pages.still(INO + 1)
    kernel.may.set()
    await pages.still(INO)
    assert len(kernel.stored) == 1
    # A read that began before the change gives nothing any more, nor does one while somebody may write.
    begun.opened.append(Opened(0, memoryview(bytes(16 * PAGE))))
    pages.end(begun, SIZE)
    pages.opened_to_write(INO)
    read(pages)
    pages.closed(INO)
    await pages.still(INO)
    assert len(kernel.stored) == 1
    read(pages)
    await pages.still(INO)
    assert len(kernel.stored) == 2
    pages.close()


async def test_what_was_opened_for_a_read_during_which_somebody_came_to_write_is_not_stored() -> None:
    kernel = Kernel()
    pages = Pages(SIZE, kernel.store)
    reading = pages.begin(INO, 0, PAGE)
    assert reading is not None
    reading.opened.append(Opened(0, memoryview(bytes(16 * PAGE))))
    await pages.still(INO)
    pages.opened_to_write(INO)
    pages.closed(INO)
    pages.end(reading, SIZE)
    await pages.still(INO)
    assert not kernel.stored
    pages.close()


async def test_a_kernel_that_is_slow_or_takes_nothing_is_not_pressed() -> None:
    kernel = Kernel()
    pages = Pages(SIZE, kernel.store)
    kernel.may.clear()
    for _ in range(3 * WAITING_BYTES_MAX // (15 * PAGE)):
        read(pages)
    kernel.may.set()
    await pages.still(INO)
    stored = sum(len(data) for _, _, data in kernel.stored)
    assert WAITING_BYTES_MAX <= stored < WAITING_BYTES_MAX + 16 * PAGE
    pages.close()
    read(pages)
    await pages.still(INO)
    assert sum(len(data) for _, _, data in kernel.stored) == stored
    assert Pages(SIZE).begin(INO, 0, 1) is None


@pytest.mark.parametrize("size", [SIZE, SIZE + 1])
async def test_files_that_memory_does_not_hold_are_left_out(size: int) -> None:
    kernel = Kernel()
    pages = Pages(SIZE, kernel.store)
    reading = pages.begin(INO, 0, PAGE)
    assert reading is not None
    reading.opened.append(Opened(0, memoryview(bytes(16 * PAGE))))
    pages.end(reading, size)
    await pages.still(INO)
    assert bool(kernel.stored) == (size == SIZE)
    pages.close()


@given(
    st.integers(0, 5 * PAGE),
    st.integers(1, 20 * PAGE),
    st.lists(st.tuples(st.integers(0, 30 * PAGE), st.integers(1, 3 * PAGE)), max_size=4),
    st.integers(0, 30 * PAGE),
)
def test_pages_are_whole_inside_and_not_asked_for(
    start: int, length: int, asked: list[tuple[int, int]], size: int
) -> None:
    data = bytes(at % 251 for at in range(start, start + length))
    ranges = sorted((low, low + count) for low, count in asked)
    found = list(whole_pages(Opened(start, memoryview(data)), ranges, size))
    covered: set[int] = set()
    for offset, piece in found:
        end = offset + len(piece)
        assert piece == data[offset - start : end - start]
        assert offset % PAGE == 0
        assert end % PAGE == 0 or end == size
        assert start <= offset < end <= min(start + length, size)
        assert all(end <= low or high <= offset for low, high in ranges)
        covered |= {*range(offset // PAGE, -(-end // PAGE))}
    for page in range(-(-start // PAGE), -(-size // PAGE)):
        low, high = page * PAGE, min((page + 1) * PAGE, size)
        is_free = all(high <= first or last <= low for first, last in ranges)
        if high <= start + length and is_free:
            assert page in covered
