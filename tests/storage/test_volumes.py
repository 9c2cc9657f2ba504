"""The disk backend across restarts and crashes: the log, the index that follows it, compaction, markers."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from storage.backends.disk import DiskBackend, DiskConfig
from storage.backends.port import IncomingShare, Lease, ShareKey
from storage.errors import Conflict, Exhausted, Refused, Unavailable
from storage.format.share import Geometry, build_shares
from storage.host import OsDisk, OsFile, ThreadOffload
from storage.ports import Buffer
from tests.storage.test_backend_contract import LARGE, SMALL, body, contents, key, lease, share

CONFIG = DiskConfig(reserve_bytes=0)


class Syncs:
    """Counts syncs of files, and fails what it is told to."""

    def __init__(self) -> None:
        self.count = 0
        self.fail: Callable[[str], bool] = lambda what: False


class CountingFile(OsFile):
    def __init__(self, descriptor: int, syncs: Syncs) -> None:
        super().__init__(descriptor)
        self._syncs = syncs

    def sync(self) -> None:
        self._syncs.count += 1
        if self._syncs.fail("sync"):
            raise OSError(errno.EIO, "planted")
        super().sync()

    def write_at(self, parts: Sequence[Buffer], offset: int) -> int:
        if self._syncs.fail("write"):
            super().write_at([bytes(parts[0])[:10]], offset)
            raise OSError(errno.ENOSPC, "planted")
        return super().write_at(parts, offset)

    def write_through(self, parts: Sequence[Buffer], offset: int) -> int:
        length = self.write_at(parts, offset)
        self.sync()
        return length


def used_size(path: Path) -> int:
    """Bytes of an append-only file without the room at its end. Its last entry must not end in zeros."""
    return len(path.read_bytes().rstrip(b"\0"))


class CountingDisk(OsDisk):
    def __init__(self) -> None:
        self.syncs = Syncs()

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True
    ) -> OsFile:
        plain = super().open(path, create=create, exclusive=exclusive, writable=writable)
        assert plain.descriptor is not None
        file = CountingFile(os.dup(plain.descriptor), self.syncs)
        plain.close()
        return file


@asynccontextmanager
async def opened(
    directory: Path, config: DiskConfig = CONFIG, disk: OsDisk | None = None, server: bytes = bytes(32)
) -> AsyncIterator[DiskBackend]:
    backend = DiskBackend(disk or OsDisk(), ThreadOffload(), str(directory), server, config)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: backend.run(task_status=task_status))
            yield backend
            nursery.cancel_scope.cancel()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def crash_image(directory: Path) -> Path:
    """A copy of the directory as it is now: what a killed process leaves."""
    image = directory.with_name(directory.name + "-crashed")
    shutil.rmtree(image, ignore_errors=True)
    shutil.copytree(directory, image)
    return image


async def fill(backend: DiskBackend) -> None:
    await backend.store([share(key(seed), SMALL, lease(1)) for seed in range(1, 9)])
    await backend.store([share(key(seed), LARGE, lease(1)) for seed in range(11, 14)])
    await backend.assert_leases([key(2), key(12)], lease(1, account=2))
    await backend.assert_leases([key(3), key(13)], lease(8))
    assert await backend.release([key(seed) for seed in (1, 2, 3, 11, 12, 13)], lease(5)) == (
        [True, True, False, True, True, False]
    )


async def check(backend: DiskBackend) -> None:
    """What `fill` leaves: 1 and 11 gone, 2 and 12 held by account 2, 3 and 13 by a higher stamp."""
    left = [key(seed) for seed in (*range(2, 9), 12, 13)]
    sizes = [SMALL] * 7 + [LARGE] * 2
    assert [contents(backend, which) for which in left] == [
        body(which, size)[:size] for which, size in zip(left, sizes, strict=True)
    ]
    assert backend.has([key(1), key(11)]) == [False, False]
    assert backend.counts() == (9, sum(sizes))
    assert await backend.release([key(3), key(13)], lease(8)) == [False, False]
    assert await backend.release([key(2), key(12)], lease(9, account=1)) == [True, True]
    assert backend.has([key(2), key(12)]) == [True, True]
    assert await backend.release([key(2), key(12)], lease(2, account=2)) == [True, True]
    assert backend.has([key(2), key(12)]) == [False, False]


async def test_everything_is_there_after_a_clean_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as backend:
        await fill(backend)
    async with opened(tmp_path / "d") as backend:
        await check(backend)
    async with opened(tmp_path / "d") as backend:
        assert backend.has([key(2), key(3), key(12), key(13)]) == [False, True, False, True]


async def test_everything_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as backend:
        await fill(backend)
        image = crash_image(tmp_path / "d")
    async with opened(image) as backend:
        await check(backend)


@pytest.mark.parametrize("damage", ["wal lost", "index lost", "index garbage"])
async def test_the_index_is_made_again_from_volumes_and_files(tmp_path: Path, damage: str) -> None:
    async with opened(tmp_path / "d") as backend:
        await fill(backend)
        image = crash_image(tmp_path / "d")
    (image / "index.db-wal").unlink(missing_ok=True)
    if damage == "index lost":
        (image / "index.db").unlink()
    elif damage == "index garbage":
        (image / "index.db").write_bytes(b"no database" * 1000)
    async with opened(image) as backend:
        await check(backend)


async def test_strays_are_kept_if_they_verify_when_the_index_is_made_again(tmp_path: Path) -> None:
    geometry = Geometry(1, 2, 70_000)
    columns = [bytes(70_000)] * 2
    built = build_shares(geometry, columns)
    parts = [[built.headers[number], columns[number], built.tables[number]] for number in range(2)]
    whole, torn = (ShareKey(built.pack_id, number) for number in range(2))
    async with opened(tmp_path / "d") as backend:
        await backend.store([IncomingShare(whole, parts[0], lease(1)), IncomingShare(torn, parts[1], None)])
    for path in ("volumes/00000001", "index.db", "index.db-wal"):
        (tmp_path / "d" / path).unlink(missing_ok=True)
    [file] = (tmp_path / "d/shares").rglob(f"{built.pack_id.hex()}.1")
    os.truncate(file, 60_000)
    async with opened(tmp_path / "d") as backend:
        assert contents(backend, whole) == b"".join(parts[0])
        assert backend.has([torn]) == [False]
        assert not file.exists()


async def test_a_share_is_put_again_while_its_file_is_removed(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as backend:
        await backend.store([share(key(1), LARGE, lease(1))])
        pinned = backend.pin(key(1))
        assert pinned is not None
        for stamp in range(2, 20, 2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(backend.release, [key(1)], lease(stamp))
                for _ in range(3):
                    nursery.start_soon(backend.store, [share(key(1), LARGE, lease(stamp + 1))])
            assert contents(backend, key(1)) == body(key(1), LARGE)[:LARGE]
        buffer = bytearray(LARGE)
        assert pinned.file.read_into(memoryview(buffer), pinned.offset) == LARGE
        assert buffer == body(key(1), LARGE)[:LARGE]
        backend.unpin(pinned)


async def test_a_torn_tail_is_cut_and_the_log_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as backend:
        await backend.store([share(key(1), held=lease(1))])
        before = used_size(tmp_path / "d/volumes/00000001")
        await backend.store([share(key(2), held=lease(1))])
        image = crash_image(tmp_path / "d")
    (image / "index.db-wal").unlink()
    volume = image / "volumes/00000001"
    for end in (before + 1, before + 60, before + SMALL):
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.copytree(image, tmp_path / "cut")
        os.truncate(tmp_path / "cut" / volume.relative_to(image), end)
        async with opened(tmp_path / "cut") as backend:
            assert backend.has([key(1), key(2)]) == [True, False]
            assert (tmp_path / "cut/volumes/00000001").stat().st_size == before
            await backend.store([share(key(3), held=lease(1))])
        async with opened(tmp_path / "cut") as backend:
            assert backend.has([key(1), key(2), key(3)]) == [True, False, True]
            assert contents(backend, key(3)) == body(key(3), SMALL)[:SMALL]


async def test_rot_in_one_entry_costs_that_entry_only(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as backend:
        for seed in (1, 2, 3):
            await backend.store([share(key(seed), held=lease(1))])
    volume = tmp_path / "d/volumes/00000001"
    data = bytearray(volume.read_bytes())
    second = data.index(key(2).pack_id)
    data[second - 40] ^= 1
    volume.write_bytes(data)
    (tmp_path / "d/index.db").unlink()
    async with opened(tmp_path / "d") as backend:
        assert backend.has([key(1), key(2), key(3)]) == [True, False, True]


async def test_a_removal_that_was_not_durable_is_done_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as backend:
        await backend.store([share(key(1), LARGE, lease(1))])
        await backend.release([key(1)], lease(2))
        image = crash_image(tmp_path / "d")
    name = key(1).pack_id.hex()
    back = image / "shares" / name[0] / name[1:3] / f"{name}.0"
    back.write_bytes(bytes(LARGE))
    async with opened(image) as backend:
        assert backend.has([key(1)]) == [False]
        assert not back.exists()


async def test_a_share_whose_file_vanished_is_missing_and_may_be_put_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as backend:
        await backend.store([share(key(1), LARGE, lease(1))])
    async with opened(tmp_path / "d") as backend:
        name = key(1).pack_id.hex()
        (tmp_path / "d/shares" / name[0] / name[1:3] / f"{name}.0").unlink()
        assert backend.pin(key(1)) is None
        assert backend.has([key(1)]) == [False]
        assert await backend.store([share(key(1), LARGE, lease(1))]) == [True]
        assert contents(backend, key(1)) == body(key(1), LARGE)[:LARGE]


async def test_concurrent_puts_share_a_sync(tmp_path: Path) -> None:
    disk = CountingDisk()
    async with opened(tmp_path / "d", disk=disk) as backend:
        disk.syncs.count = 0
        async with trio.open_nursery() as nursery:
            for seed in range(100):
                nursery.start_soon(backend.store, [share(key(seed), held=lease(1))])
        assert disk.syncs.count <= 2, "one batch in flight, and one of all that came meanwhile"
        assert backend.counts()[0] == 100


async def test_a_full_disk_fails_the_batch_and_nothing_of_it_comes_back(tmp_path: Path) -> None:
    disk = CountingDisk()
    async with opened(tmp_path / "d", disk=disk) as backend:
        await backend.store([share(key(1), held=lease(1))])
        disk.syncs.fail = lambda what: what == "write"
        with pytest.raises(Exhausted):
            await backend.store([share(key(2), held=lease(1))])
        with pytest.raises(Exhausted):
            await backend.store([share(key(12), LARGE, lease(1))])
        disk.syncs.fail = lambda what: False
        assert await backend.store([share(key(3), held=lease(1))]) == [True]
        image = crash_image(tmp_path / "d")
    async with opened(image) as backend:
        assert backend.has([key(1), key(2), key(3), key(12)]) == [True, False, True, False]
        assert [path for path in (image / "shares").rglob("*") if path.is_file()] == []


async def test_after_a_failed_sync_no_more_is_acknowledged_but_reads_go_on(tmp_path: Path) -> None:
    disk = CountingDisk()
    async with opened(tmp_path / "d", disk=disk) as backend:
        await backend.store([share(key(1), held=lease(1))])
        disk.syncs.fail = lambda what: what == "sync"
        with pytest.raises(Unavailable):
            await backend.store([share(key(2), held=lease(1))])
        disk.syncs.fail = lambda what: False
        with pytest.raises(Unavailable, match="started anew"):
            await backend.store([share(key(3), held=lease(1))])
        assert contents(backend, key(1)) == body(key(1), SMALL)[:SMALL]
    async with opened(tmp_path / "d") as backend:
        assert backend.has([key(1)]) == [True]


def volume_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in (directory / "volumes").iterdir())


async def test_compaction_gives_room_back_and_keeps_shares_and_leases(tmp_path: Path) -> None:
    config = DiskConfig(reserve_bytes=0, volume_size_max=64 * 1024)
    keys = [key(seed, number) for seed in range(4) for number in range(50)]
    async with opened(tmp_path / "d", config) as backend:
        await backend.store([share(which, SMALL, lease(1)) for which in keys])
        await backend.store([share(key(200), LARGE, lease(1))])
        await backend.assert_leases(keys[:5], lease(4, account=2))
        full = volume_bytes(tmp_path / "d")
        pinned = backend.pin(keys[0])
        assert pinned is not None
        await backend.release(keys[:5] + keys[20:], lease(2))
        # Small commits give upkeep its turns; compaction works between them.
        for stamp in range(3, 12):
            await backend.assert_leases(keys[5:20], lease(stamp))
            await backend.store([share(key(201, stamp), 60_000, lease(1))])
        assert volume_bytes(tmp_path / "d") < full / 2 + 9 * 60_500 + 64 * 1024
        assert not (tmp_path / "d/volumes/00000001").exists()
        buffer = bytearray(pinned.length)
        assert pinned.file.read_into(memoryview(buffer), pinned.offset) == SMALL, "a pin outlives the volume"
        assert buffer == body(keys[0], SMALL)[:SMALL]
        backend.unpin(pinned)
        image = crash_image(tmp_path / "d")
    for damage in (False, True):
        if damage:
            (image / "index.db").unlink()
        async with opened(image, config) as backend:
            assert [contents(backend, which) for which in keys[:20]] == [
                body(which, SMALL)[:SMALL] for which in keys[:20]
            ]
            assert backend.has(keys[20:]) == [False] * 180
            assert backend.has([key(200)]) == [True]
            assert await backend.release(keys[5:20], lease(11)) == [False] * 15
            assert await backend.release(keys[:5], lease(4, account=2)) == [False] * 5
            assert await backend.release([key(200)], lease(1)) == [False]


async def test_open_descriptors_are_bounded(tmp_path: Path) -> None:
    config = DiskConfig(reserve_bytes=0, descriptors_max=4)
    keys = [key(seed) for seed in range(12)]
    async with opened(tmp_path / "d", config) as backend:
        await backend.store([share(which, LARGE, lease(1)) for which in keys])
        for which in keys * 2:
            assert contents(backend, which) == body(which, LARGE)[:LARGE]
        assert backend.statistics() == (4, 0)
        pieces = [backend.pin(which) for which in keys]
        assert backend.statistics() == (12, 12)
        for piece in pieces:
            assert piece is not None
            backend.unpin(piece)
        assert backend.statistics() == (4, 0)


async def test_a_directory_belongs_to_one_server_and_one_version(tmp_path: Path) -> None:
    async with opened(tmp_path / "d"):
        pass
    with pytest.raises(Refused, match="another server"):
        async with opened(tmp_path / "d", server=b"x" * 32):
            pass
    marker = tmp_path / "d/gridfs-shares"
    marker.write_text(marker.read_text().replace("version 1", "version 9"))
    with pytest.raises(Refused, match="version 9"):
        async with opened(tmp_path / "d"):
            pass


async def test_two_servers_never_open_one_directory(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as backend:
        with pytest.raises(Conflict):
            async with opened(tmp_path / "d"):
                pass
        await backend.store([share(key(1))])


async def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    async with opened(tmp_path / "d") as backend:
        await fill(backend)
        modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "d").rglob("*")}
    assert modes == {0}


async def test_shares_lie_in_two_levels_by_pack_id(tmp_path: Path) -> None:
    which = ShareKey(bytes.fromhex("abcdef" + "00" * 29), 7)
    async with opened(tmp_path / "d") as backend:
        await backend.store([IncomingShare(which, [bytes(LARGE)], Lease(bytes(16), bytes(16), 0, 0))])
    async with opened(tmp_path / "d") as backend:
        assert backend.has([which]) == [True]
        found = [path for path in (tmp_path / "d/shares").rglob("*") if path.is_file()]
    assert found == [tmp_path / "d/shares/a/bc" / f"{which.pack_id.hex()}.7"]
