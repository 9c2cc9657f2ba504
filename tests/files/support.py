"""The local half of a file system, without a grid: log, dirty data, contents and names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import trio

from gridfs.files.contents import Contents, ContentsConfig
from gridfs.files.dirty import DirtyData
from gridfs.files.log import LogConfig, OperationLog
from gridfs.files.namespace import Namespace
from gridfs.files.readahead import Prefetcher, ReadaheadConfig
from gridfs.files.replay import replay
from gridfs.files.spool import Spool
from gridfs.files.stamps import Stamps
from gridfs.files.writer import Writer
from gridfs.meta.operations import Commit
from gridfs.meta.rows import ROOT
from gridfs.meta.store import Metadata
from storage.errors import StorageError
from storage.ports import Machine
from tests.meta.support import MaskSealer, extent_record, pack_record
from tests.simulation.filesystem import DATABASE, FILE, HOME, SPOOL
from tests.simulation.machine import Node, World, run_world


class QuietWriter:
    """In the writer's place: only notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def written(self, ino: int) -> None:
        self.told.append(("written", ino))

    def truncated(self, ino: int, size: int) -> None:
        self.told.append(("truncated", ino, size))


class Local:
    """One open file system of one machine."""

    def __init__(self, machine: Machine, spool_bytes: int = 32 << 20, emptied: int = 0) -> None:
        self.machine = machine
        disk = machine.disk
        disk.make_directory(HOME)
        if "metadata.sqlite" not in disk.names(HOME):
            Metadata.create(DATABASE, MaskSealer(), vfs=disk.sqlite_vfs).close()
        self.metadata = Metadata.open(DATABASE, MaskSealer(), vfs=disk.sqlite_vfs)
        self.spool = Spool(machine, SPOOL, bytes(32), spool_bytes)
        self.log = OperationLog(machine, self.metadata, DATABASE, self.spool, LogConfig())
        self.dirty = DirtyData(self.log)
        replay(self.log, self.dirty, emptied)
        self.writer = QuietWriter()
        prefetcher = Prefetcher(cast(Any, None), ReadaheadConfig())
        stamps = Stamps(machine.clock)
        self.contents = Contents(
            self.log, self.dirty, cast(Writer, self.writer), prefetcher, stamps, ContentsConfig()
        )
        self.namespace = Namespace(self.log, self.contents, stamps)

    def make(self, name: bytes, mode: int = FILE, parent: int = ROOT) -> int:
        return self.namespace.make(parent, name, mode, 1, 1).ino

    async def write(self, ino: int, offset: int, data: bytes) -> int:
        await self.contents.write(ino, offset, data)
        return self.log.number

    def commit(self, ino: int, start: int, length: int, frozen: int, mark: int = 1) -> None:
        """What the writer does once a pack with these bytes is in the grid."""
        pack = pack_record(mark, stream_length=max(1 << 20, length + 65536))
        self.log.record(Commit(packs=[pack], extents=[extent_record(ino, start, length, frozen)]))
        self.dirty.committed(ino, start, start + length, frozen)

    def dirty_content(self, ino: int, size: int) -> bytes:
        """What the spool has of a file; zeros elsewhere."""
        out = bytearray(size)
        for piece in self.dirty.pieces(ino, 0, size):
            self.spool.read_into(piece.source, piece.skip, memoryview(out)[piece.start : piece.end])
        return bytes(out)

    def close(self) -> None:
        self.log.commit()
        self.log.close()


class Laptop:
    """A machine for `Local`s, one after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.node: Node = world.add("laptop")
        self.local: Local | None = None

    def open(self, **options: int) -> Local:
        self.local = Local(self.world.boot(self.node), **options)
        return self.local

    def kill(self) -> None:
        """kill -9: what was not committed is gone, what was written is kept."""
        self.world.kill(self.node)
        self.bury()

    def crash(self) -> None:
        """Power loss."""
        self.world.crash(self.node)
        self.bury()

    def bury(self) -> None:
        """Let SQLite forget the dead machine's connection, which changes nothing on its disk."""
        if self.local is not None:
            with contextlib.suppress(StorageError):
                self.local.metadata.close()

    def close(self) -> None:
        assert self.local is not None
        self.local.close()
        self.world.kill(self.node)


def on_a_laptop(work: Callable[[Laptop], Any], seed: int = 1) -> None:
    """Run `work(laptop)`, a function or a coroutine function, in a world of its own."""

    async def scenario(world: World) -> None:
        await trio.lowlevel.checkpoint()
        laptop = Laptop(world)
        result = work(laptop)
        if result is not None:
            await result
        laptop.kill()

    run_world(seed, scenario)
