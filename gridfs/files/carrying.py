"""Small synced data inside head records: who waits for it, what a record takes along, what still rests on it.

An fsync of a small file is one message to each head server then: its bytes travel in the record, and go into
packs later, with others, when the file is idle. Until they are there the records from the last one that
*begins* (stands for itself) to the newest carry them; the next that begins carries anew what still is in no
pack. No awaits here; all calls are made from the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import trio

from gridfs.files.dirty import FILE_END, DirtyData
from gridfs.files.log import OperationLog
from gridfs.files.overlay import Piece
from gridfs.files.writer import Writer
from gridfs.meta.records import CarriedData
from storage.errors import Corrupt

logger = logging.getLogger(__name__)

CARRIED_BYTES_MAX = 16 << 10
"""Dirty bytes of one file that a record takes along; more go into packs first."""
CARRIED_PIECES_MAX = 64
PIECE_COST = 40
"""Bytes of a record that a piece takes beside its data."""


@dataclass(slots=True, eq=False)
class Want:
    """Somebody waits until an inode's bytes up to `number` are in a record that W head servers have."""

    number: int
    is_carried: bool = False
    settled: trio.Event = field(default_factory=trio.Event)
    """Set when they are there, or when it became clear that a record cannot take them."""


@dataclass(slots=True)
class Picked:
    """What one record takes along."""

    begins: bool
    up_to: dict[int, int] = field(default_factory=dict)
    """Inode -> number up to which its bytes are in packs or in records, once this one is stored."""
    data: list[CarriedData] = field(default_factory=list)
    size: int = 0

    def take(self, ino: int, data: Iterable[CarriedData], up_to: int) -> None:
        self.up_to[ino] = up_to
        for each in data:
            self.data.append(each)
            self.size += len(each.data) + PIECE_COST


class Carrying:
    """The ledger of one mount."""

    def __init__(self, log: OperationLog, dirty: DirtyData, writer: Writer) -> None:
        self._log = log
        self._dirty = dirty
        self._writer = writer
        self._up_to: dict[int, int] = {}
        self._wants: dict[int, Want] = {}
        self._unreadable: dict[int, int] = {}
        """Inode -> the newest operation whose bytes the spool did not give back: left to the writer."""

    # ---- waiting

    @property
    def is_wanted(self) -> bool:
        return bool(self._wants)

    def is_due(self, limit: int) -> bool:
        """Whether a record with operations up to `limit` brings any of them further."""
        return any(self._gets_on(ino, limit) for ino in self._wants)

    def _gets_on(self, ino: int, limit: int) -> bool:
        return self._wants[ino].number <= limit or self._up_to.get(ino, 0) < limit

    def want(self, ino: int, number: int) -> Want:
        """Ask for the next record to carry this inode's bytes up to `number`."""
        want = self._wants.setdefault(ino, Want(number))
        want.number = max(want.number, number)
        return want

    def give_up(self) -> None:
        """No record will be stored any more."""
        for ino in list(self._wants):
            self._refuse(ino)

    # ---- asking

    def covers(self, ino: int, number: int) -> bool:
        """Whether the inode's bytes up to `number` are in packs or in records on W head servers."""
        return self._up_to.get(ino, 0) >= number

    def takes(self, ino: int, limit: int) -> bool:
        """Whether a record with operations up to `limit` can carry what is new in this inode.

        What is not new must be told by then: which bytes are in packs, and which were cut off.
        """
        if limit < self._dirty.taken_at:
            return False
        pieces = list(self._new(ino))
        if any(piece.number <= self._unreadable.get(ino, 0) for piece in pieces):
            return False
        if len(pieces) > CARRIED_PIECES_MAX or any(piece.number > limit for piece in pieces):
            return False
        return sum(piece.end - piece.start for piece in pieces) <= CARRIED_BYTES_MAX

    # ---- picking

    def pick(self, limit: int, room: int, *, begins: bool) -> Picked | None:
        """What the next record, with operations up to `limit`, takes along in `room` bytes.

        None if it begins, and what rests on the records before it does not fit or is newer than `limit`.
        """
        picked = Picked(begins)
        if limit == self._log.number and (begins or not self._wants):
            self._forget_stored()  # not at every fsync: there may be thousands
        if begins and not self._pick_again(picked, limit, room):
            return None
        for ino in list(self._wants):
            if not self.takes(ino, limit):
                self._refuse(ino)
                continue
            if not self._gets_on(ino, limit):
                continue
            known = self._up_to.get(ino, 0) if begins else 0
            pieces = [piece for piece in self._new(ino) if piece.oldest > known]
            if picked.size + sum(map(_cost, pieces)) <= room:
                try:
                    picked.take(ino, self._read(ino, pieces), limit)
                except (OSError, Corrupt) as error:
                    logger.error("%s: %s", self._log.metadata.path_of(ino), error)
                    self._unreadable[ino] = max(piece.number for piece in pieces)
                    self._refuse(ino)  # the writer will say so to whoever waits
        return picked

    def _forget_stored(self) -> None:
        """Of what is in packs, the record that is being made has the Commit."""
        for ino in [ino for ino, number in self._up_to.items() if self._writer.is_stored(ino, number)]:
            del self._up_to[ino]
        for ino in [ino for ino, number in self._unreadable.items() if self._writer.is_stored(ino, number)]:
            del self._unreadable[ino]

    def _pick_again(self, picked: Picked, limit: int, room: int) -> bool:
        """Take along what rests on the records before this one; returns whether that can be done."""
        again: list[tuple[int, int, list[Piece]]] = []
        for ino, number in self._up_to.items():
            # Bytes that were overwritten since have to be there in their newer form.
            pieces = [piece for piece in self._pieces(ino) if piece.oldest <= number]
            if limit < self._log.number or any(piece.number > limit for piece in pieces):
                return False
            again.append((ino, number, pieces))
        if sum(_cost(piece) for _, _, pieces in again for piece in pieces) > room:
            return False
        try:
            for ino, number, pieces in again:
                picked.take(ino, self._read(ino, pieces), number)
        except (OSError, Corrupt):
            return False
        return True

    def carries(self, picked: Picked) -> bool:
        """Whether anything rests on the records once this one is stored, to the best of our knowledge."""
        return bool(self._up_to or picked.data)

    def _read(self, ino: int, pieces: Iterable[Piece]) -> list[CarriedData]:
        """The bytes, from the spool. Raises OSError, Corrupt."""
        result = []
        for piece in pieces:
            buffer = bytearray(piece.end - piece.start)
            self._log.spool.read_into(piece.source, piece.skip, memoryview(buffer))
            result.append(CarriedData(ino, piece.start, piece.number, bytes(buffer)))
        return result

    def landed(self, picked: Picked) -> None:
        """W head servers have the record."""
        if picked.begins:
            self._up_to.clear()
        self._up_to.update(picked.up_to)
        for ino, number in picked.up_to.items():
            want = self._wants.get(ino)
            if want is not None and want.number <= number:
                del self._wants[ino]
                want.is_carried = True
                want.settled.set()

    def restored(self, inodes: Iterable[int]) -> None:
        """These rest on records of a former mount."""
        self._up_to.update(dict.fromkeys(inodes, self._log.number))

    def store(self) -> None:
        """Let the writer put what rests on records into packs soon."""
        for ino, number in self._up_to.items():
            self._writer.want(ino, number)

    def _refuse(self, ino: int) -> None:
        self._wants.pop(ino).settled.set()

    def _pieces(self, ino: int) -> list[Piece]:
        overlay = self._dirty.overlay(ino)
        return [] if overlay is None else overlay.pieces(0, FILE_END)

    def _new(self, ino: int) -> Iterator[Piece]:
        """Dirty pieces that no record carries."""
        known = self._up_to.get(ino, 0)
        return (piece for piece in self._pieces(ino) if piece.number > known)


def _cost(piece: Piece) -> int:
    return piece.end - piece.start + PIECE_COST
