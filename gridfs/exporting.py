"""`gridfs spool export`: what this machine holds of a file system and the grid has not, written out as files.

    TARGET/files/PATH         a file that is whole: its dirty data from the spool, the rest from the grid
    TARGET/incomplete/PATH    one of which the grid did not give the rest; zeros stand there
    TARGET/unnamed/INO        a file without a name
    TARGET/slots/SLOT/INO     the writes in a slot of another history (with `everything`: in every slot)
    TARGET/manifest.jsonl     what each of them is, one JSON object a line

The local state is not changed, and the grid is only read.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field

import trio

from gridfs.assembly import LocalSealer, connected, spool_key
from gridfs.codec.keys import KeyTree
from gridfs.exits import sole
from gridfs.files.aside import asides_of
from gridfs.files.overlay import Piece
from gridfs.files.reader import Reader, ReaderConfig
from gridfs.files.salvage import (
    Atlas,
    Changed,
    Local,
    Range,
    changed,
    grid_ranges,
    lost_ranges,
    merged,
    name_paths,
    named,
    opened_unchanged,
    touched,
)
from gridfs.grid.downloader import Downloader
from gridfs.grid.errors import GridError
from gridfs.grid.roster import Roster
from gridfs.meta.operations import Write, decode
from gridfs.meta.store import Metadata
from storage.client import Traffic
from storage.errors import StorageError
from storage.ports import Disk, File, Machine

STEP = 1 << 20
GRID_S_MAX = 30.0
"""How long the grid may take for one step."""
GRID_FAILURES_MAX = 3
"""Steps that the grid may fail one after the other; then it is not asked any more."""

KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


@dataclass(slots=True)
class Exported:
    """What was written."""

    files: int = 0
    """Whole files."""
    incomplete: int = 0
    slots: int = 0
    bytes: int = 0
    """Of files and pieces."""
    grid_trouble: str = ""
    """Why the grid did not give something; empty while it was not asked, or gave everything."""


async def export_spool(
    machine: Machine,
    database: str,
    spool_directory: str,
    tree: KeyTree,
    roster: Roster,
    target: str,
    *,
    everything: bool = False,
) -> Exported:
    """Export into the directory `target` (absolute; made where it is missing).

    The file system must not be mounted. `everything`: also what is in the grid already, as it lies in the
    slots. Raises OSError where `target` cannot be written, and what opening a damaged local state raises.
    """
    machine.disk.make_directory(target)
    sealer = LocalSealer(tree.local_key, machine.entropy)
    try:
        with (
            opened_unchanged(machine, database, spool_directory, sealer, spool_key(tree)) as local,
            closing(_Manifest(machine.disk, f"{target}/manifest.jsonl")) as manifest,
        ):
            async with _grid(machine, local, roster) as reader:
                exporter = _Exporter(machine.disk, local, reader, target, manifest)
                wanted = changed(local)
                name_paths(local.metadata, wanted)
                for one in wanted:
                    await exporter.inode(one)
            with _past(machine.disk, database, sealer) as past:
                exporter.slots(local.aside, [*past, local.metadata])
            if everything:
                exporter.slots(local.slots, [local.metadata])
    except ExceptionGroup as group:
        raise sole(group) from None
    machine.disk.sync_directory(target)
    return exporter.done


@contextmanager
def _past(disk: Disk, database: str, sealer: LocalSealer) -> Iterator[list[Metadata]]:
    """The metadata that were set aside, the latest first; without those that do not open."""
    with ExitStack() as stack:
        opened: list[Metadata] = []
        for path in asides_of(disk, database):
            with suppress(StorageError):
                opened.append(stack.enter_context(closing(Metadata.open(path, sealer, vfs=disk.sqlite_vfs))))
        yield opened


@asynccontextmanager
async def _grid(machine: Machine, local: Local, roster: Roster) -> AsyncIterator[Reader]:
    async with connected(machine, roster) as clients, trio.open_nursery() as nursery:
        downloader = Downloader(clients, roster)
        await nursery.start(downloader.run)
        yield Reader(local.metadata, local.dirty, local.spool, downloader, ReaderConfig())
        nursery.cancel_scope.cancel()


@dataclass(slots=True)
class _Piled:
    """The writes to one inode in one slot."""

    numbers: list[int] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)


@dataclass(slots=True)
class _Slot:
    """What one slot holds."""

    name: str
    numbers: list[int] = field(default_factory=list)
    piled: dict[int, _Piled] = field(default_factory=dict)
    """By inode number."""
    names: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """Inode number -> (directory, name), as its operations give them."""


class _Manifest:
    """Lines of JSON, one after the other."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._file = disk.open(path, create=True, exclusive=True)
        self._end = 0

    def add(self, **values: object) -> None:
        # Bytes of names that are no text become \\udcXX, as Python gives them everywhere.
        self._end += self._file.write_at([json.dumps(values).encode() + b"\n"], self._end)

    def close(self) -> None:
        self._file.sync()
        self._file.close()


class _Exporter:
    """Writes files of one file system, and notes each in the manifest."""

    def __init__(self, disk: Disk, local: Local, reader: Reader, target: str, manifest: _Manifest) -> None:
        self._disk = disk
        self._local = local
        self._reader = reader
        self._target = target
        self._manifest = manifest
        self._failures = 0
        self.done = Exported()

    # ---- files

    async def inode(self, one: Changed) -> None:
        """Export one inode, of any kind."""
        inode = self._local.metadata.inode(one.ino)
        if inode is None:
            return  # made and removed again
        kind = KINDS.get(stat.S_IFMT(inode.mode), "special")
        facts = {
            "path": os.fsdecode(one.paths[0]) if one.paths else None,
            "links": [os.fsdecode(path) for path in one.paths[1:]],
            "ino": one.ino,
            "kind": kind,
            "mode": oct(stat.S_IMODE(inode.mode)),
            "mtime_ns": inode.mtime,
            "operations": one.operations,
        }
        if kind == "symlink":
            facts["target"] = os.fsdecode(inode.target)
        if kind != "file":
            self._manifest.add(**facts)
            return
        pieces = self._local.dirty.pieces(one.ino, 0, inode.size)
        ranges = merged([(piece.start, piece.end) for piece in pieces])
        stored, missing = await self._file(one, inode.size)
        self._manifest.add(**facts, size=inode.size, ranges=ranges, missing=missing, stored=stored)

    async def _file(self, one: Changed, size: int) -> tuple[str, list[Range]]:
        """Write a file; returns where it is below the target, and what is missing of it."""
        name = f"files/{os.fsdecode(one.paths[0])}" if one.paths else f"unnamed/{one.ino}"
        file = self._create(name)
        missing: list[Range] = []
        try:
            file.resize(size)
            for start in range(0, size, STEP):
                buffer = bytearray(min(STEP, size - start))
                missing += await self._step(one.ino, start, buffer)
                if any(buffer):
                    file.write_at([buffer], start)
            file.sync()
        finally:
            file.close()
        missing = merged(missing + (lost_ranges(self._local, one, size) if self._local.aside else []))
        self.done.bytes += size - sum(end - start for start, end in missing)
        if not missing:
            self.done.files += 1
            return name, []
        self.done.incomplete += 1
        moved = f"incomplete/{name.partition('/')[2]}"
        self._disk.make_directory(os.path.dirname(f"{self._target}/{moved}"))
        self._disk.replace(f"{self._target}/{name}", f"{self._target}/{moved}")
        return moved, missing

    async def _step(self, ino: int, start: int, buffer: bytearray) -> list[Range]:
        """Fill the buffer with a file's bytes from `start` on; returns what could not be had: zeros there."""
        end = start + len(buffer)
        wanted = grid_ranges(self._local, ino, start, end)
        if not wanted or await self._read(ino, start, buffer):
            return [] if wanted else self._dirty(ino, start, buffer)
        buffer[:] = bytes(len(buffer))
        return wanted + self._dirty(ino, start, buffer)

    def _dirty(self, ino: int, start: int, buffer: bytearray) -> list[Range]:
        """Put in what the spool has; returns what it has lost."""
        lost: list[Range] = []
        for piece in self._local.dirty.pieces(ino, start, start + len(buffer)):
            if not self._read_piece(piece, memoryview(buffer)[piece.start - start : piece.end - start]):
                lost.append((piece.start, piece.end))
        return lost

    def _read_piece(self, piece: Piece, out: memoryview) -> bool:
        try:
            self._local.spool.read_into(piece.source, piece.skip, out)
        except (StorageError, OSError):
            out[:] = bytes(len(out))
            return False
        return True

    async def _read(self, ino: int, start: int, buffer: bytearray) -> bool:
        """Read from spool and grid; False where the grid does not give it."""
        if self._failures >= GRID_FAILURES_MAX:
            return False
        try:
            with trio.fail_after(GRID_S_MAX):
                await self._reader.read_into(ino, start, memoryview(buffer), Traffic.DEMAND)
        except (GridError, StorageError, OSError, trio.TooSlowError) as error:
            self._failures += 1
            self.done.grid_trouble = str(error) or f"no answer within {GRID_S_MAX:g} s"
            return False
        self._failures = 0
        return True

    # ---- slots

    def slots(self, names: Sequence[str], metadata: Sequence[Metadata]) -> None:
        """Export the writes that slots hold, in their order. `metadata`: who may know where inodes lie."""
        if not names:
            return
        slots = [self._slot(name) for name in names]
        atlas = Atlas(metadata, (ino for slot in slots for ino in slot.piled))
        given: dict[int, tuple[int, bytes]] = {}
        for slot in slots:
            given |= slot.names
        for slot in slots:
            numbers = slot.numbers
            self._manifest.add(slot=slot.name, operations=[numbers[0], numbers[-1]] if numbers else None)
            for ino, one in slot.piled.items():
                path = atlas.path(ino, given)
                ranges = merged(one.ranges)
                self.done.bytes += sum(end - start for start, end in ranges)
                self._manifest.add(
                    slot=slot.name,
                    ino=ino,
                    path=None if path is None else os.fsdecode(path),
                    operations=one.numbers,
                    ranges=ranges,
                    stored=f"slots/{slot.name}/{ino}" if ranges else None,
                )
            self.done.slots += 1

    def _slot(self, name: str) -> _Slot:
        """Write out the data of one slot; returns what was found."""
        slot = _Slot(name)
        for record, data in self._local.spool.records_in(name):
            operation = decode(record.operation)
            slot.numbers.append(record.number)
            slot.names |= {ino: (parent, given) for ino, parent, given in named(operation)}
            for ino in touched(operation):
                slot.piled.setdefault(ino, _Piled()).numbers.append(record.number)
            if isinstance(operation, Write) and data:
                file = self._create(f"slots/{name}/{operation.ino}", exclusive=False)
                try:
                    file.write_at([data], operation.offset)
                finally:
                    file.close()
                slot.piled[operation.ino].ranges.append((operation.offset, operation.offset + len(data)))
        return slot

    def _create(self, name: str, *, exclusive: bool = True) -> File:
        path = f"{self._target}/{name}"
        self._disk.make_directory(os.path.dirname(path))
        return self._disk.open(path, create=True, exclusive=exclusive)
