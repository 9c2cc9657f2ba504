"""The machine's disk."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Sequence

from storage.ports import Buffer, Space

_VECTORS_MAX = 1024
"""Buffers that Linux takes in one pwritev (IOV_MAX)."""
_PAGE_SIZE = 4096
"""What O_DIRECT wants offsets, lengths and addresses to be multiples of."""
_DIRECT_SIZE_MIN = 256 * 1024
"""Below this, waiting for the disk costs more than the page cache does."""


class OsFile:
    """`File` over a descriptor. Calls of different threads may overlap; `close` must be the last."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._direct: int | None = None
        self._has_direct = True
        """Whether there is, or may be, a descriptor with O_DIRECT."""
        self._direct_lock = threading.Lock()

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

    def read_ready(self, buffer: memoryview, offset: int) -> int:
        try:
            return os.preadv(self._open, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            # A file system without NOWAIT (tmpfs, some network ones): nothing to be learned.
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return self.read_into(buffer, offset)
            raise

    def read_direct(self, buffer: memoryview, offset: int) -> int:
        direct = self._direct_descriptor()
        done = 0
        try:
            while direct is not None and done < len(buffer) and done % _PAGE_SIZE == 0:
                got = os.preadv(direct, [buffer[done:]], offset + done)
                if got == 0:
                    return done
                done += got
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that wants more than pages
                raise
        return done + self.read_into(buffer[done:], offset + done)

    def _direct_descriptor(self) -> int | None:
        """A second descriptor with O_DIRECT; None where there is no such thing."""
        with self._direct_lock:
            if self._direct is None and self._has_direct:
                access = fcntl.fcntl(self._open, fcntl.F_GETFL) & os.O_ACCMODE
                flags = access | os.O_DIRECT | os.O_CLOEXEC
                try:
                    self._direct = os.open(f"/proc/self/fd/{self._open}", flags)
                except OSError as error:
                    # A file system that has none, or no /proc to open the file by; else there may be a
                    # descriptor to spare the next time.
                    self._has_direct = error.errno in (errno.EMFILE, errno.ENFILE)
            return self._direct

    def write_at(self, parts: Sequence[Buffer], offset: int) -> int:
        if len(parts) <= _VECTORS_MAX:
            return self._write_vector(parts, offset)
        total = 0
        for start in range(0, len(parts), _VECTORS_MAX):
            total += self._write_vector(parts[start : start + _VECTORS_MAX], offset + total)
        return total

    def write_through(self, parts: Sequence[Buffer], offset: int) -> int:
        length = sum(map(len, parts))
        if len(parts) == 1 and not (offset % _PAGE_SIZE or length % _PAGE_SIZE):
            direct = self._direct or self._direct_descriptor()
            try:
                if direct is not None and os.pwritev(direct, parts, offset, os.RWF_DSYNC) == length:
                    return length
            except OSError as error:
                # Memory that is not aligned, or a file system that wants more than pages.
                if error.errno != errno.EINVAL:
                    raise
        if len(parts) > _VECTORS_MAX or os.pwritev(self._open, parts, offset, os.RWF_DSYNC) < length:
            self.write_at(parts, offset)
            self.sync()
        return length

    def _write_vector(self, parts: Sequence[Buffer], offset: int) -> int:
        length = sum(map(len, parts))
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

    def write_direct(self, data: Buffer, offset: int) -> int:
        view = memoryview(data).cast("B")
        whole = len(view) // _PAGE_SIZE * _PAGE_SIZE
        if whole < _DIRECT_SIZE_MIN or offset % _PAGE_SIZE or _address(view) % _PAGE_SIZE:
            return self.write_at([view], offset)
        done = self._write_pages(view[:whole], offset)
        return done + self.write_at([view[done:]], offset + done)

    def _write_pages(self, view: memoryview, offset: int) -> int:
        """Write with O_DIRECT as far as the file system takes it; returns the bytes written."""
        flags = fcntl.fcntl(self._open, fcntl.F_GETFL)
        done = 0
        try:
            fcntl.fcntl(self._open, fcntl.F_SETFL, flags | os.O_DIRECT)
            while done < len(view):
                written = os.pwrite(self._open, view[done:], offset + done)
                done += written
                if written % _PAGE_SIZE:
                    break
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that has no O_DIRECT
                raise
        finally:
            fcntl.fcntl(self._open, fcntl.F_SETFL, flags)
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
        direct, self._direct = self._direct, None
        if direct is not None:
            os.close(direct)


def _address(view: memoryview) -> int:
    """Where a buffer lies in memory; 1 where that cannot be told (read-only ones)."""
    return 1 if view.readonly else ctypes.addressof(ctypes.c_char.from_buffer(view))


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
