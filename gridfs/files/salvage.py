"""What a spool holds that the grid has not: which files, under which names, and what of them is here.

For a client that may not write any more, or cannot: nothing of its state is changed. The spool is replayed
into the open transaction of the metadata, which is given up at the end, over a disk that takes no change.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from gridfs.files.dirty import DirtyData
from gridfs.files.headstate import load_head_state
from gridfs.files.log import LogConfig, OperationLog
from gridfs.files.replay import redo
from gridfs.files.spool import Spool
from gridfs.files.spoolformat import ASIDE
from gridfs.meta.operations import (
    Attach,
    Clone,
    Commit,
    Drop,
    Link,
    Make,
    Operation,
    Rename,
    Retire,
    Together,
    Write,
    decode,
)
from gridfs.meta.rows import ROOT, Sealer
from gridfs.meta.store import Metadata
from storage.ports import Disk, File, Machine, Space

_STEP_BYTES = 1 << 20
_ENTRIES = 1000

Range = tuple[int, int]


class FrozenDisk:
    """A disk on which nothing changes. What the spool would put aside is noted instead."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.put_aside: list[str] = []
        """Names of files."""

    @property
    def sqlite_vfs(self) -> str | None:
        return self._disk.sqlite_vfs

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True
    ) -> File:
        return self._disk.open(path, writable=False)

    def replace(self, source: str, target: str) -> None:
        self.put_aside.append(source.rpartition("/")[2])

    def remove(self, path: str) -> None:
        raise PermissionError(f"{path} is to be kept")

    def make_directory(self, path: str) -> None:
        pass

    def names(self, path: str) -> list[str]:
        try:
            return self._disk.names(path)
        except FileNotFoundError:
            return []

    def sync_directory(self, path: str) -> None:
        pass

    def space(self, path: str) -> Space:
        return self._disk.space(path)


@dataclass(frozen=True, slots=True)
class Local:
    """A file system's local state, replayed."""

    metadata: Metadata
    spool: Spool
    log: OperationLog
    dirty: DirtyData
    shipped: int
    """Number of the last operation that a quorum of head servers has."""
    slots: tuple[str, ...]
    """Names of the slots of the log."""
    aside: tuple[str, ...]
    """Names of slots that belong to another history."""


@contextmanager
def opened_unchanged(
    machine: Machine, database: str, spool_directory: str, sealer: Sealer, spool_key: bytes
) -> Iterator[Local]:
    """Open the local state of a file system that nobody has mounted. Raises what a mount's opening does."""
    disk = FrozenDisk(machine.disk)
    frozen = replace(machine, disk=disk)
    metadata = Metadata.open(database, sealer, vfs=machine.disk.sqlite_vfs)
    spool = Spool(frozen, spool_directory, spool_key, 0)
    try:
        log = OperationLog(frozen, metadata, database, spool, LogConfig())
        dirty = DirtyData(log)
        state = load_head_state(metadata)
        redo(log, dirty, state.emptied)
        names = disk.names(spool_directory)
        aside = sorted([name for name in names if ASIDE in name] + disk.put_aside)
        slots = tuple(name for name in names if name.endswith(".spool") and name not in aside)
        yield Local(metadata, spool, log, dirty, state.shipped, slots, tuple(aside))
    finally:
        metadata.close()
        spool.close()


@dataclass(slots=True)
class Changed:
    """One inode that the grid does not have as it is here."""

    ino: int
    operations: list[int] = field(default_factory=list)
    """Numbers of operations on it that are not in the grid, and of writes whose data is not; ascending."""
    paths: list[bytes] = field(default_factory=list)
    """All its names, from the root, without a leading slash."""
    written: list[Range] = field(default_factory=list)
    """What operations that are not in the grid have written; several of them may stand as one range."""


def changed(local: Local) -> list[Changed]:
    """All inodes with dirty data or with operations that were not shipped, by number."""
    found: dict[int, Changed] = {}
    for ino in local.dirty.since:
        numbers = sorted({piece.number for piece in local.dirty.pieces(ino, 0, 1 << 63)})
        found[ino] = Changed(ino, numbers)
    after = local.shipped
    while rows := local.metadata.outbox(after, _STEP_BYTES):
        for number, encoded in rows:
            operation = decode(encoded)
            for ino in touched(operation):
                one = found.setdefault(ino, Changed(ino))
                one.operations.append(number)
                if isinstance(operation, Write):
                    one.written.append((operation.offset, operation.offset + operation.length))
        after = rows[-1][0]
    for one in found.values():
        one.operations = sorted(set(one.operations))
    return [found[ino] for ino in sorted(found)]


def touched(operation: Operation) -> list[int]:
    """The inodes that an operation changes, directories aside in which it changes names."""
    match operation:
        case Together(parts=parts):
            return [ino for part in parts for ino in touched(part)]
        case Commit(extents=extents):
            return list(dict.fromkeys(extent.ino for extent in extents))
        case Drop() | Retire():
            return []
        case _:
            return [operation.ino]


def name_paths(metadata: Metadata, wanted: Iterable[Changed]) -> dict[int, bytes]:
    """Fill in the paths of `wanted`; returns the path of every directory."""
    by_ino = {one.ino: one for one in wanted}
    directories = {ROOT: b""}
    waiting = [ROOT]
    while waiting:
        parent = waiting.pop()
        cookie = 0
        while entries := metadata.entries(parent, cookie, _ENTRIES):
            for entry in entries:
                path = directories[parent] + b"/" * bool(directories[parent]) + entry.name
                if stat.S_ISDIR(entry.mode):
                    directories[entry.ino] = path
                    waiting.append(entry.ino)
                if entry.ino in by_ino:
                    by_ino[entry.ino].paths.append(path)
            cookie = entries[-1].cookie
    return directories


class Atlas:
    """Where inodes of another history were, as well as that can be told: by the names that its own operations
    give, else by metadata, in the order in which they are believed."""

    def __init__(self, metadata: Sequence[Metadata], inodes: Iterable[int]) -> None:
        """`inodes`: all that will be asked for, directories aside."""
        self._known: list[dict[int, bytes]] = []
        wanted = sorted(set(inodes))
        for one in metadata:
            files = [Changed(ino) for ino in wanted]
            known = name_paths(one, files)
            self._known.append(known | {file.ino: file.paths[0] for file in files if file.paths})

    def path(self, ino: int, names: Mapping[int, tuple[int, bytes]]) -> bytes | None:
        """`names`: inode -> (directory, name), by operations. Parts that nobody knows are "?"."""
        parts: list[bytes] = []
        seen: set[int] = set()
        while ino in names and ino not in seen:
            seen.add(ino)
            ino, name = names[ino]
            parts.append(name)
        above = next((known[ino] for known in self._known if ino in known), None)
        if above is None and not parts:
            return None
        if above != b"":
            parts.append(b"?" if above is None else above)
        return b"/".join(reversed(parts))


def grid_ranges(local: Local, ino: int, start: int, end: int) -> list[Range]:
    """Parts of [start, end) that the spool lacks and packs have; the rest is in the spool, or zeros."""
    result: list[Range] = []
    position = start
    for piece_start, piece_end in [
        *((piece.start, piece.end) for piece in local.dirty.pieces(ino, start, end)),
        (end, end),
    ]:
        if position < piece_start:
            for extent in local.metadata.extents(ino, position, piece_start):
                result.append((max(position, extent.start), min(piece_start, extent.end)))
        position = max(position, piece_end)
    return merged(result)


def lost_ranges(local: Local, one: Changed, size: int) -> list[Range]:
    """What was written and is neither in the spool nor in a pack: zeros are read there, and may be wrong.

    Only to be asked where slots were set aside: the operations of a whole spool have left zeros rightly.
    """
    known = [(piece.start, piece.end) for piece in local.dirty.pieces(one.ino, 0, size)]
    known += grid_ranges(local, one.ino, 0, size)
    result: list[Range] = []
    for start, end in merged(one.written):
        position = start
        for low, high in [*merged(known), (end, end)]:
            if position < min(low, end):
                result.append((position, min(low, end, size)))
            position = max(position, high)
    return merged(result)


def merged(ranges: list[Range]) -> list[Range]:
    """The same bytes in as few ranges as can be, ascending."""
    result: list[Range] = []
    for start, end in sorted(ranges):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        elif start < end:
            result.append((start, end))
    return result


def named(operation: Operation) -> list[tuple[int, int, bytes]]:
    """(inode, directory, name) of each name that an operation gives."""
    match operation:
        case Together(parts=parts):
            return [name for part in parts for name in named(part)]
        case Make() | Link() | Clone() | Attach():
            return [(operation.ino, operation.parent, operation.name)]
        case Rename():
            return [(operation.ino, operation.new_parent, operation.new_name)]
        case _:
            return []
