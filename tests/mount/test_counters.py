"""What things cost in requests and operations: a cold sequential read whatever k is, and small acts."""

from __future__ import annotations

import os
from collections.abc import Callable

from gridfs.meta.operations import PARTS_MAX
from tests.mount.conftest import MakeFileSystem
from tests.mount.support import sha256, wait_until, write_large
from tests.processes import FileSystemShape, LocalGrid, MountedFileSystem

SIZE = 100_000_000
WINDOW = 4 << 20
"""Bytes of plaintext for which one request per server suffices."""


def spans_and_requests(mounted: MountedFileSystem) -> tuple[int, int]:
    readv = mounted.status()["readv"]
    return readv["spans"], readv["requests"]


def readv_requests(mounted: MountedFileSystem) -> dict[str, int]:
    return {server["name"]: server["requests"].get("readv", 0) for server in mounted.status()["servers"]}


def cold_read(mounted: MountedFileSystem) -> None:
    written = write_large(mounted.path / "large", SIZE, 3)
    mounted.remount()
    before = readv_requests(mounted)
    assert sha256(mounted.path / "large") == written
    asked = {name: count - before[name] for name, count in readv_requests(mounted).items()}
    most = -(-SIZE // WINDOW)
    assert any(asked.values())
    assert max(asked.values()) <= most, asked
    assert mounted.status()["reads"]["reconstructed"] == 0


def test_three_of_six(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    cold_read(make_file_system(shape=FileSystemShape(k=3, n=6, happy=5)))


def test_one_request_for_each_range_to_compare_with(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system(shape=FileSystemShape(k=3, n=6, happy=5), options=("measure=single",))
    written = write_large(mounted.path / "large", 8 << 20, 4)
    mounted.remount()
    assert sha256(mounted.path / "large") == written
    spans, requests = spans_and_requests(mounted)
    assert requests == spans > 0


def test_sixty_of_a_hundred(make_grid: Callable[..., LocalGrid], make_file_system: MakeFileSystem) -> None:
    grid = make_grid(servers=10)
    options = ("--shares-per-server", "10")
    cold_read(make_file_system(grid, FileSystemShape(k=60, n=100, happy=62, options=options)))


def test_a_first_read_asks_for_no_attributes_once_more(
    six: LocalGrid, make_file_system: MakeFileSystem
) -> None:
    """Its open moves the access time; the kernel hears of it when something is read, or at the end."""
    mounted = make_file_system()
    names = ["read", "closed"]
    for name in names:
        (mounted.path / name).write_bytes(b"content")
    mounted.remount()
    before = {name: (mounted.path / name).stat() for name in names}
    calls = mounted.status()["calls"]
    for name in names:
        with (mounted.path / name).open("rb") as file:
            assert os.fstat(file.fileno()).st_atime_ns == before[name].st_atime_ns
            if name == "read":
                assert file.read() == b"content"
    now = mounted.status()["calls"]
    assert {name: now[name] - calls.get(name, 0) for name in ("getattr", "open", "read")} == {
        "getattr": 0,
        "open": 2,
        "read": 1,
    }
    assert (mounted.path / "read").stat().st_atime_ns > before["read"].st_atime_ns
    wait_until(
        lambda: (mounted.path / "closed").stat().st_atime_ns > before["closed"].st_atime_ns, "the release"
    )
    mounted.umount()


def test_an_unlink_is_two_operations_at_most(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    """The name goes, and the inode, with others where they go at one time. In between the kernel tells new
    times, which nobody will see."""
    mounted = make_file_system()
    paths = [mounted.path / f"file{number}" for number in range(20)]
    for path in paths:
        path.touch()
    operations, calls = mounted.status()["operations"], mounted.status()["calls"]
    for path in paths:
        path.unlink()
    wait_until(lambda: mounted.status()["files"] == 0, "the kernel forgets them")
    drops = mounted.status()["operations"] - operations - len(paths)
    assert -(-len(paths) // PARTS_MAX) <= drops <= len(paths)
    assert mounted.status()["calls"]["setattr"] - calls.get("setattr", 0) == len(paths)
    mounted.umount()
