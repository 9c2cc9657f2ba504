"""The rows of table `inode`: read once, changed in memory, written together before a commit.

A file that is made, written, closed and stamped changes its own row and its directory's once or twice at
each step; the table takes one row for all of it. Whoever asks the table itself calls `flush` first. What
was changed since the last commit is lost with a rollback, as it would be in the table: `forget` then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apsw

from gridfs.meta.rows import Inode
from storage.errors import Corrupt

KEPT_MAX = 8192
"""Rows in memory, but for those that were changed."""
CHANGED_MAX = 4096
"""Rows that a transaction changes before they are written."""

_COLUMNS = (
    "ino, mode, uid, gid, size, nlink, atime, mtime, ctime, rdev, target, parent, body, held, read_only"
)


@dataclass(slots=True, eq=False)
class Row:
    """One row as it stands. To be changed only as `Inodes.changing` hands it out."""

    ino: int
    mode: int
    uid: int
    gid: int
    size: int
    nlink: int
    atime: int
    mtime: int
    ctime: int
    rdev: int
    target: bytes | None
    parent: int | None
    """Of a directory: where it lies."""
    body: int | None = None
    held: int = 0
    """Bytes in its extents."""
    read_only: int = 0
    is_stored: bool = False
    """Whether the table has a row of it, however old."""
    has_no_xattrs: bool = False
    """Known to have no extended attributes."""
    seen: Inode | None = None
    """The row as others see it, while nothing of it changes."""

    def values(self) -> tuple[Any, ...]:
        return (
            self.ino, self.mode, self.uid, self.gid, self.size, self.nlink, self.atime, self.mtime,
            self.ctime, self.rdev, self.target, self.parent, self.body, self.held, self.read_only,
        )  # fmt: skip

    def inode(self) -> Inode:
        if self.seen is None:
            # While a cut is being worked off, more is held than the file has bytes.
            blocks = (min(self.held, self.size) + 511) // 512
            self.seen = Inode(
                self.ino, self.mode, self.uid, self.gid, self.size, self.nlink, self.atime, self.mtime,
                self.ctime, self.rdev, self.target or b"", blocks, bool(self.read_only),
            )  # fmt: skip
        return self.seen


class Inodes:
    """All of them, by number."""

    def __init__(self, database: apsw.Connection) -> None:
        self._database = database
        self._rows: dict[int, Row] = {}
        self._changed: dict[int, Row] = {}
        self._gone: dict[int, None] = {}
        """Stored rows that are to be deleted."""
        self._last = 0
        """No row has a higher number."""
        self.changes = 0
        """Rises with every change."""

    def forget(self) -> None:
        """Read everything anew: at the start, and after a rollback."""
        self._rows.clear()
        self._changed.clear()
        self._gone.clear()
        last: Any = self._database.execute("SELECT max(ino) FROM inode").get
        self._last = last or 0

    def find(self, ino: int) -> Row | None:
        row = self._rows.get(ino)
        if row is not None:
            return row
        if ino > self._last or ino in self._gone:
            return None
        values: Any = self._database.execute(
            f"SELECT {_COLUMNS} FROM inode WHERE ino = ?",  # noqa: S608
            (ino,),
        ).fetchone()
        if values is None:
            return None
        if len(self._rows) >= KEPT_MAX + len(self._changed):
            self._evict()
        row = self._rows[ino] = Row(*values)
        row.is_stored = True
        return row

    def _evict(self) -> None:
        """Let go of the older half."""
        for ino in list(self._rows)[: len(self._rows) // 2]:
            if ino not in self._changed:
                del self._rows[ino]

    def add(self, row: Row) -> None:
        """A new inode, which no row has."""
        self.changes += 1
        self._rows[row.ino] = self._changed[row.ino] = row
        self._last = max(self._last, row.ino)
        self._bound()

    def changing(self, ino: int) -> Row:
        """The row, to be changed before anything else here is called. Raises Corrupt where there is none."""
        row = self.find(ino)
        if row is None:
            raise Corrupt(f"there is no inode {ino}")
        self.changes += 1
        row.seen = None
        if ino not in self._changed:
            self._bound()
            self._rows[ino] = self._changed[ino] = row  # it may just have been let go
        return row

    def remove(self, ino: int) -> None:
        """Raises Corrupt where there is none."""
        row = self.changing(ino)
        del self._rows[ino]
        del self._changed[ino]
        if row.is_stored:
            self._gone[ino] = None

    def _bound(self) -> None:
        if len(self._changed) + len(self._gone) >= CHANGED_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what was changed into the open transaction. Where it raises, that has to be rolled back."""
        if self._gone:
            self._database.executemany("DELETE FROM inode WHERE ino = ?", [(ino,) for ino in self._gone])
            self._gone.clear()
        if not self._changed:
            return
        new = [row.values() for row in self._changed.values() if not row.is_stored]
        old = [row.values() for row in self._changed.values() if row.is_stored]
        if new:
            self._database.executemany(
                f"INSERT INTO inode ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                new,
            )
        if old:
            self._database.executemany(
                "UPDATE inode SET mode = ?2, uid = ?3, gid = ?4, size = ?5, nlink = ?6, atime = ?7,"
                " mtime = ?8, ctime = ?9, rdev = ?10, target = ?11, parent = ?12, body = ?13, held = ?14,"
                " read_only = ?15 WHERE ino = ?1",
                old,
            )
        for row in self._changed.values():
            row.is_stored = True
        self._changed.clear()
        if len(self._rows) > KEPT_MAX:
            self._evict()
