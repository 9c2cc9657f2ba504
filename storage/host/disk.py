"""The machine's disk."""

from __future__ import annotations

import os
from collections.abc import Sequence

from storage.ports import Buffer, Space

_VECTORS_MAX = 1024
"""Buffers that Linux takes in one pwritev (IOV_MAX)."""


class OsFile:
    """`File` over a descriptor. Calls of different threads may overlap; `close` must be the last."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @property
    def descriptor(self) -> int | None:
        return self._descriptor

    @property
    def _open(self) -> int:
        if self._descriptor is None:
            raise OSError(9, "the file is closed")
        return self._descriptor

    def read_into(self, buffer: memoryview, offset: int) -> int:
        done = 0
        while done < len(buffer):
            got = os.preadv(self._open, [buffer[done:]], offset + done)
            if got == 0:
                break
            done += got
        return done

    def write_at(self, parts: Sequence[Buffer], offset: int) -> int:
        total = 0
        for start in range(0, len(parts), _VECTORS_MAX):
            total += self._write_vector(parts[start : start + _VECTORS_MAX], offset + total)
        return total

    def _write_vector(self, parts: Sequence[Buffer], offset: int) -> int:
        length = sum(len(part) for part in parts)
        done = os.pwritev(self._open, parts, offset) if length else 0
        if done < length:
            # The kernel stopped inside a part (two gigabytes, a nearly full disk): go on from there.
            skip = done
            for part in parts:
                view = memoryview(part).cast("B")[skip:]
                skip = max(0, skip - len(part))
                while len(view):
                    written = os.pwrite(self._open, view, offset + done)
                    done += written
                    view = view[written:]
        return done

    def sync(self) -> None:
        os.fdatasync(self._open)

    def resize(self, size: int) -> None:
        os.ftruncate(self._open, size)

    def size(self) -> int:
        return os.fstat(self._open).st_size

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class OsDisk:
    """`Disk` of the operating system."""

    @property
    def sqlite_vfs(self) -> str | None:
        return None

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True
    ) -> OsFile:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT
        if exclusive:
            flags |= os.O_EXCL
        return OsFile(os.open(path, flags, 0o600))

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def make_directory(self, path: str) -> None:
        # makedirs gives `mode` to the last one only.
        parent = os.path.dirname(path)
        if parent and not os.path.isdir(parent):
            self.make_directory(parent)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def space(self, path: str) -> Space:
        found = os.statvfs(path)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
