"""The rows of table `entry`: what names stand for. Read once, changed in memory, written before a commit.

A file that is made under a name for a while, then linked or renamed to its own and unlinked, costs the table
one row. Whoever reads the table itself calls `flush` first; `forget` after a rollback.
"""

from __future__ import annotations

import stat
from typing import Any, NamedTuple

import apsw

from gridfs.meta.schema import State

KEPT_MAX = 8192
"""Names in memory, but for those that were changed."""
CHANGED_MAX = 4096
"""Names that a transaction changes before they are written."""


class Name(NamedTuple):
    """An entry as it stands."""

    parent: int
    name: bytes
    ino: int
    cookie: int
    type: int

    @property
    def is_directory(self) -> bool:
        return self.type == stat.S_IFDIR


class Names:
    """All entries, by directory and name."""

    def __init__(self, database: apsw.Connection, state: State) -> None:
        self._database = database
        self._state = state
        self._kept: dict[tuple[int, bytes], Name | None] = {}
        """What was looked up or changed; None where there is no such name."""
        self._changed: dict[tuple[int, bytes], bool] = {}
        """Entries that differ from the table; whether that has a row of this name."""
        self.changes = 0
        """Rises with every change."""

    def forget(self) -> None:
        """Look everything up anew: after a rollback."""
        self._kept.clear()
        self._changed.clear()

    def find(self, parent: int, name: bytes) -> Name | None:
        key = (parent, name)
        if key in self._kept:
            return self._kept[key]
        row: Any = self._database.execute(
            "SELECT parent, name, ino, cookie, type FROM entry WHERE parent = ? AND name = ?", key
        ).fetchone()
        if len(self._kept) >= KEPT_MAX + len(self._changed):
            self._evict()
        found = self._kept[key] = None if row is None else Name(*row)
        return found

    def _evict(self) -> None:
        """Let go of the older half."""
        for key in list(self._kept)[: len(self._kept) // 2]:
            if key not in self._changed:
                del self._kept[key]

    def add(self, parent: int, name: bytes, ino: int, kind: int) -> None:
        """A new entry behind all others; `kind` are the type bits."""
        self._set(parent, name, Name(parent, name, ino, self._state.next_cookie, kind))
        self._state.next_cookie += 1

    def remove(self, entry: Name) -> None:
        """The entry goes; links are not counted."""
        self._set(entry.parent, entry.name, None)

    def point(self, entry: Name, to: Name) -> None:
        """From now on an entry names what another one names."""
        self._set(entry.parent, entry.name, entry._replace(ino=to.ino, type=to.type))

    def change(self, entry: Name, name: bytes) -> None:
        """Another name in the same directory, at the same place."""
        self._set(entry.parent, entry.name, None)
        self._set(entry.parent, name, entry._replace(name=name))

    def _set(self, parent: int, name: bytes, entry: Name | None) -> None:
        key = (parent, name)
        before = self.find(parent, name)
        self.changes += 1
        if key not in self._changed:
            if len(self._changed) >= CHANGED_MAX:
                self.flush()
            self._changed[key] = before is not None
        self._kept[key] = entry

    def flush(self) -> None:
        """Write what was changed into the open transaction. Where it raises, that has to be rolled back."""
        if not self._changed:
            return
        old = [key for key, is_stored in self._changed.items() if is_stored]
        new = [entry for key in self._changed if (entry := self._kept[key]) is not None]
        if old:
            self._database.executemany("DELETE FROM entry WHERE parent = ? AND name = ?", old)
        if new:
            self._database.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?)", new)
        self._changed.clear()
        if len(self._kept) > KEPT_MAX:
            self._evict()
