"""What a cold sequential read costs in requests, whatever k is."""

from __future__ import annotations

from collections.abc import Callable

from tests.mount.conftest import MakeFileSystem
from tests.mount.support import sha256, write_large
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
