"""The bodies of files: their extents, kept by body number, and the work list of what was cut off.

An inode has a body once an extent was committed for it. A truncate to nothing and a drop take the body
away from the inode, whatever its size; a truncate to more removes the extents past the end at once if
they are few, else it leaves a cut: from then on an extent of that body which begins at or behind the
cut's position and was frozen before the cut's number is dead. Reads leave the dead out; `work` removes
them. What is committed later was frozen later, or was clipped by its writer, and so is never dead.

The few extents of a body that was taken away are not read again; they are removed together, before a commit.

A clone copies the extents at once if they are few. Else the body becomes a base, which belongs to no
inode and never grows again, and both inodes get new bodies that are copies of it: reads look through a
copy's own extents into its base, and `work` moves the base's extents into all of its copies. As always
what was frozen later wins, so a commit to a copy needs no look at its base; a cut of a copy stays until
the base is empty, and what of the base lies behind it is dead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import apsw

from gridfs.meta import extents as algebra
from gridfs.meta.inodes import Inodes
from gridfs.meta.packs import Packs
from gridfs.meta.rows import Extent
from gridfs.meta.schema import State

CUT_ROWS_MAX = 1000
"""A cut of at most so many extents is made at once."""

CLONE_ROWS_MAX = 1000
"""A body of at most so many extents is cloned at once."""

MOVED_ROWS = 1000
"""Extents of a base that are moved at once where nobody can wait for the work list."""

GONE_MAX = 4096
"""Bodies whose extents wait to be removed."""

ROWS_A_PIECE = 8
"""Rows between extents that are to go in are read at once where they are no more than so many for each."""

DEPTH_MAX = 16
"""Bases above each other; a body that is cloned and changed faster than that waits for the work list."""

WHOLE = (1 << 63) - 1
"""Number of a cut to which every extent is dead: its body belongs to no inode."""

_COLUMNS = "start, length, pack, run, run_offset, run_length, skip, frozen"


class _Cut(NamedTuple):
    body: int
    number: int
    position: int
    ino: int
    """The inode whose held bytes shrink; 0 where it has lost the body."""


class _Copy(NamedTuple):
    body: int
    base: int
    ino: int
    """The inode whose body it is; 0 where it is a base itself."""


class Bodies:
    """Tables `extent`, `cut` and `copy`, and the columns `body` and `held` of inodes."""

    def __init__(self, database: apsw.Connection, state: State, inodes: Inodes, packs: Packs) -> None:
        self._database = database
        self._inodes = inodes
        self._state = state
        self._packs = packs
        self._cuts: dict[int, list[_Cut]] = {}
        self._copies: dict[int, _Copy] = {}
        self._gone: list[int] = []

    def reload(self) -> None:
        """Read the work list anew, after opening and after a rollback."""
        self._gone.clear()
        self._cuts.clear()
        rows = self._database.execute("SELECT body, number, position, ino FROM cut ORDER BY body, number")
        for row in rows:
            self._cuts.setdefault(row[0], []).append(_Cut(*row))
        self._copies.clear()
        for row in self._database.execute("SELECT body, base, ino FROM copy ORDER BY body"):
            self._copies[row[0]] = _Copy(*row)

    @property
    def has_work(self) -> bool:
        return bool(self._cuts or self._copies)

    def extents(self, ino: int, start: int, end: int) -> list[Extent]:
        body = self._body(ino)
        if body is None:
            return []
        return self._visible(body, start, end)

    def _visible(self, body: int, start: int, end: int) -> list[Extent]:
        """Living extents that overlap [start, end); those of a base are clipped to it."""
        if start >= end:
            return []
        rows = self._living(body, self._overlapping(body, start, end))
        copy = self._copies.get(body)
        if copy is not None:
            end = min(end, self._limit(body))
            below = [algebra.clip(row, start, end) for row in self._visible(copy.base, start, end)]
            if not rows:
                return below
            for row in below:
                rows = algebra.insert(rows, row)
        return rows

    def _limit(self, body: int) -> int:
        """From here on nothing of a copy's base is alive."""
        return min((cut.position for cut in self._cuts.get(body, ())), default=WHOLE)

    def insert(self, by_inode: Mapping[int, Sequence[Extent]], changes: dict[int, int]) -> None:
        """Put extents into the bodies of inodes; `changes` gathers what to add to the live bytes of packs."""
        exchange = _Exchange(changes)
        for ino, pieces in by_inode.items():
            body = self._body(ino)
            is_empty = body is None
            if body is None:
                body = self._new_body()
            held = 0
            for group in [pieces] if algebra.are_apart(pieces) else [[piece] for piece in pieces]:
                held += self._merge(body, group, exchange, is_empty=is_empty)
                if group is not pieces:
                    exchange.write(self._database)
                is_empty = False
            row = self._inodes.changing(ino)
            row.body = body
            row.held += held
        exchange.write(self._database)

    def _merge(self, body: int, pieces: Sequence[Extent], exchange: _Exchange, *, is_empty: bool) -> int:
        """Put extents that are apart into a body; returns how many bytes more are held."""
        old: list[Extent] = []
        if not is_empty:
            # One byte more on each side brings in the neighbours that may continue the same run.
            limit = ROWS_A_PIECE * len(pieces) if len(pieces) > 1 else -1
            old = self._overlapping(body, pieces[0].start - 1, pieces[-1].end + 1, limit)
            if len(old) >= limit - 1 > 0:  # they are far from each other
                half = len(pieces) // 2
                held = self._merge(body, pieces[:half], exchange, is_empty=False)
                exchange.write(self._database)
                return held + self._merge(body, pieces[half:], exchange, is_empty=False)
        # Dead ones leave on the way: joined to a live neighbour they would come back.
        return exchange.add(body, *algebra.insert_all(old, pieces, partial(self._living, body)))

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
        if len(past) <= CUT_ROWS_MAX and body not in self._copies:
            held += self._exchange(body, past, [], changes)
        else:
            cuts.append(_Cut(body, number, size, ino))
        self._hold(ino, held)
        self._set_cuts(body, cuts)
        self._packs.add_live(changes, number)

    def detach(self, ino: int, number: int) -> None:
        """Take the whole body away from an inode."""
        body = self._body(ino)
        if body is None:
            return
        row = self._inodes.changing(ino)
        row.body = None
        row.held = 0
        self._leave_base(body)
        past = self._from(body, 0, CUT_ROWS_MAX + 1)
        if len(past) > CUT_ROWS_MAX:
            self._set_cuts(body, [_Cut(body, WHOLE, 0, 0)])
            return
        self._set_cuts(body, [])
        if not past:
            return
        changes: dict[int, int] = {}
        for extent in past:
            changes[extent.pack_ref] = changes.get(extent.pack_ref, 0) - extent.length
        if len(self._gone) >= GONE_MAX:
            self.flush()
        self._gone.append(body)
        self._packs.add_live(changes, number)

    def flush(self) -> None:
        """Remove what is gone, in the open transaction. Where it raises, that has to be rolled back."""
        if self._gone:
            self._database.executemany("DELETE FROM extent WHERE body = ?", [(body,) for body in self._gone])
            self._gone.clear()

    def clone(self, ino: int, to: int, number: int) -> None:
        """Give the inode `to`, which has no body, the extents of `ino`."""
        body = self._body(ino)
        if body is None:
            return
        while self._depth(body) >= DEPTH_MAX:
            changes: dict[int, int] = {}
            self._move(MOVED_ROWS, changes)
            self._packs.add_live(changes, number)
        rows = self._from(body, 0, CLONE_ROWS_MAX + 1)
        if body not in self._copies and len(rows) <= CLONE_ROWS_MAX:
            self._clone_now(to, self._living(body, rows), number)
            return
        copy = self._copies.get(body)
        if copy is None or rows or body in self._cuts:
            base = body
            if copy is not None:
                self._set_copy(copy._replace(ino=0))
            self._copy_of(base, ino, ino)
        else:
            base = copy.base  # nothing has changed since it was cloned last
        self._copy_of(base, ino, to)

    def _clone_now(self, to: int, rows: list[Extent], number: int) -> None:
        if not rows:
            return
        changes: dict[int, int] = {}
        body = self._new_body()
        held = self._exchange(body, [], rows, changes)
        row = self._inodes.changing(to)
        row.body = body
        row.held = held
        self._packs.add_live(changes, number)

    def _copy_of(self, base: int, ino: int, to: int) -> None:
        """Give `to` a new body, a copy of `base`; it holds as much as `ino`."""
        body = self._new_body()
        self._set_copy(_Copy(body, base, to))
        held = self._inodes.changing(ino).held
        row = self._inodes.changing(to)
        row.body = body
        row.held = held

    def work(self, limit_rows: int) -> bool:
        """Move and remove extents, looking at no more than `limit_rows` rows; whether work is left."""
        changes: dict[int, int] = {}
        left = limit_rows
        while self._copies and left > 0:
            left -= self._move(left, changes)
        while self._cuts and left > 0:  # once no copy needs them any more
            body, cuts = next(iter(self._cuts.items()))
            cut = cuts[0]
            rows = self._from(body, cut.position, left)
            held = self._exchange(body, [row for row in rows if row.frozen < cut.number], [], changes)
            if cut.ino:
                self._hold(cut.ino, held)
            if len(rows) == left:
                self._set_cuts(body, [cut._replace(position=rows[-1].start + 1), *cuts[1:]])
            else:
                self._set_cuts(body, cuts[1:])
            left -= max(1, len(rows))
        self._packs.add_live(changes, self._state.applied)
        return self.has_work

    def _move(self, limit_rows: int, changes: dict[int, int]) -> int:
        """Move extents of one base into its copies; returns how many rows that were, at least 1."""
        base = next(copy.base for copy in self._copies.values() if copy.base not in self._copies)
        rows = self._from(base, 0, limit_rows)
        living = self._living(base, rows)
        moved = sum(row.length for row in rows)
        copies = [copy for copy in self._copies.values() if copy.base == base]
        for copy in copies:
            limit = self._limit(copy.body)
            pieces = [algebra.clip(row, 0, limit) for row in living if row.start < limit]
            held = self._put(copy.body, pieces, changes) - moved
            for ino in self._holders(copy):
                self._hold(ino, held)
        self._exchange(base, rows, [], changes)
        if len(rows) < limit_rows:
            for copy in copies:
                self._forget_copy(copy.body)
            self._set_cuts(base, [])
        return max(1, len(rows))

    def _put(self, body: int, pieces: list[Extent], changes: dict[int, int]) -> int:
        """Put extents of its base into a copy; returns how many bytes more are held."""
        if not pieces:
            return 0
        if not self._overlapping(body, pieces[0].start - 1, pieces[-1].end + 1):
            return self._exchange(body, [], pieces, changes)
        held = 0
        for piece in pieces:
            old = self._overlapping(body, piece.start - 1, piece.end + 1)
            held += self._exchange(body, old, algebra.insert(self._living(body, old), piece), changes)
        return held

    def _holders(self, copy: _Copy) -> list[int]:
        """The inodes that hold what a copy holds: its own, or those of the copies of it."""
        if copy.ino:
            return [copy.ino]
        above = [other for other in self._copies.values() if other.base == copy.body]
        return [ino for other in above for ino in self._holders(other)]

    def _leave_base(self, body: int) -> None:
        """A copy is given up; a base without copies is given up as well."""
        copy = self._copies.get(body)
        if copy is None:
            return
        self._forget_copy(body)
        if not any(other.base == copy.base for other in self._copies.values()):
            self._leave_base(copy.base)
            self._set_cuts(copy.base, [_Cut(copy.base, WHOLE, 0, 0)])

    def _depth(self, body: int) -> int:
        depth = 0
        while (copy := self._copies.get(body)) is not None:
            body, depth = copy.base, depth + 1
        return depth

    def _new_body(self) -> int:
        body = self._state.next_body
        self._state.next_body += 1
        return body

    def _set_copy(self, copy: _Copy) -> None:
        self._database.execute("INSERT OR REPLACE INTO copy VALUES (?, ?, ?)", copy)
        self._copies[copy.body] = copy

    def _forget_copy(self, body: int) -> None:
        self._database.execute("DELETE FROM copy WHERE body = ?", (body,))
        del self._copies[body]

    def _living(self, body: int, rows: list[Extent]) -> list[Extent]:
        cuts = self._cuts.get(body)
        return rows if cuts is None else [row for row in rows if not _is_dead(row, cuts)]

    def _body(self, ino: int) -> int | None:
        row = self._inodes.find(ino)
        return None if row is None else row.body

    def _hold(self, ino: int, change: int) -> None:
        """So many bytes more are held."""
        if change:
            self._inodes.changing(ino).held += change

    def _overlapping(self, body: int, start: int, end: int, limit: int = -1) -> list[Extent]:
        """Extents that share a byte with [start, end), the dead among them, by start; up to `limit` of them,
        or one less."""
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM extent WHERE body = ?1 AND start < ?3 AND start >= coalesce("  # noqa: S608
            "(SELECT start FROM extent WHERE body = ?1 AND start <= ?2 ORDER BY start DESC LIMIT 1), ?2)"
            " ORDER BY start LIMIT ?4",
            (body, start, end, limit),
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
        exchange = _Exchange(changes)
        held = exchange.add(body, old, new)
        exchange.write(self._database)
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


class _Exchange:
    """Rows that go and come, written together; `changes` gathers what to add to the live bytes of packs."""

    def __init__(self, changes: dict[int, int]) -> None:
        self._changes = changes
        self._gone: list[tuple[int, int]] = []
        self._come: list[tuple[int, ...]] = []

    def add(self, body: int, old: Sequence[Extent], new: Sequence[Extent]) -> int:
        """The rows `old` become `new`; returns how many bytes more are held."""
        gone, come = algebra.difference(old, new)
        changes, held = self._changes, 0
        for extent in gone:
            changes[extent.pack_ref] = changes.get(extent.pack_ref, 0) - extent.length
            held -= extent.length
            self._gone.append((body, extent.start))
        for extent in come:
            changes[extent.pack_ref] = changes.get(extent.pack_ref, 0) + extent.length
            held += extent.length
            self._come.append((body, *extent))
        return held

    def write(self, database: apsw.Connection) -> None:
        if self._gone:
            database.executemany("DELETE FROM extent WHERE body = ? AND start = ?", self._gone)
            self._gone.clear()
        if self._come:
            database.executemany("INSERT INTO extent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._come)
            self._come.clear()


def _is_dead(extent: Extent, cuts: Sequence[_Cut]) -> bool:
    return any(extent.start >= cut.position and extent.frozen < cut.number for cut in cuts)
