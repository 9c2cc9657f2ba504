"""The tree as it stands: reading inodes, names and attributes, and what operations expect of them.

Nothing in here changes anything. `entries`, `listing`, `orphans` and `path_of` read the tables themselves:
what waits in memory is flushed first.
"""

from __future__ import annotations

import stat
from typing import Any

import apsw

from gridfs.meta.inodes import Inodes
from gridfs.meta.names import Name, Names
from gridfs.meta.operations import NAME_BYTES_MAX
from gridfs.meta.rows import ROOT, Entry, Inode, Listed
from storage.errors import Corrupt, Missing

DEPTH_MAX = 100_000
"""Directories above each other; more means a ring in a damaged database."""
ENTRIES_SEARCHED_MAX = 100_000
"""Entries that are looked through for the name of a file: some 10 ms."""

_INODE = (
    "ino, mode, uid, gid, size, nlink, atime, mtime, ctime, rdev, coalesce(target, x''),"
    " (min(held, size) + 511) / 512, read_only"
)
"""The fields of Inode, in its order; see `Row.inode`."""


class Tree:
    """Reads the tables `inode`, `entry` and `xattr`."""

    def __init__(self, database: apsw.Connection, inodes: Inodes, names: Names) -> None:
        self._database = database
        self._inodes = inodes
        self._names = names

    def inode(self, ino: int) -> Inode | None:
        row = self._inodes.find(ino)
        return None if row is None else row.inode()

    def lookup(self, parent: int, name: bytes) -> int | None:
        found = self._names.find(parent, name)
        return None if found is None else found.ino

    def parent_of(self, ino: int) -> int:
        row = self._inodes.find(ino)
        if row is None or row.parent is None:
            raise Missing(f"inode {ino} is not a directory")
        return row.parent

    def path_of(self, ino: int) -> str:
        """Where an inode lies, for a person: "/" and one of its paths, or "inode N" where none is known.

        Names are found by looking through entries, up to ENTRIES_SEARCHED_MAX of them.
        """
        names: list[str] = []
        at = ino
        while at != ROOT and len(names) < DEPTH_MAX:
            found = self._name_of(at)
            if found is None:
                return f"inode {ino}"
            at, name = found
            names.append(name.decode(errors="backslashreplace"))
        return "/" + "/".join(reversed(names))

    def _name_of(self, ino: int) -> tuple[int, bytes] | None:
        """(directory, name) of one name of an inode."""
        row = self._inodes.find(ino)
        if row is None:
            return None
        within = "WHERE parent = ?" if stat.S_ISDIR(row.mode) else ""
        searched = f"SELECT parent, name, ino FROM entry {within} LIMIT ?"  # noqa: S608
        found: Any = self._database.execute(
            f"SELECT parent, name FROM ({searched}) WHERE ino = ?",  # noqa: S608
            (*([row.parent] if within else []), ENTRIES_SEARCHED_MAX, ino),
        ).fetchone()
        return None if found is None else (int(found[0]), bytes(found[1]))

    def entries(self, parent: int, after_cookie: int, limit: int) -> list[Entry]:
        rows = self._database.execute(
            "SELECT cookie, name, ino, type FROM entry WHERE parent = ? AND cookie > ?"
            " ORDER BY cookie LIMIT ?",
            (parent, after_cookie, limit),
        )
        return [Entry(*row) for row in rows]

    def listing(self, parent: int, after_cookie: int, limit: int) -> list[Listed]:
        """Like `entries`, with the inodes; one query, and entries come from the index alone."""
        rows = self._database.execute(
            f"SELECT cookie, name, {_INODE} FROM entry CROSS JOIN inode USING (ino)"  # noqa: S608
            " WHERE entry.parent = ? AND cookie > ? ORDER BY cookie LIMIT ?",
            (parent, after_cookie, limit),
        )
        return [Listed(row[0], row[1], Inode._make(row[2:])) for row in rows]

    def has_entries(self, parent: int) -> bool:
        self._names.flush()
        return bool(
            self._database.execute("SELECT EXISTS (SELECT 1 FROM entry WHERE parent = ?)", (parent,)).get
        )

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        if not self.has_xattrs(ino):
            return None
        row = self._database.execute(
            "SELECT value FROM xattr WHERE ino = ? AND name = ?", (ino, name)
        ).fetchone()
        return None if row is None else row[0]

    def has_xattrs(self, ino: int) -> bool:
        """Asked before nearly every write and in every directory, of inodes that seldom have any."""
        row = self._inodes.find(ino)
        if row is None or row.has_no_xattrs:
            return False
        found = self._database.execute("SELECT EXISTS (SELECT 1 FROM xattr WHERE ino = ?)", (ino,)).get
        row.has_no_xattrs = not found
        return bool(found)

    def xattrs(self, ino: int) -> list[bytes]:
        rows = self._database.execute("SELECT name FROM xattr WHERE ino = ? ORDER BY name", (ino,))
        return [name for (name,) in rows]

    def orphans(self) -> list[int]:
        rows = self._database.execute("SELECT ino FROM inode WHERE nlink = 0 ORDER BY ino")
        return [ino for (ino,) in rows]

    def detached(self) -> list[int]:
        return [ino for (ino,) in self._database.execute("SELECT ino FROM detached ORDER BY ino")]

    def is_detached(self, ino: int) -> bool:
        return bool(
            self._database.execute("SELECT EXISTS (SELECT 1 FROM detached WHERE ino = ?)", (ino,)).get
        )

    # What an operation expects; each raises Corrupt

    def required(self, what: str, ino: int) -> Inode:
        inode = self.inode(ino)
        if inode is None:
            raise Corrupt(f"{what}: there is no inode {ino}")
        return inode

    @staticmethod
    def must_be_file(what: str, inode: Inode) -> None:
        if not stat.S_ISREG(inode.mode):
            raise Corrupt(f"{what}: inode {inode.ino} is not a regular file")

    def free_name(self, what: str, parent: int, name: bytes) -> None:
        """The directory is there and linked, the name is a name, and nobody has it."""
        if not 1 <= len(name) <= NAME_BYTES_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
            raise Corrupt(f"{what}: {name!r} is not a name")
        row = self._inodes.find(parent)
        if row is None or not stat.S_ISDIR(row.mode) or not row.nlink:
            raise Corrupt(f"{what}: inode {parent} is not a directory that takes names")
        if self.lookup(parent, name) is not None:
            raise Corrupt(f"{what}: inode {parent} has the name {name!r} already")

    def entry(self, what: str, parent: int, name: bytes, ino: int) -> Name:
        found = self._names.find(parent, name)
        if found is None or found.ino != ino:
            raise Corrupt(f"{what}: {name!r} in inode {parent} is not inode {ino}")
        return found

    def no_names_in(self, what: str, entry: Name) -> None:
        if entry.is_directory and self.has_entries(entry.ino):
            raise Corrupt(f"{what}: directory {entry.ino} is not empty")

    def no_descent(self, ino: int, parent: int) -> None:
        """`parent` does not lie in or below the directory `ino`."""
        while parent != ROOT:
            if parent == ino:
                raise Corrupt(f"rename: directory {ino} would lie in itself")
            parent = self.parent_of(parent)
