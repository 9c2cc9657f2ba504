"""The ports on a real machine."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import threading
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import Conflict
from storage.host import OsDisk, SystemClock, SystemEntropy, ThreadOffload, lock_directory
from storage.pages import HUGE_PAGE_SIZE, STEP_SIZE, PagePool, lent_size
from storage.ports import Brief


def test_a_file_is_written_in_parts_and_read_back(tmp_path: Path) -> None:
    disk = OsDisk()
    file = disk.open(str(tmp_path / "f"), create=True)
    parts = [bytes([number % 256]) for number in range(3000)]
    assert file.write_at(parts, 10) == 3000
    assert file.write_at([], 0) == 0
    file.sync()
    assert file.size() == 3010
    buffer = bytearray(4000)
    assert file.read_into(memoryview(buffer), 10) == 3000
    assert bytes(buffer[:3000]) == b"".join(parts)
    file.resize(5)
    assert file.read_into(memoryview(buffer), 5) == 0
    file.close()
    file.close()
    assert file.descriptor is None
    with pytest.raises(OSError, match="closed"):
        file.size()


@pytest.mark.parametrize("size", [1, 4096, 262_143, 262_144, 1_000_000, 1_003_520])
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("refused", [False, True])
def test_direct_access_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, start: int, refused: bool
) -> None:
    """Any size and offset, aligned or not, and also where the file system knows no O_DIRECT."""
    if refused:
        refuse_direct_access(monkeypatch)
    data = PagePool(0).take(size)
    data[:] = random.Random(size).randbytes(size)
    file = OsDisk().open(str(tmp_path / "f"), create=True)
    assert file.write_direct(data, start) == size
    assert file.write_direct(b"end", start + size) == 3
    file.sync()
    assert (tmp_path / "f").read_bytes() == bytes(start) + bytes(data) + b"end"
    pages = PagePool(0).take((size + 3 * 4096) // 4096 * 4096)
    assert file.read_direct(pages, 0) == start + size + 3
    assert bytes(pages[start : start + size]) == bytes(data)
    assert file.read_direct(pages, (size // 4096 + 2) * 4096) == 0
    file.close()


def refuse_direct_access(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_open, whole_fcntl = os.open, fcntl.fcntl

    def refuse(flags: int) -> None:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")

    def guarded_open(path: str, flags: int, mode: int = 0o777) -> int:
        refuse(flags)
        return whole_open(path, flags, mode)

    def guarded_fcntl(descriptor: int, command: int, argument: int = 0) -> object:
        refuse(argument)
        return whole_fcntl(descriptor, command, argument)

    monkeypatch.setattr(os, "open", guarded_open)
    monkeypatch.setattr(fcntl, "fcntl", guarded_fcntl)


def test_memory_is_lent_again_up_to_a_bound() -> None:
    size, lent_bytes = 200_000, lent_size(200_000)
    pool = PagePool(3 * lent_bytes)
    lent = [pool.take(size) for _ in range(4)]
    assert [len(buffer) for buffer in lent] == [size] * 4
    addresses = {address(buffer) for buffer in lent}
    assert len(addresses) == 4
    assert all(where % 4096 == 0 for where in addresses)
    assert pool.lent_bytes == 4 * lent_bytes
    assert pool.kept_bytes < STEP_SIZE
    lent.clear()
    assert pool.lent_bytes == 0
    assert pool.kept_bytes >= 4 * lent_bytes, "as much as was needed at one time"
    forget(pool)
    assert pool.lent_bytes == 0
    assert 3 * lent_bytes <= pool.kept_bytes < 3 * lent_bytes + STEP_SIZE
    again = [pool.take(size) for _ in range(3)]
    assert {address(buffer) for buffer in again} < addresses
    assert pool.lent_bytes == 3 * lent_bytes


def test_what_differs_by_a_little_fits_into_the_same_memory() -> None:
    """Sealed blocks, the plaintext that is in them, and the pages around either."""
    for segments in (4, 16, 64, 128):
        plain, sealed = segments * 65536, segments * (65536 + 16)
        assert lent_size(plain) == lent_size(sealed) == lent_size(sealed // 4096 * 4096 + 4096)
        assert lent_size(sealed) % 4096 == 0


def test_memory_that_anybody_refers_to_is_not_lent_again() -> None:
    pool = PagePool(1 << 20)
    buffer = pool.take(5000)
    where, part = address(buffer), buffer[10:20]
    del buffer
    assert address(pool.take(5000)) != where
    del part
    assert address(pool.take(5000)) == where


def test_sizes_take_over_from_each_other() -> None:
    """As windows do that grow. Memory of each size for itself would be 136 times 200 kB."""
    pool = PagePool(1 << 30)
    before = pool.take(16 * 200_000)
    for size in [*range(1, 16), *range(16, 0, -1)]:
        both = [before, pool.take(size * 200_000)]
        before = both.pop()
        del both
    assert pool.lent_bytes + pool.kept_bytes <= 50 * 200_000


@pytest.mark.parametrize("huge_pages", [False, True])
def test_what_is_free_goes_back_to_the_kernel(huge_pages: bool) -> None:
    pool = PagePool(8 << 20, huge_pages=huge_pages)
    lent = [pool.take(3 << 20) for _ in range(32)]  # more than an arena
    for buffer in lent:
        buffer[:] = b"7" * len(buffer)
    full = resident_bytes()
    remains = lent[20]
    del buffer, lent
    forget(pool)
    assert pool.lent_bytes == lent_size(3 << 20)
    assert pool.kept_bytes < 10 << 20
    assert full - resident_bytes() > 80 << 20
    assert bytes(remains) == b"7" * len(remains)


@given(
    st.lists(st.one_of(st.integers(1, 3_000_000), st.integers(-40, -1)), max_size=60),
    st.integers(0, 8 << 20),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_loans_keep_what_was_written(steps: list[int], bytes_max: int, huge_pages: bool) -> None:
    """Positive numbers take so many bytes, negative ones let go of a loan."""
    pool = PagePool(bytes_max, huge_pages=huge_pages)
    held: list[tuple[memoryview, int]] = []
    for number, step in enumerate(steps):
        if step > 0:
            buffer = pool.take(step)
            mark = number % 251 + 1
            for at in range(0, step, 4096):
                buffer[at] = mark
            buffer[-1] = mark
            held.append((buffer, mark))
            del buffer
        elif held:
            del held[step % len(held)]
        assert pool.lent_bytes == sum(lent_size(len(each)) for each, _ in held)
        assert pool.kept_bytes >= 0
        assert all({*each[::65536], each[-1]} == {mark} for each, mark in held)
    held.clear()
    forget(pool)
    assert pool.kept_bytes < max(bytes_max, lent_size(1)) + (HUGE_PAGE_SIZE if huge_pages else STEP_SIZE)


def forget(pool: PagePool) -> None:
    """Until what was lent at one time before counts no more."""
    for _ in range(6000):
        pool.take(1)


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def test_a_short_write_is_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OsDisk().open(str(tmp_path / "f"), create=True)
    whole = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: whole(fd, [b"".join(parts)[:7]], at))
    assert file.write_at([b"abcde", memoryview(b"fghij"), b"", bytearray(b"klm")], 2) == 13
    assert (tmp_path / "f").read_bytes() == b"\0\0abcdefghijklm"
    file.close()


def test_opening_says_what_the_system_says(tmp_path: Path) -> None:
    disk = OsDisk()
    with pytest.raises(FileNotFoundError):
        disk.open(str(tmp_path / "f"))
    disk.open(str(tmp_path / "f"), create=True, exclusive=True).close()
    with pytest.raises(FileExistsError):
        disk.open(str(tmp_path / "f"), create=True, exclusive=True)
    file = disk.open(str(tmp_path / "f"), writable=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.write_at([b"x"], 0)
    file.close()
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_directories_and_names(tmp_path: Path) -> None:
    disk = OsDisk()
    deep = tmp_path / "a/b/c"
    disk.make_directory(str(deep))
    disk.make_directory(str(deep))
    assert [path.stat().st_mode & 0o777 for path in (deep, deep.parent)] == [0o700, 0o700]
    for name in ("z", "y"):
        disk.open(str(deep / name), create=True).close()
    disk.replace(str(deep / "z"), str(deep / "x"))
    disk.sync_directory(str(deep))
    assert disk.names(str(deep)) == ["x", "y"]
    disk.remove(str(deep / "x"))
    with pytest.raises(FileNotFoundError):
        disk.remove(str(deep / "x"))
    with pytest.raises(FileNotFoundError):
        disk.names(str(tmp_path / "none"))
    with pytest.raises(FileExistsError):
        disk.make_directory(str(deep / "y"))
    space = disk.space(str(deep))
    assert 0 < space.free <= space.total


async def test_offload_runs_in_bounded_threads() -> None:
    offload = ThreadOffload(threads_max=2)
    running = [0, 0]
    lock = threading.Lock()
    meet = threading.Barrier(2)

    def work() -> None:
        with lock:
            running[0] += 1
            running[1] = max(running)
        meet.wait(10)
        with lock:
            running[0] -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(offload.run, work)
    assert running == [0, 2]
    assert await offload.run(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        await offload.run(divmod, 1, 0)


def test_a_directory_has_one_holder_who_is_named(tmp_path: Path) -> None:
    directory = str(tmp_path / "d")
    with lock_directory(directory), pytest.raises(Conflict, match=str(os.getpid())):
        lock_directory(directory).__enter__()
    with lock_directory(directory):
        assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700


def test_entropy_and_clock() -> None:
    assert len(SystemEntropy().token(32)) == 32
    assert SystemEntropy().token(16) != SystemEntropy().token(16)
    assert SystemClock().now_ns() > 1_700_000_000 * 10**9


async def test_a_call_runs_in_the_loop_while_calls_like_it_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    offload, now = ThreadOffload(), [0.0]
    monkeypatch.setattr("storage.host.threads.time.perf_counter", lambda: now[0])

    def take(seconds: float) -> threading.Thread:
        now[0] += seconds
        return threading.current_thread()

    async def is_here(kind: Brief, seconds: float) -> bool:
        return await offload.run_brief(kind, take, seconds) is threading.current_thread()

    # A disk that becomes slow: half of the calls remembered tell, and then they go to threads ...
    assert [await is_here(Brief.SYNC, 0.02) for _ in range(10)] == [True] * 8 + [False] * 2
    assert await is_here(Brief.READ, 0.0001), "reads are judged by reads"
    # ... until it was quick there for a while.
    assert [await is_here(Brief.SYNC, 0.001) for _ in range(16)].count(True) == 7
    assert await is_here(Brief.SYNC, 0.001)
    # One that hangs is told by one call, and forgotten after as many as are remembered.
    assert await is_here(Brief.SYNC, 0.06)
    assert [await is_here(Brief.SYNC, 0.001) for _ in range(17)] == [False] * 16 + [True]
    with pytest.raises(ZeroDivisionError):
        await offload.run_brief(Brief.READ, divmod, 1, 0)


def test_what_is_in_memory_is_read_without_waiting(tmp_path: Path) -> None:
    file = OsDisk().open(str(tmp_path / "f"), create=True)
    assert file.write_through([b"abc", b"", b"def"], 4096) == 6
    buffer = bytearray(8)
    assert file.read_ready(memoryview(buffer)[:4], 4098) == 4
    assert buffer[:4] == b"cdef"
    assert file.read_ready(memoryview(buffer), 4098) == 4
    assert file.read_ready(memoryview(buffer), 5000) == 0
    file.close()
