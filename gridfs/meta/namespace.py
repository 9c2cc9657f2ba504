"""What each operation but Commit does to inodes, names and extended attributes.

Every operation is checked against the state before the first row changes, and raises Corrupt where it
does not fit: the caller has validated it, so a misfit means that log and state do not belong together.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Any

import apsw

from gridfs.meta.bodies import Bodies
from gridfs.meta.inodes import Inodes, Row
from gridfs.meta.names import Name, Names
from gridfs.meta.operations import (
    Drop,
    Link,
    Make,
    Operation,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Together,
    Unlink,
    Write,
)
from gridfs.meta.rows import ROOT
from gridfs.meta.schema import State
from gridfs.meta.tree import Tree
from storage.errors import Corrupt

PERMISSIONS = 0o7777


def make_root(database: apsw.Connection, mode: int, uid: int, gid: int, time: int) -> None:
    """The inode of the root directory, in an empty database."""
    database.execute(
        "INSERT INTO inode (ino, mode, uid, gid, size, nlink, atime, mtime, ctime, rdev, parent)"
        " VALUES (?, ?, ?, ?, 0, 2, ?, ?, ?, 0, ?)",
        (ROOT, stat.S_IFDIR | mode & PERMISSIONS, uid, gid, time, time, time, ROOT),
    )


class Namespace:
    """Tables `inode`, `entry` and `xattr`."""

    def __init__(
        self,
        database: apsw.Connection,
        state: State,
        inodes: Inodes,
        names: Names,
        tree: Tree,
        bodies: Bodies,
    ) -> None:
        self._database = database
        self._inodes = inodes
        self._names = names
        self._tree = tree
        self._state = state
        self._bodies = bodies
        self._appliers: dict[type, Callable[[Any, int], None]] = {
            Make: self._make,
            Link: self._link,
            Unlink: self._unlink,
            Drop: self._drop,
            Rename: self._rename,
            SetAttributes: self._set_attributes,
            Write: self._write,
            SetXattr: self._set_xattr,
            RemoveXattr: self._remove_xattr,
            Together: self._together,
        }

    # Applying

    def apply(self, operation: Operation, number: int) -> None:
        """Raises Corrupt."""
        self._appliers[type(operation)](operation, number)

    def _make(self, operation: Make, number: int) -> None:
        ino, parent, mode, time = operation.ino, operation.parent, operation.mode, operation.time
        if ino <= ROOT or self._inodes.find(ino) is not None:
            raise Corrupt(f"make: inode {ino} is there already")
        self._tree.free_name("make", parent, operation.name)
        is_directory = stat.S_ISDIR(mode)
        if bool(operation.target) != stat.S_ISLNK(mode) or not stat.S_IFMT(mode):
            raise Corrupt(f"make: inode {ino} has mode {mode:o} and target {operation.target!r}")
        self._inodes.add(
            Row(
                ino, mode, operation.uid, operation.gid, len(operation.target), 2 if is_directory else 1,
                time, time, time, operation.rdev, operation.target or None, parent if is_directory else None,
                has_no_xattrs=True,
            )
        )  # fmt: skip
        self._names.add(parent, operation.name, ino, stat.S_IFMT(mode))
        self.touch_directory(parent, int(is_directory), time)
        if is_directory:
            self._state.directories += 1
        else:
            self._state.files += 1
        self._state.next_inode = max(self._state.next_inode, ino + 1)

    def _link(self, operation: Link, number: int) -> None:
        inode = self._tree.required("link", operation.ino)
        if stat.S_ISDIR(inode.mode) or not inode.nlink:
            raise Corrupt(f"link: inode {operation.ino} takes no further name")
        self._tree.free_name("link", operation.parent, operation.name)
        self._names.add(operation.parent, operation.name, operation.ino, stat.S_IFMT(inode.mode))
        self._count_links(operation.ino, 1, operation.time)
        self.touch_directory(operation.parent, 0, operation.time)

    def _unlink(self, operation: Unlink, number: int) -> None:
        entry = self._tree.entry("unlink", operation.parent, operation.name, operation.ino)
        self._tree.no_names_in("unlink", entry)
        self._names.remove(entry)
        self._lose_name(entry, operation.time)
        self.touch_directory(operation.parent, -int(entry.is_directory), operation.time)

    def _drop(self, operation: Drop, number: int) -> None:
        inode = self._tree.required("drop", operation.ino)
        if inode.nlink:
            if not self._tree.is_detached(operation.ino):
                raise Corrupt(f"drop: inode {operation.ino} still has a name")
            if self._tree.has_entries(operation.ino):
                raise Corrupt(f"drop: directory {operation.ino} is not empty")
            self._database.execute("DELETE FROM detached WHERE ino = ?", (operation.ino,))
        self._bodies.detach(operation.ino, number)
        if self._tree.has_xattrs(operation.ino):
            self._database.execute("DELETE FROM xattr WHERE ino = ?", (operation.ino,))
        self._inodes.remove(operation.ino)
        if stat.S_ISDIR(inode.mode):
            self._state.directories -= 1
        else:
            self._state.files -= 1
            self._state.add_bytes(-inode.size if stat.S_ISREG(inode.mode) else 0)

    def _rename(self, operation: Rename, number: int) -> None:
        moved = self._tree.entry("rename", operation.parent, operation.name, operation.ino)
        new_parent, new_name, time = operation.new_parent, operation.new_name, operation.time
        if not operation.replaced:
            if operation.exchange:
                raise Corrupt("rename: nothing to exchange with")
            self._tree.free_name("rename", new_parent, new_name)
            other = None
        else:
            other = self._tree.entry("rename", new_parent, new_name, operation.replaced)
            if other.ino == moved.ino:
                raise Corrupt(f"rename: both names are inode {moved.ino}")
            if not operation.exchange:
                if other.is_directory != moved.is_directory:
                    raise Corrupt("rename: a directory and something else cannot replace each other")
                self._tree.no_names_in("rename", other)
        if moved.is_directory:
            self._tree.no_descent(moved.ino, new_parent)
        if other is not None and operation.exchange:
            if other.is_directory:
                self._tree.no_descent(other.ino, operation.parent)
            self._exchange_names(moved, other, time)
        else:
            self._move_name(moved, other, new_parent, new_name, time)

    def _move_name(
        self, moved: Name, other: Name | None, new_parent: int, new_name: bytes, time: int
    ) -> None:
        if other is not None:
            # The name stays where a listing knows it; only what it names changes.
            self._names.remove(moved)
            self._names.point(other, moved)
            self._lose_name(other, time)
        elif new_parent == moved.parent:
            self._names.change(moved, new_name)
        else:
            self._names.remove(moved)
            self._names.add(new_parent, new_name, moved.ino, moved.type)
        self._count_links(moved.ino, 0, time)
        gained = int(moved.is_directory)
        lost = int(other is not None and other.is_directory)
        if new_parent == moved.parent:
            self.touch_directory(new_parent, -lost, time)
        else:
            self.touch_directory(moved.parent, -gained, time)
            self.touch_directory(new_parent, gained - lost, time)
            self._set_parent(moved, new_parent)

    def _exchange_names(self, moved: Name, other: Name, time: int) -> None:
        self._names.point(moved, other)
        self._names.point(other, moved)
        self._count_links(moved.ino, 0, time)
        self._count_links(other.ino, 0, time)
        if moved.parent == other.parent:
            self.touch_directory(moved.parent, 0, time)
            return
        balance = int(other.is_directory) - int(moved.is_directory)
        self.touch_directory(moved.parent, balance, time)
        self.touch_directory(other.parent, -balance, time)
        self._set_parent(moved, other.parent)
        self._set_parent(other, moved.parent)

    def _set_attributes(self, operation: SetAttributes, number: int) -> None:
        inode = self._tree.required("set attributes", operation.ino)
        size = inode.size
        if operation.size is not None:
            self._tree.must_be_file("set attributes", inode)
            size = operation.size
            if size < inode.size:
                self._bodies.truncate(operation.ino, size, number)
            self._state.add_bytes(size - inode.size)
        row = self._inodes.changing(operation.ino)
        if operation.mode is not None:
            row.mode = stat.S_IFMT(row.mode) | operation.mode & PERMISSIONS
        if operation.uid is not None:
            row.uid = operation.uid
        if operation.gid is not None:
            row.gid = operation.gid
        if operation.atime is not None:
            row.atime = operation.atime
        if operation.mtime is not None:
            row.mtime = operation.mtime
        row.size = size
        row.ctime = operation.ctime

    def _write(self, operation: Write, number: int) -> None:
        inode = self._tree.required("write", operation.ino)
        self._tree.must_be_file("write", inode)
        end = operation.offset + operation.length
        size = max(inode.size, end) if operation.length else inode.size
        if size != inode.size or operation.time is not None:
            row = self._inodes.changing(operation.ino)
            row.size = size
            if operation.time is not None:
                row.mtime = row.ctime = operation.time
        self._state.add_bytes(size - inode.size)

    def _set_xattr(self, operation: SetXattr, number: int) -> None:
        self._tree.required("set xattr", operation.ino)
        self._database.execute(
            "INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (operation.ino, operation.name, operation.value)
        )
        self._count_links(operation.ino, 0, operation.time)
        self._inodes.changing(operation.ino).has_no_xattrs = False

    def _remove_xattr(self, operation: RemoveXattr, number: int) -> None:
        self._tree.required("remove xattr", operation.ino)
        if self._tree.xattr(operation.ino, operation.name) is None:
            raise Corrupt(f"remove xattr: inode {operation.ino} has no {operation.name!r}")
        self._database.execute(
            "DELETE FROM xattr WHERE ino = ? AND name = ?", (operation.ino, operation.name)
        )
        self._count_links(operation.ino, 0, operation.time)

    def _together(self, operation: Together, number: int) -> None:
        for part in operation.parts:
            self.apply(part, number)

    # Changes of one row

    def _lose_name(self, entry: Name, time: int) -> None:
        """One link less; a directory loses its own `.` with its name."""
        self._count_links(entry.ino, -2 if entry.is_directory else -1, time)

    def _count_links(self, ino: int, change: int, time: int) -> None:
        row = self._inodes.changing(ino)
        row.nlink += change
        row.ctime = time

    def touch_directory(self, ino: int, links: int, time: int) -> None:
        """Names in a directory changed, and `links` more subdirectories lie in it."""
        row = self._inodes.changing(ino)
        row.nlink += links
        row.mtime = row.ctime = time

    def _set_parent(self, entry: Name, parent: int) -> None:
        if entry.is_directory:
            self._inodes.changing(entry.ino).parent = parent
