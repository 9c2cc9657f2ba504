"""Whether a range of a file is in the page cache, so that sendfile does not hold up the loop for a disk.

Simulated files have no descriptor and always count as resident.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from storage.ports import File

SAMPLE_STEP = 128 * 1024
"""Distance of the pages looked at: the kernel reads ahead in pieces of this size."""
LOAD_SIZE = 256 * 1024
_CACHESTAT = 451
"""Number of cachestat(2), the same on every architecture; Linux 6.5 has it."""


class _Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class _Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently")]


_libc = ctypes.CDLL(None)


def cached_pages(descriptor: int, offset: int, length: int) -> int | None:
    """Pages of the range that are in the page cache; None where the kernel does not tell."""
    wanted, counts = _Range(offset, length), _Counts()
    if _libc.syscall(_CACHESTAT, descriptor, ctypes.byref(wanted), ctypes.byref(counts), 0):
        return None
    return int(counts.cached)


class SystemPageCache:
    """The kernel's page cache, as `storage.service.PageCache`."""

    def is_resident(self, file: File, offset: int, length: int) -> bool:
        """Ask for all pages; an older kernel for one per `SAMPLE_STEP` and the last. Never waits."""
        descriptor = file.descriptor
        if descriptor is None:
            return True
        cached = cached_pages(descriptor, offset, length)
        if cached is not None:
            return cached >= (offset + length - 1) // mmap.PAGESIZE - offset // mmap.PAGESIZE + 1
        sample = bytearray(1)
        last = offset + length - 1
        for position in (*range(offset, last, SAMPLE_STEP), last):
            try:
                os.preadv(descriptor, [sample], position, os.RWF_NOWAIT)
            except BlockingIOError:
                return False
            except OSError as error:
                # A file system without NOWAIT (tmpfs, some network ones): nothing to be learned.
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                    return True
                raise
        return True

    def load(self, file: File, offset: int, length: int) -> None:
        """Read the range through the page cache. Waits for the disk: run it away from the loop."""
        buffer = memoryview(bytearray(min(length, LOAD_SIZE)))
        end = offset + length
        if file.descriptor is not None:
            os.posix_fadvise(file.descriptor, offset, length, os.POSIX_FADV_WILLNEED)
        while offset < end:
            count = file.read_into(buffer[: min(LOAD_SIZE, end - offset)], offset)
            if not count:
                return
            offset += count
