"""The spool: what was appended is read back, replayed after a kill, and leaves in order."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gridfs.files.overlay import Source
from gridfs.files.spool import SLOT_HEADER, Replayed, Spool
from gridfs.files.spoolformat import PAGE, ROOM
from storage.errors import Corrupt, Exhausted, Refused
from storage.host import OsDisk
from storage.host.disk import OsFile
from storage.ports import Buffer, Space
from storage.system import system_machine

KEY = bytes(range(32))
LIMIT = 32 << 20
SLOT = 4 << 20


class WatchedFile(OsFile):
    def __init__(self, file: OsFile, writes: list[tuple[int, int]]) -> None:
        super().__init__(os.dup(file.descriptor or 0))
        file.close()
        self._writes = writes

    def write_at(self, parts: Sequence[Buffer], offset: int) -> int:
        done = super().write_at(parts, offset)
        self._writes.append((offset, offset + done))
        return done


class WatchedDisk(OsDisk):
    """Keeps which ranges of each file were written."""

    def __init__(self) -> None:
        self.written: list[list[tuple[int, int]]] = []

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True
    ) -> OsFile:
        self.written.append([])
        file = super().open(path, create=create, exclusive=exclusive, writable=writable)
        return WatchedFile(file, self.written[-1])


class FailingFile(OsFile):
    """Its next writes fail, as long as `fails` has numbers: so many bytes are written all the same."""

    def __init__(self, file: OsFile, fails: list[int]) -> None:
        super().__init__(os.dup(file.descriptor or 0))
        file.close()
        self._fails = fails

    def write_at(self, parts: Sequence[Buffer], offset: int) -> int:
        if not self._fails:
            return super().write_at(parts, offset)
        super().write_at([b"".join(parts)[: self._fails.pop()]], offset)
        raise OSError(errno.EIO, "planted")


class FailingDisk(OsDisk):
    def __init__(self) -> None:
        self.fails: list[int] = []

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True
    ) -> OsFile:
        file = super().open(path, create=create, exclusive=exclusive, writable=writable)
        return FailingFile(file, self.fails)


def make(directory: Path) -> Spool:
    return Spool(system_machine(), str(directory / "spool"), KEY, LIMIT)


def opened(directory: Path, applied: int = 0) -> tuple[Spool, list[Replayed]]:
    """`applied`: what the metadata has."""
    spool = make(directory)
    return spool, list(spool.open(applied))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made, found = opened(tmp_path)
    assert found == []
    yield made
    made.close()


def read(spool: Spool, source: Source, skip: int, size: int) -> bytes:
    out = bytearray(size)
    spool.read_into(source, skip, memoryview(out))
    return bytes(out)


@pytest.mark.parametrize("phase", [0, 1, 4096, 65535])
@pytest.mark.parametrize("size", [1, 4096, 65535, 65536, 65537, 200_001])
def test_any_part_of_a_record_is_read_back(spool: Spool, size: int, phase: int) -> None:
    data = os.urandom(size)
    source = spool.append(1, b"operation", data, phase)
    assert read(spool, source, 0, size) == data
    chance = random.Random(size * 7 + phase)
    for _ in range(20):
        skip = chance.randrange(size)
        length = chance.randrange(size - skip + 1)
        assert read(spool, source, skip, length) == data[skip : skip + length]
    with pytest.raises(Corrupt):
        read(spool, source, 0, size + 1)


def test_a_killed_process_leaves_every_record(tmp_path: Path) -> None:
    spool, _ = opened(tmp_path)
    wanted = []
    for number in range(1, 200):
        data = os.urandom(number * 1000 % 140_001)
        spool.append(number, b"op %d" % number, data, number * 999 % 65536)
        wanted.append((number, b"op %d" % number, data))
    # Not closed: a killed process does not close anything either.
    again, found = opened(tmp_path)
    assert [(item.number, item.operation) for item in found] == [(n, op) for n, op, _ in wanted]
    for item, (_, _, data) in zip(found, wanted, strict=True):
        assert item.data_length == len(data)
        if item.source is not None:
            assert read(again, item.source, 0, len(data)) == data
    assert again.live_bytes == sum(len(data) for _, _, data in wanted)
    assert again.last == 199
    again.append(200, b"goes on")
    final, found = opened(tmp_path)
    assert [item.number for item in found] == list(range(1, 201))
    for each in (spool, again, final):
        each.close()


@pytest.mark.parametrize("kept", [0, 40, 60, 4000])
@pytest.mark.parametrize("times", [1, 2])
def test_a_record_whose_write_failed_does_not_count(tmp_path: Path, kept: int, times: int) -> None:
    """What did get to the disk may be all of the record, without the zeros behind it."""
    disk = FailingDisk()
    machine = dataclasses.replace(system_machine(), disk=disk)
    spool = Spool(machine, str(tmp_path / "spool"), KEY, LIMIT)
    assert list(spool.open(0)) == []
    spool.append(1, b"first")
    for number in range(2, 2 + times):
        disk.fails.append(kept)
        with pytest.raises(OSError, match="planted"):
            spool.append(number, b"failed")
        spool.append(number, b"done")
    spool.append(2 + times, b"last")
    spool.close()
    spool, found = opened(tmp_path)
    spool.close()
    assert [record.operation for record in found] == [b"first", *[b"done"] * times, b"last"]


@pytest.mark.parametrize("kept", [0, 8, 40, 64, 4096])
@pytest.mark.parametrize("fails_again", [False, True])
def test_the_slot_before_one_that_did_not_begin_goes_on(tmp_path: Path, kept: int, fails_again: bool) -> None:
    disk = FailingDisk()
    spool = Spool(dataclasses.replace(system_machine(), disk=disk), str(tmp_path / "spool"), KEY, LIMIT)
    assert list(spool.open(0)) == []
    spool.append(1, b"first")
    disk.fails.append(kept)
    with pytest.raises(OSError, match="planted"):
        spool.append(2, b"large", bytes(SLOT))
    if fails_again and kept:
        disk.fails.append(0)
        with pytest.raises(OSError, match="planted"):
            spool.append(2, b"refused while the header cannot be taken back")
    spool.append(2, b"second")
    spool.append(3, b"third")
    spool.close()
    spool, found = opened(tmp_path)
    spool.close()
    assert [record.operation for record in found] == [b"first", b"second", b"third"]
    assert (tmp_path / "spool" / "0000.spool").read_bytes().count(b"OPRC") == 3, "all in one slot"


@pytest.mark.parametrize("cut", [1, 17, 5000, 65536 + 40])
def test_a_torn_tail_ends_the_replay_and_nothing_else(tmp_path: Path, cut: int) -> None:
    spool, _ = opened(tmp_path)
    for number in range(1, 6):
        spool.append(number, b"op", os.urandom(100_000))
    path = next((tmp_path / "spool").glob("*.spool"))
    end = spool.disk_bytes
    spool.close()
    os.truncate(path, end - cut)
    again, found = opened(tmp_path)
    assert [item.number for item in found] == [1, 2, 3, 4]
    again.append(5, b"another fifth", b"x" * 10)
    again.close()
    final, found = opened(tmp_path)
    assert [item.operation for item in found][-1] == b"another fifth"
    final.close()


@pytest.mark.parametrize("position", [SLOT_HEADER.size + 3, SLOT_HEADER.size + 40, SLOT_HEADER.size + 9000])
def test_a_changed_byte_is_never_believed(tmp_path: Path, position: int) -> None:
    spool, _ = opened(tmp_path)
    for number in range(1, 4):
        spool.append(number, b"op", os.urandom(50_000))
    spool.close()
    path = next((tmp_path / "spool").glob("*.spool"))
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
    again, found = opened(tmp_path)
    assert found == []
    again.close()


def test_slots_leave_in_order_and_are_used_again(spool: Spool, tmp_path: Path) -> None:
    sources = []
    for number in range(1, 13):
        sources.append(spool.append(number, b"op", os.urandom(1_300_000)))
    used = spool.disk_bytes
    spool.retire(sources[4], 1_300_000)  # in the second slot: the first one is still needed
    assert spool.reclaim(0) == 0
    for source in sources[:4]:
        spool.retire(source, 1_300_000)
    assert spool.reclaim(2) == 0  # not durable in the metadata yet
    assert spool.reclaim(12) == 1
    assert spool.disk_bytes < used
    files = sorted((tmp_path / "spool").glob("*.spool"))
    for number in range(13, 16):
        spool.append(number, b"op", os.urandom(1_300_000))
    assert sorted((tmp_path / "spool").glob("*.spool")) == files


def test_no_page_is_written_in_part_before_it_was_written_whole(tmp_path: Path) -> None:
    """In a file that is used again it would be read from the disk for that, in the loop."""
    disk = WatchedDisk()
    spool = Spool(dataclasses.replace(system_machine(), disk=disk), str(tmp_path / "spool"), KEY, LIMIT)
    assert list(spool.open(0)) == []
    chance = random.Random(7)
    begun = 0
    for number in range(1, 1500):
        size = chance.choice([0, 0, 1, 1000, 4096, 70_000])
        source = spool.append(number, bytes(chance.randrange(1, 300)), bytes(size), chance.randrange(65536))
        if size:
            spool.retire(source, size)
        begun += spool.reclaim(number)
    assert begun > 1
    for writes in disk.written:
        whole = 0
        for start, end in writes:
            if (start, end) == (0, SLOT_HEADER.size):  # made free
                continue
            if start == 0:  # begun
                whole = 0
            assert start <= whole
            assert end <= whole or end % PAGE == 0
            whole = max(whole, end)
    spool.close()


def test_small_records_seldom_make_a_file_longer(tmp_path: Path) -> None:
    """A sync waits for the file system's own journal where one did."""
    spool, _ = opened(tmp_path)
    sizes = set()
    for number in range(1, 401):
        spool.append(number, b"op", bytes(1000))
        sizes.add((tmp_path / "spool" / "0000.spool").stat().st_size)
    assert len(sizes) == 1 + -(-spool.disk_bytes // ROOM)
    spool.close()


def test_a_reclaimed_slot_is_not_replayed(tmp_path: Path) -> None:
    spool, _ = opened(tmp_path)
    sources = [spool.append(number, b"op", os.urandom(1_300_000)) for number in range(1, 13)]
    for source in sources[:6]:
        spool.retire(source, 1_300_000)
    assert spool.reclaim(12) == 2
    again, found = opened(tmp_path, applied=12)
    assert [item.number for item in found] == list(range(7, 13))
    again.close()
    spool.close()


def test_a_pinned_slot_stays(spool: Spool) -> None:
    sources = [spool.append(number, b"op", os.urandom(1_300_000)) for number in range(1, 8)]
    spool.pin(sources[0])
    for source in sources[:3]:
        spool.retire(source, 1_300_000)
    assert spool.reclaim(7) == 0
    spool.unpin(sources[0])
    assert spool.reclaim(7) == 1


def test_a_full_spool_says_so_and_still_takes_what_makes_room(spool: Spool) -> None:
    number = 0
    while spool.room(1_000_000):
        number += 1
        spool.append(number, b"op", os.urandom(1_000_000))
    assert number >= 3 * (LIMIT // SLOT - 2)
    for _ in range(50):
        number += 1
        spool.append(number, b"a commit")

    def append_on() -> None:
        for further in range(number + 1, number + 1000):
            spool.append(further, b"op", os.urandom(1_000_000))

    with pytest.raises(Exhausted):
        append_on()


def test_numbers_may_jump_where_the_grid_was_ahead(tmp_path: Path) -> None:
    spool, _ = opened(tmp_path)
    spool.append(1, b"one", b"data")
    spool.append(2, b"two")
    spool.append(10, b"ten")
    spool.append(11, b"eleven")
    again, found = opened(tmp_path, applied=9)
    assert [item.number for item in found] == [1, 2, 10, 11]
    spool.close()
    again.close()


def test_a_gap_that_the_metadata_does_not_fill_ends_the_log(tmp_path: Path) -> None:
    spool, _ = opened(tmp_path)
    spool.append(1, b"one")
    spool.append(10, b"ten")
    again, found = opened(tmp_path, applied=8)
    assert [item.number for item in found] == [1]
    again.append(2, b"two")
    final, found = opened(tmp_path, applied=8)
    assert [item.operation for item in found] == [b"one", b"two"]
    for each in (spool, again, final):
        each.close()


def test_a_log_does_not_begin_behind_what_the_metadata_has(tmp_path: Path) -> None:
    spool, _ = opened(tmp_path)
    spool.append(6, b"six")
    again, found = opened(tmp_path, applied=4)
    assert found == []
    spool.close()
    again.close()


def test_a_reclaimed_slot_that_the_disk_brings_back_is_no_reason_to_drop_later_ones(tmp_path: Path) -> None:
    """Three slots; the first two were given up, and power loss undid that for the first one."""
    spool, _ = opened(tmp_path)
    sources = [spool.append(number, b"op", os.urandom(1_300_000)) for number in range(1, 10)]
    first = min((tmp_path / "spool").glob("*.spool"))
    header = first.read_bytes()[: SLOT_HEADER.size]
    for source in sources[:6]:
        spool.retire(source, 1_300_000)
    assert spool.reclaim(6) == 2
    spool.close()
    first.write_bytes(header + first.read_bytes()[SLOT_HEADER.size :])
    again, found = opened(tmp_path, applied=6)
    assert [item.number for item in found] == [1, 2, 3, 7, 8, 9]
    again.close()


def test_a_lost_slot_ends_the_log_and_the_rest_is_set_aside(tmp_path: Path) -> None:
    spool, _ = opened(tmp_path)
    for number in range(1, 10):
        spool.append(number, b"op", os.urandom(1_300_000))
    spool.close()
    files = sorted((tmp_path / "spool").glob("*.spool"))
    assert len(files) == 3
    files[1].unlink()
    again, found = opened(tmp_path)
    assert [item.number for item in found] == [1, 2, 3]
    assert files[2].with_name(files[2].name + ".aside-1").exists()
    again.close()


def test_an_unknown_version_is_refused(tmp_path: Path) -> None:
    spool, _ = opened(tmp_path)
    spool.append(1, b"op")
    spool.close()
    path = next((tmp_path / "spool").glob("*.spool"))
    raw = bytearray(path.read_bytes())
    raw[8] = 9
    path.write_bytes(raw)
    with pytest.raises(Refused, match="spool format 9"):
        opened(tmp_path)


def test_another_key_opens_nothing(tmp_path: Path) -> None:
    spool, _ = opened(tmp_path)
    spool.append(1, b"op", b"secret" * 100)
    spool.close()
    raw = next((tmp_path / "spool").glob("*.spool")).read_bytes()
    assert b"secretsecret" not in raw
    other = Spool(system_machine(), str(tmp_path / "spool"), bytes(32), LIMIT)
    assert list(other.open(0)) == []
    other.close()


def test_the_last_twentieth_of_the_disk_is_left_to_others(tmp_path: Path) -> None:
    machine = system_machine()

    class NearlyFull(OsDisk):
        free = 10**9

        def space(self, path: str) -> Space:
            return Space(total=10**9, free=self.free)

    disk = NearlyFull()
    spool = Spool(dataclasses.replace(machine, disk=disk), str(tmp_path / "spool"), KEY, 64 << 20)
    assert list(spool.open(0)) == []
    number = 0
    while spool.room(1_000_000):
        number += 1
        spool.append(number, b"op", bytes(1_000_000))
        if number == 40:  # beyond the slots that every spool may have
            disk.free = 10**9 // 20
    assert 40 <= number < 50
    disk.free = 10**9
    assert spool.room(1_000_000)
    spool.close()
