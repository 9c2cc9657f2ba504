"""The outbox: operations, sealed, that still have to be shipped to the head log.

A Write counts there only for size and times, so Writes to one inode are gathered into one that spans
them all, under the last number, as long as nothing but Writes lies between; Writes to different inodes
commute. All operations of a transaction wait in memory and are written together by `flush`, before its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

import apsw

from gridfs.meta.operations import Operation, Write, encode
from gridfs.meta.rows import Sealer

GATHERED_INODES_MAX = 1024
WAITING_MAX = 4096
"""Operations in memory before they are written."""
RECENT_BYTES_MAX = 1 << 20
"""Operations in memory that are written and have still to be shipped, 64 an operation counted besides."""


class _Span(NamedTuple):
    number: int
    start: int
    end: int
    time: int | None
    stored: int
    """Number of the row that this span stands in already; 0 for none."""


class Outbox:
    """Table `outbox`. `_gathered` holds Writes since the last other operation; `_unwritten` names those
    whose row is not there or not up to date. `_waiting` are rows to come, `_replaced` the numbers of rows
    that they take the place of. `_recent` has the newest rows, so that shipping them reads and opens none."""

    def __init__(self, database: apsw.Connection, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer
        self._gathered: dict[int, _Span] = {}
        self._unwritten: dict[int, None] = {}
        self._waiting: list[tuple[int, bytes]] = []
        self._replaced: list[int] = []
        self._recent: dict[int, bytes] = {}
        """By number, ascending: all rows with numbers above `_older`."""
        self._recent_bytes = 0
        self._older = 0

    def forget(self, applied: int) -> None:
        """Drop what is in memory: at the start, and after a rollback to the operation `applied`."""
        self._recent.clear()
        self._recent_bytes = 0
        self._older = applied
        self._gathered.clear()
        self._unwritten.clear()
        self._waiting.clear()
        self._replaced.clear()

    def put(self, number: int, operation: Operation, encoded: bytes) -> None:
        if isinstance(operation, Write):
            self._gather(number, operation)
            return
        self._settle()
        self._gathered.clear()
        self._waiting.append((number, encoded))
        if len(self._waiting) >= WAITING_MAX:
            self.flush()

    def _settle(self) -> None:
        """What is gathered becomes rows, for now."""
        for ino in self._unwritten:
            number, start, end, time, stored = self._gathered[ino]
            if stored:
                self._replaced.append(stored)
            self._waiting.append((number, encode(Write(ino, start, end - start, time))))
            self._gathered[ino] = _Span(number, start, end, time, number)
        self._unwritten.clear()

    def flush(self) -> None:
        """Write everything into the open transaction. Where it raises, that has to be rolled back."""
        self._settle()
        if self._replaced:
            self._database.executemany(
                "DELETE FROM outbox WHERE number = ?", [(number,) for number in self._replaced]
            )
            for number in self._replaced:
                self._recent_bytes -= len(self._recent.pop(number, b""))
            self._replaced.clear()
        if self._waiting:
            self._waiting.sort()  # Writes that were gathered are not in the order of their last numbers
            seal = self._sealer.seal
            self._database.executemany(
                "INSERT INTO outbox VALUES (?, ?)",
                [(number, seal(encoded)) for number, encoded in self._waiting],
            )
            self._remember()
            self._waiting.clear()

    def _remember(self) -> None:
        self._recent.update(self._waiting)
        self._recent_bytes += sum(len(encoded) for _, encoded in self._waiting)
        if self._recent_bytes + 64 * len(self._recent) > RECENT_BYTES_MAX:
            for number in list(self._recent)[: max(1, len(self._recent) // 2)]:
                self._let_go(number)

    def _let_go(self, number: int) -> None:
        self._recent_bytes -= len(self._recent.pop(number))
        self._older = number

    def rows(self, after: int, limit_bytes: int) -> list[tuple[int, bytes]]:
        """As `Metadata.outbox`; `flush` goes first. Raises Corrupt where a row does not open."""
        result: list[tuple[int, bytes]] = []
        total = 0
        for number, payload in self._after(after):
            total += len(payload)
            if result and total > limit_bytes:
                break
            result.append((number, payload))
        return result

    def _after(self, number: int) -> Iterator[tuple[int, bytes]]:
        if number >= self._older:
            # The newest few are asked for again and again, with thousands before them.
            yield from reversed(list(takewhile(lambda row: row[0] > number, reversed(self._recent.items()))))
            return
        for found, sealed in self._database.execute(
            "SELECT number, payload FROM outbox WHERE number > ? ORDER BY number", (number,)
        ):
            yield found, self._sealer.open(sealed)

    def drop(self, up_to: int) -> None:
        self.flush()
        self._database.execute("DELETE FROM outbox WHERE number <= ?", (up_to,))
        for number in list(takewhile(lambda number: number <= up_to, self._recent)):
            self._let_go(number)
        self._older = max(self._older, up_to)
        for ino in [ino for ino, span in self._gathered.items() if span.number <= up_to]:
            del self._gathered[ino]
            self._unwritten.pop(ino, None)

    def _gather(self, number: int, write: Write) -> None:
        start, end = write.offset, write.offset + write.length
        span = self._gathered.get(write.ino)
        stored, time = 0, write.time
        if span is not None:
            stored = span.stored
            time = span.time if time is None else time
            if start == end:  # an empty write changes no size
                start, end = span.start, span.end
            elif span.start < span.end:
                start, end = min(start, span.start), max(end, span.end)
        elif len(self._gathered) >= GATHERED_INODES_MAX:
            self._settle()
            self._gathered.clear()
        self._gathered[write.ino] = _Span(number, start, end, time, stored)
        self._unwritten[write.ino] = None
