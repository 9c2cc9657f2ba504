"""Open files for readers: a bounded cache with use counts.

A pinned file stays open, and so readable, even when its name is removed meanwhile; it is closed with its last
pin. Unpinned files are closed least recently used first. Used from the loop's thread only.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from storage.ports import Disk, File


@dataclass(slots=True, eq=False)
class Descriptor:
    """An open file with its pins."""

    path: str
    file: File
    pins: int = 0
    cached: bool = True
    """False once its name was forgotten: it closes with its last pin."""


class Descriptors:
    """The cache."""

    def __init__(self, disk: Disk, count_max: int) -> None:
        self._disk = disk
        self._count_max = count_max
        self._open: OrderedDict[str, Descriptor] = OrderedDict()
        self._pinned = 0

    def pin(self, path: str) -> Descriptor:
        """The file open for reading. Raises OSError."""
        descriptor = self._open.get(path)
        if descriptor is None:
            descriptor = Descriptor(path, self._disk.open(path, writable=False))
            self._open[path] = descriptor
        self._open.move_to_end(path)
        descriptor.pins += 1
        self._pinned += 1
        self._shrink()
        return descriptor

    def unpin(self, descriptor: Descriptor) -> None:
        """Exactly once for each pin."""
        if descriptor.pins < 1:
            raise ValueError(f"{descriptor.path} is not pinned")
        descriptor.pins -= 1
        self._pinned -= 1
        if not descriptor.cached and not descriptor.pins:
            descriptor.file.close()
        self._shrink()

    def forget(self, path: str) -> None:
        """The name no longer means this file."""
        descriptor = self._open.pop(path, None)
        if descriptor is not None:
            descriptor.cached = False
            if not descriptor.pins:
                descriptor.file.close()

    def _shrink(self) -> None:
        excess = len(self._open) - self._count_max
        if excess <= 0:
            return
        idle = [path for path, descriptor in self._open.items() if not descriptor.pins]
        for path in idle[:excess]:
            self.forget(path)

    def statistics(self) -> tuple[int, int]:
        """(open files in the cache, pins held)."""
        return len(self._open), self._pinned

    def close(self) -> None:
        """Close all; pinned files close with their last pin."""
        for path in list(self._open):
            self.forget(path)
