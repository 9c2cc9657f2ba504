"""The bodies of files: their extents, kept by body number, and the work list of what was cut off.

An inode has a body once an extent was committed for it. A truncate to nothing and a drop take the body
away from the inode, whatever its size; a truncate to more removes the extents past the end at once if
they are few, else it leaves a cut: from then on an extent of that body which begins at or behind the
cut's position and was frozen before the cut's number is dead. Reads leave the dead out; `work` removes
them. What is committed later was frozen later, or was clipped by its writer, and so is never dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import apsw

from gridfs.meta import extents as algebra
from gridfs.meta.packs import Packs
from gridfs.meta.rows import Extent
from gridfs.meta.schema import State

CUT_ROWS_MAX = 1000
"""A cut of at most so many extents is made at once."""

WHOLE = (1 << 63) - 1
"""Number of a cut to which every extent is dead: its body belongs to no inode."""

_COLUMNS = "start, length, pack, run, run_offset, run_length, skip, frozen"


class _Cut(NamedTuple):
    body: int
    number: int
    position: int
    ino: int
    """The inode whose held bytes shrink; 0 where it has lost the body."""


class Bodies:
    """Tables `extent` and `cut`, and the columns `body` and `held` of `inode`."""

    def __init__(self, database: apsw.Connection, state: State, packs: Packs) -> None:
        self._database = database
        self._state = state
        self._packs = packs
        self._cuts: dict[int, list[_Cut]] = {}

    def reload(self) -> None:
        """Read the work list anew, after opening and after a rollback."""
        self._cuts.clear()
        rows = self._database.execute("SELECT body, number, position, ino FROM cut ORDER BY body, number")
        for row in rows:
            self._cuts.setdefault(row[0], []).append(_Cut(*row))

    @property
    def has_work(self) -> bool:
        return bool(self._cuts)

    def extents(self, ino: int, start: int, end: int) -> list[Extent]:
        body = self._body(ino)
        if body is None or start >= end:
            return []
        return self._living(body, self._overlapping(body, start, end))

    def insert(self, ino: int, pieces: Sequence[Extent], changes: dict[int, int]) -> None:
        """Put extents into an inode's body; `changes` gathers what to add to the live bytes of packs."""
        body = self._body(ino)
        is_new = body is None
        if body is None:
            body = self._state.next_body
            self._state.next_body += 1
        held = 0
        for index, piece in enumerate(pieces):
            if is_new and index == 0:
                held += self._exchange(body, [], [piece], changes)
                continue
            # One byte more on each side brings in the neighbours that may continue the same run.
            old = self._overlapping(body, piece.start - 1, piece.end + 1)
            # Dead ones leave on the way: joined to a live neighbour they would come back.
            held += self._exchange(body, old, algebra.insert(self._living(body, old), piece), changes)
        self._database.execute("UPDATE inode SET body = ?, held = held + ? WHERE ino = ?", (body, held, ino))

    def truncate(self, ino: int, size: int, number: int) -> None:
        """Take everything from byte `size` on out of an inode's body."""
        body = self._body(ino)
        if body is None:
            return
        if size == 0:
            self.detach(ino, number)
            return
        changes: dict[int, int] = {}
        last = [row for row in self._overlapping(body, size - 1, size) if row.end > size]
        held = self._exchange(body, last, algebra.cut(last, size, last[0].end), changes) if last else 0
        past = self._from(body, size, CUT_ROWS_MAX + 1)
        cuts = [cut for cut in self._cuts.get(body, []) if cut.position < size]
        if len(past) <= CUT_ROWS_MAX:
            held += self._exchange(body, past, [], changes)
        else:
            cuts.append(_Cut(body, number, size, ino))
        if held:
            self._database.execute("UPDATE inode SET held = held + ? WHERE ino = ?", (held, ino))
        self._set_cuts(body, cuts)
        self._packs.add_live(changes, number)

    def detach(self, ino: int, number: int) -> None:
        """Take the whole body away from an inode."""
        body = self._body(ino)
        if body is None:
            return
        self._database.execute("UPDATE inode SET body = NULL, held = 0 WHERE ino = ?", (ino,))
        past = self._from(body, 0, CUT_ROWS_MAX + 1)
        if len(past) <= CUT_ROWS_MAX:
            changes: dict[int, int] = {}
            self._exchange(body, past, [], changes)
            self._set_cuts(body, [])
            self._packs.add_live(changes, number)
        else:
            self._set_cuts(body, [_Cut(body, WHOLE, 0, 0)])

    def work(self, limit_rows: int) -> bool:
        """Remove dead extents, looking at no more than `limit_rows` rows; whether cuts are left."""
        changes: dict[int, int] = {}
        left = limit_rows
        while self._cuts and left > 0:
            body, cuts = next(iter(self._cuts.items()))
            cut = cuts[0]
            rows = self._from(body, cut.position, left)
            held = self._exchange(body, [row for row in rows if row.frozen < cut.number], [], changes)
            if held and cut.ino:
                self._database.execute("UPDATE inode SET held = held + ? WHERE ino = ?", (held, cut.ino))
            if len(rows) == left:
                self._set_cuts(body, [cut._replace(position=rows[-1].start + 1), *cuts[1:]])
            else:
                self._set_cuts(body, cuts[1:])
            left -= max(1, len(rows))
        self._packs.add_live(changes, self._state.applied)
        return bool(self._cuts)

    def _living(self, body: int, rows: list[Extent]) -> list[Extent]:
        cuts = self._cuts.get(body)
        return rows if cuts is None else [row for row in rows if not _is_dead(row, cuts)]

    def _body(self, ino: int) -> int | None:
        body = self._database.execute("SELECT body FROM inode WHERE ino = ?", (ino,)).get
        return None if body is None else int(body)

    def _overlapping(self, body: int, start: int, end: int) -> list[Extent]:
        """Extents that share a byte with [start, end), the dead among them, by start."""
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM extent WHERE body = ?1 AND start < ?3 AND start >= coalesce("  # noqa: S608
            "(SELECT start FROM extent WHERE body = ?1 AND start <= ?2 ORDER BY start DESC LIMIT 1), ?2)"
            " ORDER BY start",
            (body, start, end),
        )
        result = [Extent(*row) for row in rows]
        if result and result[0].end <= start:
            del result[0]
        return result

    def _from(self, body: int, start: int, limit: int) -> list[Extent]:
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM extent WHERE body = ? AND start >= ? ORDER BY start LIMIT ?",  # noqa: S608
            (body, start, limit),
        )
        return [Extent(*row) for row in rows]

    def _exchange(
        self, body: int, old: Sequence[Extent], new: Sequence[Extent], changes: dict[int, int]
    ) -> int:
        """Make the rows `old` into `new`; returns how many bytes more are held."""
        gone, come = algebra.difference(old, new)
        held = 0
        for extent in gone:
            changes[extent.pack_ref] = changes.get(extent.pack_ref, 0) - extent.length
            held -= extent.length
        for extent in come:
            changes[extent.pack_ref] = changes.get(extent.pack_ref, 0) + extent.length
            held += extent.length
        if gone:
            self._database.executemany(
                "DELETE FROM extent WHERE body = ? AND start = ?", [(body, extent.start) for extent in gone]
            )
        if come:
            self._database.executemany(
                "INSERT INTO extent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [(body, *extent) for extent in come]
            )
        return held

    def _set_cuts(self, body: int, cuts: list[_Cut]) -> None:
        if cuts == self._cuts.get(body, []):
            return
        self._database.execute("DELETE FROM cut WHERE body = ?", (body,))
        self._database.executemany("INSERT INTO cut VALUES (?, ?, ?, ?)", cuts)
        if cuts:
            self._cuts[body] = cuts
        else:
            self._cuts.pop(body, None)


def _is_dead(extent: Extent, cuts: Sequence[_Cut]) -> bool:
    return any(extent.start >= cut.position and extent.frozen < cut.number for cut in cuts)
