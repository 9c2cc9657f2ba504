"""A file system in memory, for comparison: what Linux does with names, attributes and bytes, no more.

Paths are relative, without symbolic links inside them. Refusals are OSError with the errno of Linux; what
would change a snapshot is EROFS, whatever else is wrong with it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

NOREPLACE, EXCHANGE = 1, 2


def fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@dataclass(eq=False)
class Node:
    """An inode. `kind`: f, d or l."""

    kind: str
    mode: int
    data: bytearray = field(default_factory=bytearray)
    entries: dict[str, Node] = field(default_factory=dict)
    target: str = ""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    names: int = 0
    read_only: bool = False
    versions: list[bytes] = field(default_factory=list)
    """What a file held since the kernel last sent all of it; empty: it has sent all."""

    @property
    def links(self) -> int:
        if self.kind != "d":
            return self.names
        return 2 + sum(child.kind == "d" for child in self.entries.values())

    # ---- data

    def write(self, offset: int, data: bytes) -> None:
        self._remember()
        if data:
            self.data.extend(bytes(max(0, offset - len(self.data))))
            self.data[offset : offset + len(data)] = data
        self.versions.append(bytes(self.data))

    def truncate(self, size: int) -> None:
        self._remember()
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))
        self.versions.append(bytes(self.data))

    def sent(self) -> None:
        """The kernel has sent everything."""
        self.versions.clear()

    def _remember(self) -> None:
        if not self.versions:
            self.versions.append(bytes(self.data))

    def may_be(self, found: bytes) -> bool:
        """Whether a kernel that was cut off while sending can have left this: the bytes of any version, in
        any mixture, or zeros where one of the versions ended."""
        versions = self.versions or [bytes(self.data)]
        if found in versions:
            return True
        smallest, largest = min(map(len, versions)), max(map(len, versions))
        if not smallest <= len(found) <= largest:
            return False
        open_positions = [
            at for at, byte in enumerate(found) if at >= len(versions[-1]) or byte != versions[-1][at]
        ]
        return all(
            (found[at] == 0 and at >= smallest)
            or any(at < len(version) and version[at] == found[at] for version in versions)
            for at in open_positions
        )


class MemoryFileSystem:
    """The tree; the root has no name."""

    def __init__(self) -> None:
        self.root = Node("d", 0o755, names=1)

    # ---- looking

    def find(self, path: str) -> Node:
        node = self.root
        for name in path.split("/") if path else []:
            if node.kind != "d":
                raise fail(errno.ENOTDIR)
            found = node.entries.get(name)
            if found is None:
                raise fail(errno.ENOENT)
            node = found
        return node

    def walk(self) -> Iterator[tuple[str, Node]]:
        """(path, node) of everything below the root, parents first."""
        waiting = [("", self.root)]
        while waiting:
            prefix, directory = waiting.pop()
            for name, node in directory.entries.items():
                yield prefix + name, node
                if node.kind == "d":
                    waiting.append((f"{prefix}{name}/", node))

    def _place(self, path: str) -> tuple[Node, str]:
        parent, _, name = path.rpartition("/")
        directory = self.find(parent)
        if directory.kind != "d":
            raise fail(errno.ENOTDIR)
        return directory, name

    def _vacant(self, path: str) -> tuple[Node, str]:
        directory, name = self._place(path)
        if name in directory.entries:
            raise fail(errno.EEXIST)
        _require_changeable(directory)
        return directory, name

    # ---- names

    def make(self, path: str, kind: str, mode: int, target: str = "") -> Node:
        directory, name = self._vacant(path)
        node = directory.entries[name] = Node(kind, mode, target=target, names=1)
        return node

    def link(self, source: str, path: str) -> None:
        node = self.find(source)
        directory, name = self._vacant(path)
        if node.kind == "d":
            raise fail(errno.EPERM)
        _require_changeable(node)
        directory.entries[name] = node
        node.names += 1

    def unlink(self, path: str) -> None:
        node = self.find(path)
        directory, name = self._place(path)
        _require_changeable(directory)
        if node.kind == "d":
            raise fail(errno.EISDIR)
        del directory.entries[name]
        node.names -= 1

    def rmdir(self, path: str) -> None:
        node = self.find(path)
        directory, name = self._place(path)
        _require_changeable(directory)
        if node.kind != "d":
            raise fail(errno.ENOTDIR)
        if node.entries and not node.read_only:
            raise fail(errno.ENOTEMPTY)
        del directory.entries[name]
        node.names = 0

    def rename(self, source: str, target: str, flags: int) -> None:
        directory, name = self._place(source)
        new_directory, new_name = self._place(target)
        node, old = directory.entries.get(name), new_directory.entries.get(new_name)
        if node is None:
            raise fail(errno.ENOENT)
        if flags & NOREPLACE and old is not None:
            raise fail(errno.EEXIST)
        if flags & EXCHANGE and old is None:
            raise fail(errno.ENOENT)
        if f"{target}/".startswith(f"{source}/") and source != target:
            raise fail(errno.EINVAL)
        if f"{source}/".startswith(f"{target}/") and source != target:
            raise fail(errno.EINVAL if flags & EXCHANGE else errno.ENOTEMPTY)
        if old is node:
            return
        _require_changeable(directory)
        _require_changeable(new_directory)
        if old is not None and not flags & EXCHANGE:
            if node.kind == "d" and old.kind != "d":
                raise fail(errno.ENOTDIR)
            if node.kind != "d" and old.kind == "d":
                raise fail(errno.EISDIR)
            if old.entries:
                raise fail(errno.ENOTEMPTY)
            old.names -= 1
        del directory.entries[name]
        new_directory.entries[new_name] = node
        if old is not None and flags & EXCHANGE:
            directory.entries[name] = old

    def clone(self, source: str, path: str, *, read_only: bool) -> None:
        node = self.find(source)
        if read_only and node.kind != "d":
            raise fail(errno.ENOTDIR)
        directory, name = self._vacant(path)
        copy = _copy(node, {}, read_only=read_only)
        directory.entries[name] = copy

    # ---- attributes

    def chmod(self, path: str, mode: int) -> None:
        node = self.find(path)
        _require_changeable(node)
        node.mode = mode

    def truncate(self, path: str, size: int) -> None:
        node = self.find(path)
        if node.kind == "d":
            raise fail(errno.EISDIR)
        _require_changeable(node)
        node.truncate(size)

    def set_xattr(self, path: str, name: str, value: bytes) -> None:
        node = self.find(path)
        _require_changeable(node)
        node.xattrs[name] = value

    def remove_xattr(self, path: str, name: str) -> None:
        node = self.find(path)
        _require_changeable(node)
        if name not in node.xattrs:
            raise fail(errno.ENODATA)
        del node.xattrs[name]


def _require_changeable(node: Node) -> None:
    if node.read_only:
        raise fail(errno.EROFS)


def _copy(node: Node, known: dict[int, Node], *, read_only: bool) -> Node:
    copy = known.get(id(node))
    if copy is None:
        copy = known[id(node)] = Node(node.kind, node.mode, bytearray(node.data), target=node.target)
        copy.xattrs = dict(node.xattrs)
        copy.read_only = read_only
    copy.names += 1
    for name, child in node.entries.items():
        copy.entries[name] = _copy(child, known, read_only=read_only)
    return copy
