"""Barriers: operations that wait for data. What takes another's place leaves this machine after its bytes.

A rename or exchange over a name, and a clone of what is not stored yet, would otherwise name content that
nobody has: on another machine neither the old nor the new would be there.
"""

from __future__ import annotations

from collections import deque

from gridfs.files.carrying import Carrying
from gridfs.files.log import OperationLog
from gridfs.files.writer import Writer
from gridfs.meta.operations import Clone, Rename, decode

_STEP_BYTES = 1 << 20


class Barriers:
    """The barriers of one mount, in the order of their operations."""

    def __init__(self, log: OperationLog, writer: Writer, carrying: Carrying) -> None:
        self._log = log
        self._writer = writer
        self._carrying = carrying
        self._waiting: deque[tuple[int, int]] = deque()

    def hold(self, number: int, ino: int) -> None:
        """Operation `number` names `ino` anew: all data written to it before must be in the grid first."""
        self._waiting.append((number, ino))
        self._log.names_held += 1
        self._log.names_waiting = len(self._waiting)

    def hold_again(self, shipped: int) -> None:
        """At the start: what the last process held back, and the grid has not."""
        while rows := self._log.metadata.outbox(shipped, _STEP_BYTES):
            for number, encoded in rows:
                match decode(encoded):
                    case Rename(ino=ino, replaced=other, exchange=exchange) if other:
                        self.hold(number, ino)
                        if exchange:
                            self.hold(number, other)
                    case Clone(ino=ino):
                        self.hold(number, ino)
                    case _:
                        pass
            shipped = rows[-1][0]

    def limit(self) -> int:
        """The last operation that may be shipped now."""
        while self._waiting:
            number, ino = self._waiting[0]
            if not self.is_safe(ino, number - 1):
                return number - 1
            self._waiting.popleft()
            self._log.names_waiting = len(self._waiting)
        return self._log.number

    def is_safe(self, ino: int, number: int) -> bool:
        """Whether the inode's bytes up to `number` are in packs, or in records on W head servers."""
        return self._writer.is_stored(ino, number) or self._carrying.covers(ino, number)

    def push(self) -> None:
        """Get the data of the first barrier on its way: in a record before its own, or in a pack."""
        if not self._waiting:
            return
        number, ino = self._waiting[0]
        if self._carrying.takes(ino, number - 1):
            self._carrying.want(ino, number - 1)
        else:
            self._writer.want(ino, number)

    def store(self) -> None:
        """The same, in a pack."""
        if self._waiting:
            number, ino = self._waiting[0]
            self._writer.want(ino, number)
