"""The simulated disk: what is durable, what a crash may make of the rest, and planted faults."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from storage.ports import Disk
from tests.simulation.disk import SimDisk
from tests.simulation.platter import DiskFault, MachineDead, Platter, sectors
from tests.simulation.runner import chance

SEEDS = range(40)


def disk_of(seed: int = 0, capacity: int | None = None) -> SimDisk:
    stream = chance(seed, "platter")
    return SimDisk(Platter(stream) if capacity is None else Platter(stream, capacity))


def put(disk: Disk, path: str, data: bytes, *, sync: bool = True) -> None:
    file = disk.open(path, create=True)
    file.resize(0)
    file.write_at([data], 0)
    if sync:
        file.sync()
    file.close()


def get(disk: Disk, path: str) -> bytes | None:
    try:
        file = disk.open(path, writable=False)
    except FileNotFoundError:
        return None
    data = bytearray(file.size())
    assert file.read_into(memoryview(data), 0) == len(data)
    return bytes(data)


def after_crash(seed: int, before: Callable[[Disk], object]) -> SimDisk:
    disk = disk_of(seed)
    before(disk)
    disk.platter.crash()
    return SimDisk(disk.platter)


def test_reads_see_writes_at_once_and_stop_at_the_end() -> None:
    disk = disk_of()
    file = disk.open("/f", create=True)
    assert file.write_at([b"ab", bytearray(b"cd"), memoryview(b"e")], 3) == 5
    buffer = bytearray(b"........")
    assert file.read_into(memoryview(buffer), 2) == 6
    assert bytes(buffer) == b"\0abcde.."
    assert file.read_into(memoryview(buffer), 8) == 0
    file.resize(4)
    assert (file.size(), get(disk, "/f")) == (4, b"\0\0\0a")
    assert file.descriptor is None


def test_errors_are_those_of_the_operating_system() -> None:
    disk = disk_of()
    disk.make_directory("/d/e")
    put(disk, "/d/f", b"x")
    with pytest.raises(FileNotFoundError):
        disk.open("/none")
    with pytest.raises(FileExistsError):
        disk.open("/d/f", create=True, exclusive=True)
    with pytest.raises(IsADirectoryError):
        disk.open("/d/e")
    with pytest.raises(NotADirectoryError):
        disk.open("/d/f/g", create=True)
    with pytest.raises(FileNotFoundError):
        disk.remove("/none")
    with pytest.raises(FileNotFoundError):
        disk.names("/none")
    with pytest.raises(OSError, match="reading only") as caught:
        disk.open("/d/f", writable=False).write_at([b"y"], 0)
    assert caught.value.errno == errno.EBADF
    closed = disk.open("/d/f")
    closed.close()
    closed.close()
    with pytest.raises(OSError, match="closed"):
        closed.size()


def test_a_file_stays_good_after_its_name_is_gone() -> None:
    disk = disk_of()
    put(disk, "/a", b"old")
    put(disk, "/b", b"new")
    held = disk.open("/a")
    disk.replace("/b", "/a")
    buffer = bytearray(3)
    held.read_into(memoryview(buffer), 0)
    assert (bytes(buffer), get(disk, "/a"), disk.names("/")) == (b"old", b"new", ["a"])


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_synced_with_its_name_survives_every_crash(seed: int) -> None:
    def before(disk: Disk) -> None:
        disk.make_directory("/d")
        disk.sync_directory("/")
        put(disk, "/d/f", b"kept" * 1000)
        disk.sync_directory("/d")

    assert get(after_crash(seed, before), "/d/f") == b"kept" * 1000


def test_unsynced_bytes_are_dropped_kept_or_torn() -> None:
    def before(disk: Disk) -> None:
        put(disk, "/f", b"o" * 2048)
        disk.sync_directory("/")
        disk.open("/f").write_at([b"n" * 2048], 0)

    found = {get(after_crash(seed, before), "/f") for seed in SEEDS}
    assert {b"o" * 2048, b"n" * 2048} < found
    for content in found:
        assert content is not None
        assert len(content) == 2048
        assert all(len({*content[start:end]}) == 1 for start, end in sectors(0, 2048))


def test_a_later_write_may_survive_an_earlier_one() -> None:
    def before(disk: Disk) -> None:
        put(disk, "/f", b"....")
        disk.sync_directory("/")
        file = disk.open("/f")
        file.write_at([b"1"], 0)
        file.write_at([b"2"], 1)

    found = {get(after_crash(seed, before), "/f") for seed in SEEDS}
    assert found == {b"....", b"1...", b".2..", b"12.."}


def test_a_file_synced_without_its_directory_may_be_gone() -> None:
    found = {get(after_crash(seed, lambda disk: put(disk, "/f", b"x")), "/f") for seed in SEEDS}
    assert found == {None, b"x"}


def test_a_rename_is_whole_old_or_new() -> None:
    def before(disk: Disk) -> None:
        put(disk, "/f", b"old")
        disk.sync_directory("/")
        put(disk, "/f.new", b"new")
        disk.replace("/f.new", "/f")

    found = {get(after_crash(seed, before), "/f") for seed in SEEDS}
    assert found == {b"old", b"new"}


def test_steps_in_a_directory_survive_as_a_prefix() -> None:
    def before(disk: Disk) -> None:
        for name in "abcd":
            put(disk, "/" + name, b"x")

    found = {"".join(after_crash(seed, before).names("/")) for seed in SEEDS}
    assert found == {"", "a", "ab", "abc", "abcd"}


def test_the_dead_change_nothing() -> None:
    disk = disk_of()
    put(disk, "/f", b"good")
    disk.sync_directory("/")
    file = disk.open("/f")
    disk.platter.crash()
    for call in (
        lambda: file.write_at([b"evil"], 0),
        lambda: file.sync(),
        lambda: disk.remove("/f"),
        lambda: disk.open("/g", create=True),
    ):
        with pytest.raises(MachineDead):
            call()
    file.close()
    assert get(SimDisk(disk.platter), "/f") == b"good"


def test_a_process_that_ends_loses_nothing() -> None:
    disk = disk_of()
    put(disk, "/f", b"x", sync=False)
    disk.platter.shut_down()
    assert get(SimDisk(disk.platter), "/f") == b"x"


def test_faults_strike_where_and_when_they_are_planted() -> None:
    disk = disk_of()
    disk.platter.faults.append(DiskFault("sync", errno.EIO, "/f", skip=1, count=1))
    put(disk, "/other", b"x")
    put(disk, "/f", b"1")
    with pytest.raises(OSError, match="Input/output") as caught:
        put(disk, "/f", b"2")
    assert caught.value.errno == errno.EIO
    put(disk, "/f", b"3")


def test_a_full_disk_refuses_growth_and_nothing_else() -> None:
    disk = disk_of(capacity=100)
    put(disk, "/f", b"x" * 60)
    assert disk.space("/").free == 40
    file = disk.open("/f")
    with pytest.raises(OSError, match="No space") as caught:
        file.write_at([b"y" * 41], 60)
    assert caught.value.errno == errno.ENOSPC
    assert file.size() == 60
    file.write_at([b"y" * 60], 0)
    disk.remove("/f")
    assert disk.space("/").free == 100


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 0, []),
        (0, 512, [(0, 512)]),
        (500, 24, [(500, 512), (512, 524)]),
        (512, 1024, [(512, 1024), (1024, 1536)]),
        (1, 2, [(1, 3)]),
    ],
)
def test_sectors_of_a_range(offset: int, length: int, expected: list[tuple[int, int]]) -> None:
    assert sectors(offset, length) == expected
