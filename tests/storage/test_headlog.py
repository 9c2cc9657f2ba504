"""Head logs: promises, records, trims, bounds, and what is there after a kill."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from storage.appendfile import PAGE_SIZE, ROOM_SIZE
from storage.errors import Conflict, Corrupt, Exhausted, Missing, Refused, StorageError, Unavailable
from storage.format.entry import Entry
from storage.format.head import EPOCH_BITS, GENESIS, PAYLOAD_MAX, WRAPPED_MAX, drop_signed_bytes
from storage.headlog import (
    HeadClaim,
    HeadLogConfig,
    HeadLogs,
    HeadRecord,
    HeadStanding,
    Succession,
    log_name,
    trim_signed_bytes,
)
from storage.headlog.journal import read_entry
from storage.host import OsDisk, OsFile, ThreadOffload
from storage.ports import Buffer
from tests.storage.test_volumes import CountingDisk, used_size

MOUNT, OTHER = b"m" * 16, b"o" * 16
GOLDEN = Path(__file__).parent / "golden"


class Writer:
    """Signs what a file system would: with its first key, or as a successor of generation `generation`."""

    def __init__(self, seed: int = 1, generation: int = 0, successor: int = 0) -> None:
        first, recovery = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (seed, 99))
        self.first_key = first.public_key().public_bytes_raw()
        self.recovery_public = recovery.public_key().public_bytes_raw()
        self.log = log_name(self.first_key, self.recovery_public)
        self._key, self.succession = first, None
        self._lowest = generation << EPOCH_BITS
        if generation:
            self._key = Ed25519PrivateKey.from_private_bytes(bytes([successor or 100 + generation]) * 32)
            key = self._key.public_key().public_bytes_raw()
            unsigned = Succession(generation, key, b"wrapped", bytes(64))
            signature = recovery.sign(unsigned.signed_bytes(self.log))
            self.succession = replace(unsigned, signature=signature)

    @property
    def verifying_key(self) -> bytes:
        return self.succession.verifying_key if self.succession else self.first_key

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def claim(self, epoch: int, mount: bytes = MOUNT) -> HeadClaim:
        """`epoch` counts within the generation, here and below."""
        epoch += self._lowest
        unsigned = HeadClaim(self.first_key, self.recovery_public, epoch, mount, bytes(64), self.succession)
        return replace(unsigned, signature=self._key.sign(unsigned.signed_bytes()))

    def record(
        self, epoch: int, sequence: int, payload: bytes = b"sealed", mount: bytes = MOUNT
    ) -> HeadRecord:
        blank = HeadRecord(epoch + self._lowest, sequence, GENESIS, payload, bytes(64), mount)
        return replace(blank, signature=self._key.sign(blank.signed_bytes(self.log)))

    def chain(self, epoch: int, count: int) -> list[HeadRecord]:
        """Records that name each other."""
        records: list[HeadRecord] = []
        for sequence in range(1, count + 1):
            previous = records[-1].record_hash() if records else GENESIS
            blank = replace(self.record(epoch, sequence), previous=previous)
            records.append(replace(blank, signature=self._key.sign(blank.signed_bytes(self.log))))
        return records

    def cut(self, epoch: int, sequence: int) -> tuple[bytes, tuple[int, int], bytes]:
        before = (epoch + self._lowest, sequence)
        return self.log, before, self._key.sign(trim_signed_bytes(self.log, before))

    def end(self, epoch: int) -> tuple[bytes, int, bytes]:
        epoch += self._lowest
        return self.log, epoch, self._key.sign(drop_signed_bytes(self.log, epoch))


@asynccontextmanager
async def opened(
    directory: Path, config: HeadLogConfig | None = None, disk: OsDisk | None = None
) -> AsyncIterator[HeadLogs]:
    logs = HeadLogs(disk or OsDisk(), ThreadOffload(), str(directory), config)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: logs.run(task_status=task_status))
            yield logs
            nursery.cancel_scope.cancel()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


@pytest.fixture
async def logs(tmp_path: Path) -> AsyncIterator[HeadLogs]:
    async with opened(tmp_path / "heads") as made:
        yield made


@pytest.fixture
def writer() -> Writer:
    return Writer()


async def test_the_first_claim_creates_a_log_named_by_its_keys(logs: HeadLogs, writer: Writer) -> None:
    assert logs.look(writer.log) is None
    assert await logs.claim(writer.claim(1)) == (1, MOUNT, None)
    assert logs.look(writer.log) == HeadStanding(1, MOUNT, None, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mount_id": b"short"}, "malformed"),
        ({"first_key": b"short"}, "malformed"),
        ({"epoch": 1 << 63}, "malformed"),
        ({"epoch": 2}, "signature"),
        ({"mount_id": OTHER}, "signature"),
        ({"first_key": Writer(2).first_key}, "signature"),
        ({"recovery_public": bytes(32)}, "signature"),
        ({"epoch": 1 << EPOCH_BITS}, "not one of generation 0"),
    ],
)
async def test_a_claim_must_be_signed_by_the_logs_key(
    logs: HeadLogs, writer: Writer, change: dict[str, object], words: str
) -> None:
    with pytest.raises(Refused, match=words):
        await logs.claim(replace(writer.claim(1), **change))  # type: ignore[arg-type]
    assert logs.statistics() == (0, 0, 0)


async def test_a_successor_shuts_out_every_older_key(logs: HeadLogs, writer: Writer) -> None:
    old, second = writer, Writer(generation=2)
    await logs.claim(old.claim(1000))
    await logs.append(old.log, old.record(1000, 7))
    assert await logs.claim(second.claim(1, OTHER)) == (
        second.claim(1).epoch,
        OTHER,
        old.record(1000, 7),
    )
    for late in (old.claim(1001), old.claim((1 << EPOCH_BITS) - 1), Writer(generation=1).claim(99)):
        with pytest.raises(Conflict, match="successor of that key, of generation 2"):
            await logs.claim(late)
    with pytest.raises(Refused):
        await logs.append(old.log, old.record(1000, 8))
    with pytest.raises(Refused):
        await logs.trim(*old.cut(1000, 8))
    with pytest.raises(Refused):
        await logs.drop(*old.end(1000))
    await logs.append(second.log, second.record(1, 1, mount=OTHER))
    assert logs.look(old.log) == HeadStanding(
        second.claim(1).epoch, OTHER, second.succession, second.record(1, 1, mount=OTHER)
    )
    await logs.trim(*second.cut(1, 1))
    assert logs.read(old.log, None, 1000) == [second.record(1, 1, mount=OTHER)]


async def test_only_the_recovery_key_makes_a_successor(logs: HeadLogs, writer: Writer) -> None:
    good = Writer(generation=1).claim(1)
    assert good.succession is not None
    for forged in (
        replace(good.succession, generation=2),
        replace(good.succession, verifying_key=Writer(2).first_key),
        replace(good.succession, wrapped=b"other"),
        replace(good.succession, signature=bytes(64)),
    ):
        with pytest.raises(Refused, match="did not endorse"):
            await logs.claim(replace(good, succession=forged))
    for malformed in (
        replace(good.succession, generation=0),
        replace(good.succession, wrapped=bytes(WRAPPED_MAX + 1)),
        replace(good.succession, signature=b"short"),
    ):
        with pytest.raises(Refused, match="a succession's"):
            await logs.claim(replace(good, succession=malformed))
    with pytest.raises(Refused, match="did not endorse"):
        await logs.claim(replace(Writer(2).claim(1), succession=good.succession))
    await logs.claim(good)


async def test_a_claim_of_the_same_generation_by_another_key_needs_a_higher_epoch(logs: HeadLogs) -> None:
    """A successor that was made and given up before it wrote anything must not be in the way."""
    given_up, made_after = Writer(generation=1, successor=50), Writer(generation=1, successor=51)
    await logs.claim(given_up.claim(1))
    with pytest.raises(Conflict):
        await logs.claim(made_after.claim(1, OTHER))
    await logs.claim(made_after.claim(2, OTHER))
    with pytest.raises(Refused):
        await logs.append(given_up.log, given_up.record(1, 1))
    await logs.append(made_after.log, made_after.record(2, 1, mount=OTHER))


async def test_a_log_is_ended_by_its_owner_alone(tmp_path: Path, writer: Writer) -> None:
    async with opened(tmp_path / "heads") as logs:
        await logs.claim(writer.claim(3))
        await logs.append(writer.log, writer.record(3, 1))
        log, epoch, signature = writer.end(3)
        for forged in (Writer(2).end(3)[2], writer.end(4)[2], writer.cut(3, 0)[2]):
            with pytest.raises(Refused):
                await logs.drop(log, epoch, forged)
        with pytest.raises(Conflict, match="epoch 3 was promised"):
            await logs.drop(*writer.end(2))
        for _ in range(2):
            await logs.drop(log, epoch, signature)
            assert logs.look(log) is None
            assert logs.statistics() == (0, 0, 0)
        with pytest.raises(Missing):
            await logs.append(writer.log, writer.record(3, 2))
    async with opened(tmp_path / "heads") as logs:
        assert logs.statistics() == (0, 0, 0)
        assert await logs.claim(writer.claim(1)) == (1, MOUNT, None)


async def test_a_succession_is_there_after_a_kill_and_a_rewrite(tmp_path: Path, writer: Writer) -> None:
    after = Writer(generation=1)
    config = HeadLogConfig(garbage_bytes_min=10_000)
    async with opened(tmp_path / "heads", config) as logs:
        await logs.claim(writer.claim(5))
        await logs.append(writer.log, writer.record(5, 1))
        await logs.claim(after.claim(1, OTHER))
    async with opened(tmp_path / "heads", config) as logs:
        standing = logs.look(writer.log)
        assert standing == HeadStanding(after.claim(1).epoch, OTHER, after.succession, writer.record(5, 1))
        with pytest.raises(Conflict):
            await logs.claim(writer.claim(6))
        for sequence in range(100):
            await logs.append(after.log, after.record(1, sequence, bytes(1000), OTHER))
            await logs.trim(*after.cut(1, max(0, sequence - 2)))
        assert used_size(tmp_path / "heads/heads") < 30_000
    async with opened(tmp_path / "heads", config) as logs:
        standing = logs.look(writer.log)
        assert standing is not None
        assert standing.succession == after.succession
        with pytest.raises(Conflict):
            await logs.claim(writer.claim(6))
        await logs.append(after.log, after.record(1, 100, mount=OTHER))


async def test_a_promise_shuts_out_older_epochs_and_other_mounts(logs: HeadLogs, writer: Writer) -> None:
    await logs.claim(writer.claim(5))
    assert (await logs.claim(writer.claim(5)))[:2] == (5, MOUNT)
    with pytest.raises(Conflict, match="another mount"):
        await logs.claim(writer.claim(5, OTHER))
    with pytest.raises(Conflict, match="older"):
        await logs.claim(writer.claim(4))
    await logs.append(writer.log, writer.record(5, 1))
    newest = writer.record(5, 2)
    await logs.append(writer.log, newest)
    assert await logs.claim(writer.claim(6, OTHER)) == (6, OTHER, newest)
    with pytest.raises(Conflict):
        await logs.append(writer.log, writer.record(5, 3))
    with pytest.raises(Conflict):
        await logs.append(writer.log, newest)
    with pytest.raises(Conflict, match="another mount"):
        await logs.append(writer.log, writer.record(6, 3, mount=MOUNT))
    await logs.append(writer.log, writer.record(6, 3, mount=OTHER))


async def test_an_epoch_must_be_claimed_before_it_is_written(logs: HeadLogs, writer: Writer) -> None:
    with pytest.raises(Missing):
        await logs.append(writer.log, writer.record(1, 1))
    await logs.claim(writer.claim(1))
    with pytest.raises(Conflict, match="1 is promised"):
        await logs.append(writer.log, writer.record(2, 1))


async def test_only_rightly_signed_records_are_kept(logs: HeadLogs, writer: Writer) -> None:
    await logs.claim(writer.claim(1))
    good = writer.record(1, 1)
    for forged in (
        replace(good, payload=b"other"),
        replace(good, sequence=2),
        replace(good, previous=b"p" * 32),
        replace(good, mount_id=OTHER),
        replace(good, signature=bytes(64)),
        Writer(2).record(1, 1),
    ):
        with pytest.raises(Refused):
            await logs.append(writer.log, forged)
    assert logs.read(writer.log, None, 1000) == []


async def test_a_record_is_kept_once_and_its_place_is_taken(logs: HeadLogs, writer: Writer) -> None:
    await logs.claim(writer.claim(1))
    for _ in range(2):
        await logs.append(writer.log, writer.record(1, 3))
    with pytest.raises(Conflict, match="another record"):
        await logs.append(writer.log, writer.record(1, 3, b"other"))
    with pytest.raises(Conflict, match="older than the newest"):
        await logs.append(writer.log, writer.record(1, 2))
    await logs.append(writer.log, writer.record(1, 9))
    await logs.append(writer.log, writer.record(1, 3))
    assert logs.read(writer.log, None, 10**6) == [writer.record(1, 3), writer.record(1, 9)]


async def test_a_record_of_zero_mount_goes_by_its_epoch_alone(logs: HeadLogs, writer: Writer) -> None:
    await logs.claim(writer.claim(1))
    await logs.append(writer.log, writer.record(1, 1, mount=bytes(16)))
    assert len(logs.read(writer.log, None, 1000)) == 1


async def test_reading_goes_on_behind_a_stamp_and_stops_at_a_limit(logs: HeadLogs, writer: Writer) -> None:
    await logs.claim(writer.claim(1))
    records = [writer.record(1, sequence, bytes(100)) for sequence in range(10)]
    for record in records:
        await logs.append(writer.log, record)
    assert logs.read(writer.log, None, 10**6) == records
    assert logs.read(writer.log, (1, 6), 10**6) == records[7:]
    assert logs.read(writer.log, (0, 99), 150) == records[:2]
    assert logs.read(writer.log, None, 0) == records[:1], "a read always gets on"
    assert logs.read(writer.log, (1, 9), 10**6) == []
    assert logs.read(b"x" * 32, None, 10**6) == []


async def test_a_signed_trim_drops_older_records_but_never_the_newest(logs: HeadLogs, writer: Writer) -> None:
    await logs.claim(writer.claim(1))
    for sequence in range(5):
        await logs.append(writer.log, writer.record(1, sequence))
    log, before, signature = writer.cut(1, 3)
    with pytest.raises(Refused):
        await logs.trim(log, (1, 4), signature)
    for _ in range(2):
        await logs.trim(log, before, signature)
        assert [record.sequence for record in logs.read(log, None, 10**6)] == [3, 4]
    await logs.trim(*writer.cut(9, 9))
    assert [record.sequence for record in logs.read(log, None, 10**6)] == [4]
    with pytest.raises(Missing):
        await logs.trim(b"x" * 32, before, signature)


async def test_records_that_come_together_are_vouched_for_by_the_last(logs: HeadLogs, writer: Writer) -> None:
    await logs.claim(writer.claim(1))
    records = writer.chain(1, 5)
    with pytest.raises(Refused, match="signature"):
        await logs.append(writer.log, *records[:2], replace(records[2], signature=bytes(64)))
    for changed in (replace(records[1], signature=bytes(64)), replace(records[1], payload=b"other")):
        with pytest.raises(Refused, match="follow"):
            await logs.append(writer.log, records[0], changed, records[2])
    with pytest.raises(Refused, match="follow"):
        await logs.append(writer.log, records[0], records[2])
    assert logs.read(writer.log, None, 10**6) == []
    await logs.append(writer.log, *records[:3])
    await logs.append(writer.log, *records[1:])
    assert logs.read(writer.log, None, 10**6) == records


async def test_records_that_come_together_are_kept_all_or_none(tmp_path: Path, writer: Writer) -> None:
    async with opened(tmp_path / "heads", HeadLogConfig(records_max=4)) as logs:
        await logs.claim(writer.claim(1))
        records = writer.chain(1, 5)
        with pytest.raises(Exhausted):
            await logs.append(writer.log, *records)
        assert logs.read(writer.log, None, 10**6) == []
        await logs.append(writer.log, records[2])
        with pytest.raises(Conflict):
            await logs.append(writer.log, *records[:4])
        await logs.append(writer.log, *records[2:])
    async with opened(tmp_path / "heads") as logs:
        assert logs.read(writer.log, None, 10**6) == records[2:]


async def test_logs_are_bounded(tmp_path: Path, writer: Writer) -> None:
    config = HeadLogConfig(records_max=3, bytes_max=2000, logs_max=2)
    async with opened(tmp_path / "heads", config) as logs:
        await logs.claim(writer.claim(1))
        for sequence in range(3):
            await logs.append(writer.log, writer.record(1, sequence))
        with pytest.raises(Exhausted):
            await logs.append(writer.log, writer.record(1, 3))
        await logs.trim(*writer.cut(1, 2))
        with pytest.raises(Exhausted):
            await logs.append(writer.log, writer.record(1, 3, bytes(2000)))
        await logs.append(writer.log, writer.record(1, 3))
        with pytest.raises(Refused):
            await logs.append(writer.log, writer.record(1, 4, bytes(PAYLOAD_MAX + 1)))
        await logs.claim(Writer(2).claim(1))
        with pytest.raises(Exhausted):
            await logs.claim(Writer(3).claim(1))


async def test_appends_of_several_logs_share_a_sync(tmp_path: Path) -> None:
    disk = CountingDisk()
    writers = [Writer(seed) for seed in range(1, 41)]
    async with opened(tmp_path / "heads", disk=disk) as logs:
        for writer in writers:
            await logs.claim(writer.claim(1))
        disk.syncs.count = 0
        async with trio.open_nursery() as nursery:
            for writer in writers:
                nursery.start_soon(logs.append, writer.log, writer.record(1, 1))
        assert disk.syncs.count <= 2
        assert logs.statistics()[:2] == (40, 40)


async def test_small_records_go_into_room_that_is_there(tmp_path: Path, writer: Writer) -> None:
    """The file's length changes once for many appends, and what is left of the room ends nothing."""
    path = tmp_path / "heads/heads"
    async with opened(tmp_path / "heads") as logs:
        await logs.claim(writer.claim(1))
        sizes = []
        for sequence in range(300):
            await logs.append(writer.log, writer.record(1, sequence, b"x" * 1500))
            sizes.append(path.stat().st_size)
        assert len(dict.fromkeys(sizes)) == 2
        assert sizes[0] - ROOM_SIZE <= PAGE_SIZE
        await logs.append(writer.log, writer.record(1, 300, b"x" * PAYLOAD_MAX))
        for sequence in range(301, 310):
            await logs.append(writer.log, writer.record(1, sequence, b"x" * PAYLOAD_MAX))
        assert path.stat().st_size == used_size(path), "large ones make none"
        await logs.append(writer.log, writer.record(1, 310))
    async with opened(tmp_path / "heads") as logs:
        records = logs.read(writer.log, None, 1 << 30)
        assert [record.sequence for record in records] == list(range(311))
        assert path.stat().st_size == used_size(path)


async def test_a_disk_without_place_for_room_takes_the_record(tmp_path: Path, writer: Writer) -> None:
    class Small(OsFile):
        def write_through(self, parts: Sequence[Buffer], offset: int) -> int:
            if sum(map(len, parts)) > ROOM_SIZE:
                super().write_at(parts[:1], offset)
                raise OSError(errno.ENOSPC, "full")
            return super().write_through(parts, offset)

    class SmallDisk(OsDisk):
        def open(
            self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True
        ) -> OsFile:
            plain = super().open(path, create=create, exclusive=exclusive, writable=writable)
            assert plain.descriptor is not None
            file = Small(os.dup(plain.descriptor))
            plain.close()
            return file

    async with opened(tmp_path / "heads", disk=SmallDisk()) as logs:
        await logs.claim(writer.claim(1))
        await logs.append(writer.log, writer.record(1, 1))
    async with opened(tmp_path / "heads") as logs:
        assert logs.read(writer.log, None, 1000) == [writer.record(1, 1)]


async def test_a_record_nobody_waits_for_is_told_about_once(logs: HeadLogs, writer: Writer) -> None:
    await logs.claim(writer.claim(1))
    kept: list[StorageError | None] = []
    refused: list[StorageError | None] = []
    back = logs.append_nowait(writer.log, [writer.record(1, 1)], kept.append)
    logs.append_nowait(writer.log, [writer.record(1, 1, b"another")], refused.append)
    assert logs.append_nowait(writer.log, [writer.record(1, 2)], kept.append)(), "taken back in time"
    assert not kept + refused
    await logs.append(writer.log, writer.record(1, 1))
    assert kept == [None]
    assert [type(error) for error in refused] == [Conflict]
    assert not back()
    assert [record.sequence for record in logs.read(writer.log, None, 1000)] == [1]
    with pytest.raises(Refused):
        logs.append_nowait(writer.log, [replace(writer.record(1, 3), signature=bytes(64))], kept.append)


async def test_an_error_of_the_program_ends_the_server(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in memory may not be what is on the disk: it must not go on with it."""

    def fail(*_: object) -> int:
        raise ValueError("not foreseen")

    async def serve() -> None:
        async with opened(tmp_path / "heads") as logs:
            await logs.claim(writer.claim(1))
            monkeypatch.setattr(OsFile, "write_through", fail)
            for sequence in (1, 2):
                with pytest.raises(Unavailable):
                    await logs.append(writer.log, writer.record(1, sequence))
            await trio.sleep_forever()

    with pytest.raises(ValueError, match="not foreseen"):
        await serve()
    monkeypatch.undo()
    async with opened(tmp_path / "heads") as logs:
        assert logs.read(writer.log, None, 1000) == []


async def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, writer: Writer) -> None:
    disk = CountingDisk()
    async with opened(tmp_path / "heads", disk=disk) as logs:
        await logs.claim(writer.claim(1))
        disk.syncs.fail = lambda what: what == "write"
        with pytest.raises(Exhausted):
            await logs.append(writer.log, writer.record(1, 1))
        disk.syncs.fail = lambda what: False
        assert logs.read(writer.log, None, 1000) == []
        await logs.append(writer.log, writer.record(1, 1, b"another try"))
    async with opened(tmp_path / "heads") as logs:
        assert logs.read(writer.log, None, 1000) == [writer.record(1, 1, b"another try")]


async def test_everything_is_there_after_a_kill_and_a_torn_tail_is_cut(
    tmp_path: Path, writer: Writer
) -> None:
    async with opened(tmp_path / "heads") as logs:
        await logs.claim(writer.claim(7))
        for sequence in range(4):
            await logs.append(writer.log, writer.record(7, sequence))
        await logs.trim(*writer.cut(7, 1))
        size = used_size(tmp_path / "heads/heads")
        await logs.append(writer.log, writer.record(7, 4, b"the last"))
        shutil.copytree(tmp_path / "heads", tmp_path / "image")
    file = tmp_path / "image/heads"
    whole = file.read_bytes()[: used_size(file)]
    for end, kept in ((len(whole), [1, 2, 3, 4]), (len(whole) - 1, [1, 2, 3]), (size + 5, [1, 2, 3])):
        file.write_bytes(whole[:end])
        async with opened(tmp_path / "image") as logs:
            assert [record.sequence for record in logs.read(writer.log, None, 10**6)] == kept
            with pytest.raises(Conflict):
                await logs.claim(writer.claim(6))
            await logs.append(writer.log, writer.record(7, 9))
        async with opened(tmp_path / "image") as logs:
            assert [record.sequence for record in logs.read(writer.log, None, 10**6)] == [*kept, 9]


async def test_a_file_full_of_garbage_is_rewritten(tmp_path: Path, writer: Writer) -> None:
    config = HeadLogConfig(garbage_bytes_min=10_000)
    async with opened(tmp_path / "heads", config) as logs:
        await logs.claim(writer.claim(1))
        for sequence in range(100):
            await logs.append(writer.log, writer.record(1, sequence, bytes(1000)))
            await logs.trim(*writer.cut(1, max(0, sequence - 2)))
        assert used_size(tmp_path / "heads/heads") < 30_000
        assert [record.sequence for record in logs.read(writer.log, None, 10**6)] == [97, 98, 99]
    async with opened(tmp_path / "heads", config) as logs:
        assert [record.sequence for record in logs.read(writer.log, None, 10**6)] == [97, 98, 99]
        assert (await logs.claim(writer.claim(1)))[0] == 1


async def test_strange_files_are_refused_in_words(tmp_path: Path, writer: Writer) -> None:
    async with opened(tmp_path / "heads") as logs:
        await logs.claim(writer.claim(1))
    with pytest.raises(Unavailable):
        await logs.claim(writer.claim(1))
    (tmp_path / "heads/heads").write_bytes(b"something else" * 10)
    with pytest.raises(Corrupt):
        async with opened(tmp_path / "heads"):
            pass


@given(st.binary(max_size=300))
def test_decoding_any_bytes_gives_a_record_or_corrupt(data: bytes) -> None:
    try:
        record = HeadRecord.decode(data)
    except StorageError:
        return
    assert record.encode() == data


@given(st.integers(0, 6), st.binary(max_size=200), st.binary(max_size=300))
def test_reading_any_entry_gives_an_operation_or_corrupt(kind: int, fields: bytes, payload: bytes) -> None:
    with contextlib.suppress(Corrupt):
        read_entry(Entry(0, kind, fields, len(payload), b""), payload)


def test_golden_head_record(writer: Writer) -> None:
    record, successor = writer.record(3, 17, b"payload"), Writer(generation=1)
    assert successor.succession is not None
    lines = (GOLDEN / "head-record.hex").read_text().split()
    assert [bytes.fromhex(line) for line in lines] == [
        writer.log,
        record.signed_bytes(writer.log),
        record.encode(),
        record.record_hash(),
        trim_signed_bytes(writer.log, (3, 17)),
        writer.claim(3).signed_bytes(),
        successor.succession.signed_bytes(writer.log),
        drop_signed_bytes(writer.log, 3),
    ]
    assert HeadRecord.decode(record.encode()) == record
