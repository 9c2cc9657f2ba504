"""A disk that forgets: what was not synced may be lost, kept or torn when its machine crashes.

`Platter` is the medium and outlives crashes; `SimDisk` is one boot's view of it, `ports.Disk` to the
code. The rules, which are what POSIX promises and no more:

- A write or resize is in the file at once, and durable after `sync` of that file. At a crash each one
  that is not is dropped, kept, or torn: of a torn write each 512-byte sector is dropped or kept by
  itself. Any later one may survive an earlier one.
- A creation, rename or removal is visible at once, and durable after `sync_directory` of its parent. At
  a crash a prefix of those of each directory survives. A rename within a directory is one step; between
  two it is a creation in one and a removal in the other, and either may be lost.
- A crash freezes the view first: whatever the dead machine's clean-up still calls raises MachineDead and
  changes nothing. A dead file can be closed.

Everything is synchronous and takes no virtual time. `DiskFault`s and the capacity are data.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Sequence

from storage.ports import Buffer, Space
from tests.simulation.platter import Directory, Inode, MachineDead, PlantedError, Platter


class SimFile:
    """`ports.File`. It stays good after its name is removed or replaced."""

    def __init__(self, disk: SimDisk, path: str, inode: Inode, writable: bool) -> None:
        self._disk, self._path, self._inode, self._writable = disk, path, inode, writable
        self._is_open = True

    @property
    def descriptor(self) -> int | None:
        return None

    def read_into(self, buffer: memoryview, offset: int) -> int:
        self._begin("read")
        target = memoryview(buffer).cast("B")
        end = min(offset + len(target), len(self._inode.current))
        if offset >= end:
            return 0
        with memoryview(self._inode.current) as content:
            target[: end - offset] = content[offset:end]
        return end - offset

    def read_ready(self, buffer: memoryview, offset: int) -> int:
        return self.read_into(buffer, offset)

    def read_direct(self, buffer: memoryview, offset: int) -> int:
        return self.read_into(buffer, offset)

    def write_at(self, parts: Sequence[Buffer], offset: int) -> int:
        data = b"".join(parts)
        try:
            self._begin("write", writes=True)
        except PlantedError as error:
            if kept := int(len(data) * error.fault.kept):
                self._inode.change(offset, data[:kept])
            raise
        self._make_room(offset + len(data))
        if data:
            self._inode.change(offset, data)
        return len(data)

    def write_through(self, parts: Sequence[Buffer], offset: int) -> int:
        length = self.write_at(parts, offset)
        self.sync()
        return length

    def write_direct(self, data: Buffer, offset: int) -> int:
        return self.write_at([data], offset)

    def sync(self) -> None:
        try:
            self._begin("sync")
        except PlantedError as error:
            if error.fault.forgets:
                self._inode.forget()
            raise
        self._inode.sync()

    def resize(self, size: int) -> None:
        self._begin("resize", writes=True)
        self._make_room(size)
        self._inode.change(size, None)

    def size(self) -> int:
        self._begin("size")
        return len(self._inode.current)

    def close(self) -> None:
        self._is_open = False

    def _begin(self, operation: str, writes: bool = False) -> None:
        if not self._is_open:
            raise OSError(errno.EBADF, "the file is closed", self._path)
        if writes and not self._writable:
            raise OSError(errno.EBADF, "the file is open for reading only", self._path)
        self._disk.begin(operation, self._path)

    def _make_room(self, size: int) -> None:
        growth = size - len(self._inode.current)
        if growth > 0 and growth > self._disk.platter.free():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)


class SimDisk:
    """`ports.Disk`: one boot's view of a platter."""

    def __init__(self, platter: Platter) -> None:
        self.platter = platter
        self.vfs_name: str | None = None
        """Set by who registers a VFS on this disk, see `sqlite`."""
        self._is_alive = True
        platter.attach(self)

    @property
    def sqlite_vfs(self) -> str | None:
        return self.vfs_name

    @property
    def is_alive(self) -> bool:
        return self._is_alive

    def freeze(self) -> None:
        """From now on everything raises MachineDead."""
        self._is_alive = False

    def begin(self, operation: str, path: str) -> None:
        """What every operation does first: count, perhaps crash, perhaps fail."""
        if not self._is_alive:
            raise MachineDead
        self.platter.operations += 1
        self.platter.before_operation(operation, path)
        if not self._is_alive:
            raise MachineDead
        self.platter.fail(operation, path)

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True
    ) -> SimFile:
        self.begin("open", path)
        parent, name = self._parent(path)
        entry = parent.current.get(name)
        if entry is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            entry = Inode()
            parent.change({name: entry})
        elif isinstance(entry, Directory):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        elif create and exclusive:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        return SimFile(self, path, entry, writable)

    def open_nameless(self) -> SimFile:
        """A file that nothing names and no crash keeps: SQLite's temporary ones."""
        self.begin("open", "")
        return SimFile(self, "", Inode(), writable=True)

    def replace(self, source: str, target: str) -> None:
        self.begin("replace", source)
        source_parent, source_name = self._parent(source)
        target_parent, target_name = self._parent(target)
        entry = self._entry(source)
        there = target_parent.current.get(target_name)
        if isinstance(there, Directory) and not isinstance(entry, Directory):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
        if isinstance(entry, Directory) and there is not None:
            self._refuse_unless_empty_directory(there, target)
        if entry is there:
            return
        if source_parent is target_parent:
            source_parent.change({target_name: entry, source_name: None})
        else:
            target_parent.change({target_name: entry})
            source_parent.change({source_name: None})

    def remove(self, path: str) -> None:
        self.begin("remove", path)
        if isinstance(self._entry(path), Directory):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        parent, name = self._parent(path)
        parent.change({name: None})

    def make_directory(self, path: str) -> None:
        self.begin("make_directory", path)
        directory = self.platter.root
        for name in _names(path):
            entry = directory.current.get(name)
            if entry is None:
                entry = Directory()
                directory.change({name: entry})
            if not isinstance(entry, Directory):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            directory = entry

    def names(self, path: str) -> list[str]:
        self.begin("names", path)
        return sorted(self._directory(path).current)

    def sync_directory(self, path: str) -> None:
        self.begin("sync_directory", path)
        self._directory(path).sync()

    def space(self, path: str) -> Space:
        self.begin("space", path)
        return Space(self.platter.capacity, self.platter.free())

    def exists(self, path: str) -> bool:
        """Not of the port: for SQLite, and for tests to look."""
        try:
            self._entry(path)
        except OSError:
            return False
        return True

    def _parent(self, path: str) -> tuple[Directory, str]:
        names = _names(path)
        if not names:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return self._directory(posixpath.dirname(path)), names[-1]

    def _directory(self, path: str) -> Directory:
        directory = self.platter.root
        for name in _names(path):
            entry = directory.current.get(name)
            if entry is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if not isinstance(entry, Directory):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            directory = entry
        return directory

    def _entry(self, path: str) -> Inode | Directory:
        parent, name = self._parent(path)
        entry = parent.current.get(name)
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return entry

    def _refuse_unless_empty_directory(self, there: Inode | Directory, path: str) -> None:
        if not isinstance(there, Directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if there.current:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)


def _names(path: str) -> list[str]:
    """The parts of an absolute path, normalised as the kernel would."""
    if not path.startswith("/"):
        raise ValueError(f"the port takes absolute paths, not {path!r}")
    return [name for name in posixpath.normpath(path).split("/") if name]
