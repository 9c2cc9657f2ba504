"""Pages that the kernel gets unasked: they spare requests, and are never older than the file."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gridfs.files.surroundings import ROW
from storage.transport.residency import cached_pages
from tests.mount.conftest import MakeFileSystem
from tests.mount.support import content, shell, wait_until
from tests.processes import LocalGrid, MountedFileSystem

PAGE = 4096
SEGMENT = 65536
SIZE = 4 << 20


def reads(mounted: MountedFileSystem) -> int:
    return int(mounted.status()["calls"].get("read", 0))


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        # The kernel's own read-ahead is not what is asked here.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        yield descriptor
    finally:
        os.close(descriptor)


def drop(path: Path) -> None:
    with opened(path) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def test_a_random_reader_asks_for_fewer_pages_than_there_are_segments(
    make_file_system: MakeFileSystem,
) -> None:
    mounted = make_file_system()
    path, data = mounted.path / "file", content(1, SIZE + 1000)
    path.write_bytes(data)
    mounted.remount()
    before = reads(mounted)
    pages = list(range(-(-len(data) // PAGE)))
    random.Random(1).shuffle(pages)
    with opened(path) as descriptor:
        for page in pages:
            assert os.pread(descriptor, PAGE, page * PAGE) == data[page * PAGE : (page + 1) * PAGE]
    assert reads(mounted) - before < SIZE // SEGMENT
    # A reader that goes past the page cache gets what it asks for, and nothing else.
    with opened(path, os.O_RDONLY | os.O_DIRECT) as descriptor:
        buffers = [memoryview(bytearray(PAGE))]
        assert os.preadv(descriptor, buffers, 8 * PAGE) in (PAGE, -1)


def resident(path: Path) -> int:
    """Bytes of a file that are in the page cache."""
    return int(shell("fincore", "--noheadings", "--bytes", "--output", "RES", path).stdout)


def test_two_jumps_into_a_row_bring_all_of_it(make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system()
    path, data = mounted.path / "file", content(2, SIZE)
    path.write_bytes(data)
    mounted.remount()
    with opened(path) as descriptor:
        # Once into each row: nothing but the segments.
        for row in range(4):
            os.pread(descriptor, PAGE, row * ROW + 5 * SEGMENT)
        wait_until(lambda: resident(path) == 4 * SEGMENT, "four segments in memory")
        os.pread(descriptor, PAGE, 2 * ROW + 9 * SEGMENT)
        wait_until(lambda: resident(path) == 3 * SEGMENT + ROW, "a row in memory")
        before, asked = reads(mounted), 0
        for at in range(2 * ROW, 3 * ROW, PAGE):
            # The machine may take pages away again at any time: those are asked for once more.
            missing = cached_pages(descriptor, at, PAGE) != 1
            assert os.pread(descriptor, PAGE, at) == data[at : at + PAGE]
            asked += missing
        assert reads(mounted) - before <= asked


def test_large_random_reads_bring_their_rows(make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system()
    size, piece = 64 * ROW + 1000, ROW // 8
    path, data = mounted.path / "file", content(3, size)
    path.write_bytes(data)
    mounted.remount()
    before = reads(mounted)
    offsets = list(range(0, size, piece))
    random.Random(3).shuffle(offsets)
    with opened(path) as descriptor:
        for offset in offsets:
            assert os.pread(descriptor, piece, offset) == data[offset : offset + piece]
    assert reads(mounted) - before < len(offsets) // 2


def stamped(page: int, version: int) -> bytes:
    return (b"%08d %08d\n" % (page, version)) * (PAGE // 18) + bytes(PAGE % 18)


def version_of(page: int, data: bytes) -> int:
    """Which version this page is of. AssertionError where it is none, or of more than one."""
    assert len(data) == PAGE
    version = int(data[9:17])
    assert data == stamped(page, version), (page, data[:40])
    return version


def test_what_was_changed_is_never_read_as_it_was(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    """Readers in other threads make the daemon store pages all the time, while the file is written by new
    handles, cut and drained. Each page that a reader sees is whole, and none older than the one before a
    write that had returned."""
    mounted = make_file_system(six)
    path, count = mounted.path / "file", 256
    path.write_bytes(b"".join(stamped(page, 1) for page in range(count)))
    least = [1] * count
    ended = threading.Event()
    failures: list[BaseException] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        try:
            while not ended.is_set():
                with opened(path) as descriptor:
                    for _ in range(40):
                        page = chance.randrange(count)
                        floor = least[page]
                        data = os.pread(descriptor, PAGE, page * PAGE)
                        if len(data) == PAGE and any(data):  # else it is cut off just now
                            assert version_of(page, data) >= floor, (page, floor, data[:20])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        chance = random.Random(7)
        for version in range(2, 13):
            mounted.sync()
            drop(path)
            time.sleep(chance.random() * 0.01)  # until the readers are at it
            low = chance.randrange(count - 4)
            cut = version % 3 == 0
            if cut:
                os.truncate(path, low * PAGE)
            with opened(path, os.O_WRONLY) as descriptor:
                pages = range(low, count) if cut else range(low, low + chance.randint(1, 4))
                for page in pages:
                    os.pwrite(descriptor, stamped(page, version), page * PAGE)
            for page in pages:
                least[page] = version
            whole = path.read_bytes()
            for page in range(count):
                data = whole[page * PAGE : (page + 1) * PAGE]
                assert version_of(page, data) == least[page], (version, page)
            assert not failures, failures
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
    assert not failures, failures
