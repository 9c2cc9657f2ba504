"""Applying Clone, Attach and Detach: copies of inodes, and trees that come and go as a whole.

A detached directory counts its links as if it had a name, so that what lies in it is counted as
anywhere; its parent is the root. Only `Attach` shows it to anybody.
"""

from __future__ import annotations

import stat

import apsw

from gridfs.meta.bodies import Bodies
from gridfs.meta.inodes import Inodes, Row
from gridfs.meta.names import Names
from gridfs.meta.namespace import Namespace
from gridfs.meta.operations import MAX_INTEGER, Attach, Clone, Detach
from gridfs.meta.rows import ROOT, Inode
from gridfs.meta.schema import State
from gridfs.meta.tree import Tree
from storage.errors import Corrupt


class Clones:
    """Checks an operation whole before the first row changes. Writes the table `detached`."""

    def __init__(
        self,
        database: apsw.Connection,
        state: State,
        inodes: Inodes,
        names: Names,
        tree: Tree,
        bodies: Bodies,
        namespace: Namespace,
    ) -> None:
        self._database = database
        self._inodes = inodes
        self._names = names
        self._state = state
        self._tree = tree
        self._bodies = bodies
        self._namespace = namespace

    def apply(self, operation: Clone | Attach | Detach, number: int) -> None:
        """Raises Corrupt."""
        match operation:
            case Clone():
                self._clone(operation, number)
            case Attach():
                self._attach(operation)
            case Detach():
                self._detach(operation)

    def _clone(self, operation: Clone, number: int) -> None:
        ino, parent = operation.ino, operation.parent
        source = self._tree.required("clone", operation.source)
        is_directory = stat.S_ISDIR(source.mode)
        if ino <= ROOT or self._tree.inode(ino) is not None:
            raise Corrupt(f"clone: inode {ino} is there already")
        if parent:
            self._tree.free_name("clone", parent, operation.name)
        elif operation.name or not is_directory:
            raise Corrupt(f"clone: inode {ino} needs a directory to lie in")
        self._insert(source, operation, is_directory)
        self._database.execute(
            "INSERT INTO xattr SELECT ?, name, value FROM xattr WHERE ino = ?", (ino, source.ino)
        )
        self._bodies.clone(source.ino, ino, number)
        if parent:
            self._names.add(parent, operation.name, ino, stat.S_IFMT(source.mode))
            self._namespace.touch_directory(parent, int(is_directory), operation.time)
        else:
            self._database.execute("INSERT INTO detached VALUES (?)", (ino,))
        if is_directory:
            self._state.directories += 1
        else:
            self._state.files += 1
            size = source.size if stat.S_ISREG(source.mode) else 0
            self._state.bytes = (self._state.bytes + size) & MAX_INTEGER
        self._state.next_inode = max(self._state.next_inode, ino + 1)

    def _insert(self, source: Inode, operation: Clone, is_directory: bool) -> None:
        self._inodes.add(
            Row(
                operation.ino, source.mode, source.uid, source.gid, source.size, 2 if is_directory else 1,
                source.atime, source.mtime, operation.time, source.rdev, source.target or None,
                (operation.parent or ROOT) if is_directory else None, read_only=int(operation.read_only),
            )
        )  # fmt: skip

    def _attach(self, operation: Attach) -> None:
        ino, parent = operation.ino, operation.parent
        if not self._tree.is_detached(ino):
            raise Corrupt(f"attach: inode {ino} is not a detached directory")
        self._tree.free_name("attach", parent, operation.name)
        self._tree.no_descent(ino, parent)
        self._database.execute("DELETE FROM detached WHERE ino = ?", (ino,))
        self._names.add(parent, operation.name, ino, stat.S_IFDIR)
        self._set_parent(ino, parent, operation.time)
        self._namespace.touch_directory(parent, 1, operation.time)

    def _detach(self, operation: Detach) -> None:
        entry = self._tree.entry("detach", operation.parent, operation.name, operation.ino)
        if not entry.is_directory:
            raise Corrupt(f"detach: inode {entry.ino} is not a directory")
        self._names.remove(entry)
        self._database.execute("INSERT INTO detached VALUES (?)", (entry.ino,))
        self._set_parent(entry.ino, ROOT, operation.time)
        self._namespace.touch_directory(operation.parent, -1, operation.time)

    def _set_parent(self, ino: int, parent: int, time: int) -> None:
        row = self._inodes.changing(ino)
        row.parent = parent
        row.ctime = time
