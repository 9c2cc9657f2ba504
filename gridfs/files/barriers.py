"""Barriers: operations that wait for data. What takes another's place leaves this machine after its bytes.

A rename or exchange over a name, and a clone of what is not stored yet, would otherwise name content that
nobody has: on another machine neither the old nor the new would be there. Bytes in a pack count from the
record on that has its Commit, and bytes that were cut off are given up from the record on that says so: a
record with an operation that waited for one of these has that one too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from gridfs.files.carrying import Carrying
from gridfs.files.dirty import DirtyData
from gridfs.files.log import OperationLog
from gridfs.files.writer import Writer
from gridfs.meta.operations import Clone, Rename, decode

_STEP_BYTES = 1 << 20


@dataclass(slots=True)
class _Barrier:
    """Operation `number` names `ino` anew: all data written to it before must be in the grid first."""

    number: int
    ino: int
    needs: int
    """Bytes written by operations up to this one."""
    ready: int | None = None
    """What `Barriers.safe_from` told first."""


class Barriers:
    """The barriers of one mount, in the order of their operations."""

    def __init__(self, log: OperationLog, dirty: DirtyData, writer: Writer, carrying: Carrying) -> None:
        self._log = log
        self._dirty = dirty
        self._writer = writer
        self._carrying = carrying
        self._waiting: deque[_Barrier] = deque()

    def hold(self, number: int, ino: int) -> None:
        """Operation `number` names `ino` anew: all data written to it before must be in the grid first."""
        self._waiting.append(_Barrier(number, ino, number - 1))

    def hold_again(self, told: int) -> None:
        """At the start: what the last process held back. Operations up to `told` are in a record, so what
        they waited for is in packs, or in records from which it is carried on.

        What is in the place of their bytes now has to be there, too: the spool does not tell any more whether
        it was written over others that never left.
        """
        while rows := self._log.metadata.outbox(told, _STEP_BYTES):
            for number, encoded in rows:
                match decode(encoded):
                    case Rename(ino=ino, replaced=other, exchange=exchange) if other:
                        self._hold_again(number, ino)
                        if exchange:
                            self._hold_again(number, other)
                    case Clone(ino=ino):
                        self._hold_again(number, ino)
                    case _:
                        pass
            told = rows[-1][0]

    def _hold_again(self, number: int, ino: int) -> None:
        self._waiting.append(_Barrier(number, ino, self._log.number))

    def limit(self) -> int:
        """The last operation that may be shipped now. Never less than it was before."""
        for barrier in self._waiting:
            if barrier.ready is None:
                barrier.ready = self.safe_from(barrier.ino, barrier.needs)
        unready = self._unready
        limit = self._log.number if unready is None else unready.number - 1
        for barrier in reversed(self._waiting):
            # What would be safe from a later record on only, has to come in that one as well.
            if barrier.ready is not None and barrier.number <= limit < barrier.ready:
                limit = barrier.number - 1
        while self._waiting and self._waiting[0].number <= limit:
            self._waiting.popleft()
        return limit

    @property
    def is_crowded(self) -> bool:
        """Whether operations wait here only because others came before their data was safe."""
        return any(barrier.ready is not None for barrier in self._waiting)

    @property
    def _unready(self) -> _Barrier | None:
        return next((barrier for barrier in self._waiting if barrier.ready is None), None)

    def safe_from(self, ino: int, number: int) -> int | None:
        """The operation from which on records make the inode's bytes up to `number` safe; None if none does.

        0 where W head servers have a record that does.
        """
        if self._carrying.covers(ino, number):
            return 0
        return self._dirty.taken_at if self._writer.is_stored(ino, number) else None

    def push(self, limit: int) -> None:
        """Get data that barriers wait for on its way: in the next record, or in a pack."""
        for barrier in self._waiting:
            if barrier.ready is not None:
                continue
            if self._carrying.takes(barrier.ino, limit):
                self._carrying.want(barrier.ino, barrier.needs)
            else:
                self._writer.want(barrier.ino, barrier.needs)

    def store(self) -> None:
        """The same, all in packs."""
        for barrier in self._waiting:
            if barrier.ready is None:
                self._writer.want(barrier.ino, barrier.needs)
