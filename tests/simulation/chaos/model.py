"""A file system as a value: what it shows between two operations. Pure.

`State` is one such moment, and every change of it gives another one, so that a `History` keeps them all.
Inodes have the numbers that the real file system gave them; attributes that it decides by itself (times)
are those that it showed right after the operation.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from gridfs.meta.rows import ROOT, Inode

Key = tuple[int, bytes]
"""Directory and name."""
Described = dict[bytes, tuple[object, ...]]
"""Path -> everything about what lies there but a file's bytes."""


@dataclass(frozen=True, slots=True)
class Node:
    """An inode."""

    mode: int
    uid: int = 0
    gid: int = 0
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    rdev: int = 0
    data: bytes = b""
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """Sorted."""
    read_only: bool = False

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def seen(self, inode: Inode) -> Node:
        """With the attributes that the file system shows."""
        return replace(
            self, mode=inode.mode, uid=inode.uid, gid=inode.gid, atime=inode.atime, mtime=inode.mtime,
            ctime=inode.ctime, rdev=inode.rdev, read_only=inode.read_only,
        )  # fmt: skip


@dataclass(frozen=True)
class State:
    """Inodes by number, and names. Inodes without a name may be among them: they count for nothing."""

    nodes: dict[int, Node]
    names: dict[Key, int]

    # ---- looking

    def find(self, directory: int, name: bytes) -> int | None:
        return self.names.get((directory, name))

    @cached_property
    def paths(self) -> dict[bytes, int]:
        """All paths below the root, in the order of their bytes."""
        children: dict[int, list[tuple[bytes, int]]] = {}
        for (directory, name), ino in self.names.items():
            children.setdefault(directory, []).append((name, ino))
        found: dict[bytes, int] = {}
        waiting = [(b"", ROOT)]
        while waiting:
            prefix, directory = waiting.pop()
            for name, ino in children.get(directory, ()):
                found[prefix + name] = ino
                if self.nodes[ino].is_directory:
                    waiting.append((prefix + name + b"/", ino))
        return dict(sorted(found.items()))

    def key(self, path: bytes) -> Key:
        """The directory in which a path's last name lies, and that name."""
        folder, _, name = path.rpartition(b"/")
        return (self.paths[folder] if folder else ROOT), name

    def links(self, ino: int) -> int:
        """What st_nlink must be."""
        if not self.nodes[ino].is_directory:
            return sum(other == ino for other in self.names.values())
        below = sum(key[0] == ino and self.nodes[other].is_directory for key, other in self.names.items())
        return 2 + below

    def below(self, directory: int) -> Iterator[int]:
        """The inodes of everything in a directory and in those in it."""
        for key, ino in list(self.names.items()):
            if key[0] == directory:
                yield ino
                if self.nodes[ino].is_directory:
                    yield from self.below(ino)

    @cached_property
    def described(self) -> Described:
        """The root's times count for nothing: no operation has made it, each machine has its own."""
        root = (ROOT, *self._describe_loosely(ROOT))
        return {b"": root, **{path: self._describe(ino) for path, ino in self.paths.items()}}

    @cached_property
    def described_loosely(self) -> Described:
        """Without times and inode numbers, which an operation under way was yet to be given."""
        return {path: self._describe_loosely(ino) for path, ino in self.paths.items()}

    def _describe(self, ino: int) -> tuple[object, ...]:
        node = self.nodes[ino]
        return (ino, node.atime, node.mtime, node.ctime, *self._describe_loosely(ino))

    def _describe_loosely(self, ino: int) -> tuple[object, ...]:
        node = self.nodes[ino]
        return (
            oct(node.mode), node.uid, node.gid, node.rdev, len(node.data), node.target, node.xattrs,
            node.read_only,
        )  # fmt: skip

    # ---- changing

    def put(self, ino: int, node: Node) -> State:
        return State({**self.nodes, ino: node}, self.names)

    def edit(self, ino: int, **changes: object) -> State:
        """An inode with other attributes or bytes."""
        return self.put(ino, replace(self.nodes[ino], **changes))  # type: ignore[arg-type]

    def bind(self, directory: int, name: bytes, ino: int) -> State:
        return State(self.nodes, {**self.names, (directory, name): ino})

    def unbind(self, directory: int, name: bytes) -> State:
        names = dict(self.names)
        del names[directory, name]
        return State(self.nodes, names)

    def write(self, ino: int, offset: int, data: bytes) -> State:
        old = self.nodes[ino].data.ljust(offset, b"\0")
        return self.edit(ino, data=old[:offset] + data + old[offset + len(data) :])

    def truncate(self, ino: int, size: int) -> State:
        return self.edit(ino, data=self.nodes[ino].data[:size].ljust(size, b"\0"))

    def rename(self, source: Key, target: Key, *, exchange: bool = False) -> State:
        names = dict(self.names)
        moved = names.pop(source)
        replaced = names.get(target)
        names[target] = moved
        if exchange:
            assert replaced is not None
            names[source] = replaced
        return State(self.nodes, names)

    def clone(self, source: int, number: Callable[[int], int], *, read_only: bool) -> State:
        """With copies of an inode and of all below it, which have no name yet; `number`: ino -> its copy."""
        nodes, names = dict(self.nodes), dict(self.names)
        for ino in {source: None, **dict.fromkeys(self.below(source))}:
            nodes[number(ino)] = replace(self.nodes[ino], read_only=read_only)
            for (directory, name), child in self.names.items():
                if directory == ino:
                    names[number(directory), name] = number(child)
        return State(nodes, names)


EMPTY = State({ROOT: Node(stat.S_IFDIR | 0o755)}, {})
