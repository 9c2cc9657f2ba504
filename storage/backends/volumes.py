"""Volumes: the append-only files that hold small shares and log every change of leases and shares.

Only the newest one is appended to. Numbers rise and are never used twice while the index knows them.
Synchronous; what writes or scans belongs in a worker thread.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

from storage.appendfile import AppendBatch, AppendFile
from storage.backends.changes import Change
from storage.backends.index import Logged, Position
from storage.errors import Corrupt
from storage.format.entry import FILE_HEADER_SIZE, Entry
from storage.ports import Disk

MAGIC = b"gridfsVL"
_LOGGER = logging.getLogger(__name__)


class Volumes:
    """The volumes of one backend directory."""

    def __init__(self, disk: Disk, directory: str, size_max: int) -> None:
        self._disk = disk
        self._directory = f"{directory}/volumes"
        self._size_max = size_max
        self._active: AppendFile | None = None
        self.sizes: dict[int, int] = {}
        """Bytes of every volume, by rising number."""

    def path(self, number: int) -> str:
        return f"{self._directory}/{number:08d}"

    @property
    def active(self) -> AppendFile:
        assert self._active is not None, "opened before use"
        return self._active

    @property
    def position(self) -> Position:
        """Where the next entry goes."""
        return Position(self.active.number, self.active.end)

    def open(self) -> None:
        """Find the volumes. A newest one no longer than its header may be torn: it never held anything.

        Raises Refused for an unknown version, Corrupt for a strange file in an older one's place, OSError.
        """
        self._disk.make_directory(self._directory)
        numbers = [int(name) for name in self._disk.names(self._directory) if name.isdecimal()]
        for number in numbers:
            try:
                volume = AppendFile.open(self._disk, self.path(number), MAGIC)
            except Corrupt:
                if number != numbers[-1] or self._size(number) > FILE_HEADER_SIZE:
                    raise
                _LOGGER.warning("volume %d was never begun: removed", number)
                self._disk.remove(self.path(number))
                continue
            self.sizes[number] = volume.end
            volume.close()

    def _size(self, number: int) -> int:
        file = self._disk.open(self.path(number), writable=False)
        try:
            return file.size()
        finally:
            file.close()

    def settle(self, followed: Position) -> None:
        """Make durable what lies behind `followed`, up to where it is known to be: only the newest volume can
        have such entries, and a header of that kind. Before anybody counts on them. Raises OSError."""
        if self.sizes:
            newest = max(self.sizes)
            volume = AppendFile.open(self._disk, self.path(newest), MAGIC)
            try:
                volume.settle(followed.offset if followed.volume == newest else 0)
            finally:
                volume.close()

    def begin(self) -> None:
        """Append to the newest volume from now on; the first is made where there is none. Raises OSError."""
        if self.sizes:
            # Who made it may have ended, or met a failing disk, before its name was durable.
            self._disk.sync_directory(self._directory)
            path = self.path(max(self.sizes))
            self._active = AppendFile.open(self._disk, path, MAGIC, self._size_max)
        else:
            self._rotate(1)

    def make_room(self) -> None:
        """Begin a new volume where the newest has its size. Raises OSError."""
        if self.active.end >= self._size_max:
            self._rotate(self.active.number + 1)

    def _rotate(self, number: int) -> None:
        fresh = AppendFile.create(self._disk, self.path(number), MAGIC, number, self._size_max)
        try:
            self._disk.sync_directory(self._directory)
        except BaseException:
            fresh.close()
            raise
        if self._active is not None:
            self._active.close()
        self._active = fresh
        self.sizes[number] = fresh.end

    @property
    def broken(self) -> str | None:
        """Why nothing can be written any more; then entries that were not acknowledged may be there."""
        return self.active.broken

    def write(self, batch: AppendBatch, *, sync: bool) -> None:
        """Append a batch to the newest volume. Raises Exhausted or Unavailable; then nothing of it stays."""
        self.active.write(batch, sync=sync)
        self.sizes[self.active.number] = self.active.end

    def replay(self, start: Position) -> Iterator[tuple[Logged, Position]]:
        """Changes logged from `start` on, each with the position behind it; cuts torn tails as it goes.

        What has rotted is logged as an error and left out. Raises Refused, Corrupt, OSError.
        """
        for number in sorted(self.sizes):
            if number >= start.volume:
                offset = start.offset if number == start.volume else FILE_HEADER_SIZE
                yield from self._replay_volume(number, max(offset, FILE_HEADER_SIZE))

    def _replay_volume(self, number: int, offset: int) -> Iterator[tuple[Logged, Position]]:
        volume = AppendFile.open(self._disk, self.path(number), MAGIC)
        try:
            end = offset
            for entry, payload in volume.scan(offset):
                if payload is None:
                    _LOGGER.error("volume %d: entry at %d is torn or rotten", number, entry.offset)
                    continue
                end = entry.end
                change = Change.decode(entry.kind, entry.fields)
                yield Logged(change, number, entry.payload_offset), Position(number, end)
            if end < volume.end:
                if not volume.is_room(end):
                    _LOGGER.warning("volume %d: %d torn bytes cut off", number, volume.end - end)
                volume.cut(end)
                self.sizes[number] = end
        finally:
            volume.close()

    def read_slice(self, number: int, offset: int, limit: int) -> list[tuple[Entry, bytearray | None]]:
        """Entries of a volume from `offset` on, until they take `limit` bytes; empty at its end."""
        volume = AppendFile.open(self._disk, self.path(number), MAGIC)
        try:
            return list(
                itertools.takewhile(lambda item: item[0].offset < offset + limit, volume.scan(offset))
            )
        finally:
            volume.close()

    def remove(self, number: int) -> None:
        """Remove a volume of which nothing is needed. Raises OSError."""
        self._disk.remove(self.path(number))
        self._disk.sync_directory(self._directory)
        del self.sizes[number]

    def close(self) -> None:
        if self._active is not None:
            self._active.close()
            self._active = None
