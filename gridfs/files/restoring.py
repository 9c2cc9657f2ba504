"""Data that head records carried and this machine lacks, put back into its spool.

A record with data tells the content at its last operation. What later operations cut, dropped or stored in
packs is taken out again, what the spool still has is left alone, and the rest is written anew, under new
numbers: the same bytes at the same place. A clone's data, while it is in no pack, is carried as its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from gridfs.files.dirty import DirtyData
from gridfs.files.log import OperationLog
from gridfs.files.overlay import Overlay, Piece, Source
from gridfs.files.spoolformat import CHUNK
from gridfs.meta.operations import Commit, Drop, Operation, SetAttributes, Together, Write, decode
from gridfs.meta.records import CarriedData

_STEP_BYTES = 1 << 20


Keep = Callable[[CarriedData, int, memoryview], object]
"""Takes the bytes `view`, which are part of some data, and go to a place in its file."""


def restore(
    log: OperationLog, dirty: DirtyData, carried: Sequence[tuple[int, CarriedData]], keep: Keep | None = None
) -> list[int]:
    """Bring back what is missing; returns the inodes that rest on the records.

    Those too whose bytes are in packs by now: the grid may not know of the Commit.

    `keep`: what to do with each piece; by default it is written anew.

    `carried`: (last operation of its record, data), in the order of the records. Metadata and overlays are
    at least as new as the last of them, and the outbox holds every operation behind the first.
    """
    overlays = _surviving(log, carried)
    for ino, overlay in overlays.items():
        _restore_file(log, dirty, ino, overlay, carried, keep or partial(_write, log, dirty))
    return list(dict.fromkeys(data.ino for _, data in carried))


def _write(log: OperationLog, dirty: DirtyData, data: CarriedData, start: int, view: memoryview) -> None:
    operation = Write(data.ino, start, len(view), None)
    number, source = log.record(operation, view, start % CHUNK)
    dirty.written(data.ino, start, len(view), number, source)


def _surviving(log: OperationLog, carried: Sequence[tuple[int, CarriedData]]) -> dict[int, Overlay]:
    """What is left of the data after all operations behind its records; a source is an index of `carried`."""
    overlays: dict[int, Overlay] = {}
    operations = _operations(log, carried[0][0]) if carried else iter(())
    ahead = next(operations, None)
    for index, (last, data) in enumerate(carried):
        while ahead is not None and ahead[0] <= last:
            _redo(overlays, ahead[1])
            ahead = next(operations, None)
        overlay = overlays.setdefault(data.ino, Overlay())
        overlay.write(data.start, data.start + len(data.data), data.number, Source(index, 0))
    while ahead is not None:
        _redo(overlays, ahead[1])
        ahead = next(operations, None)
    return {ino: overlay for ino, overlay in overlays.items() if not overlay.empty}


def _operations(log: OperationLog, after: int) -> Iterator[tuple[int, Operation]]:
    while rows := log.metadata.outbox(after, _STEP_BYTES):
        for number, encoded in rows:
            yield number, decode(encoded)
        after = rows[-1][0]


def _redo(overlays: dict[int, Overlay], operation: Operation) -> None:
    match operation:
        case SetAttributes(ino=ino, size=int(size)) if ino in overlays:
            overlays[ino].truncate(size)
        case Drop(ino=ino) if ino in overlays:
            del overlays[ino]
        case Commit(extents=extents):
            for extent in extents:
                if (overlay := overlays.get(extent.ino)) is not None:
                    overlay.retire(extent.start, extent.start + extent.length, extent.frozen)
        case Together(parts=parts):
            for part in parts:
                _redo(overlays, part)
        case _:
            pass


def _restore_file(
    log: OperationLog,
    dirty: DirtyData,
    ino: int,
    overlay: Overlay,
    carried: Sequence[tuple[int, CarriedData]],
    keep: Keep,
) -> None:
    inode = log.metadata.inode(ino)
    if inode is None:
        return
    missing = list(_missing(dirty, ino, overlay.pieces(0, inode.size)))
    for piece in missing:
        data = carried[piece.source.slot][1]
        keep(data, piece.start, memoryview(data.data)[piece.skip : piece.skip + piece.end - piece.start])


def _missing(dirty: DirtyData, ino: int, pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Parts of the pieces over which the spool has nothing as new."""
    for piece in pieces:
        position = piece.start
        for here in dirty.pieces(ino, piece.start, piece.end):
            if here.number < piece.number:
                continue
            if position < here.start:
                yield _part(piece, position, here.start)
            position = max(position, here.end)
        if position < piece.end:
            yield _part(piece, position, piece.end)


def _part(piece: Piece, start: int, end: int) -> Piece:
    return piece._replace(start=start, end=end, skip=piece.skip + start - piece.start)
