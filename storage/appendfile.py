"""Append-only files of checksummed entries: written in batches, scanned after a crash, cut at a torn tail.

All calls are synchronous and belong in a worker thread where they touch the disk. One writer at a time. A
failed write is cut off again, so that no entry is ever found later that was not acknowledged; where even
that fails the file refuses every further write until the process starts anew.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator, Sequence

from storage.errors import Corrupt, Exhausted, StorageError, Unavailable
from storage.format.entry import (
    ENTRY_MAGIC,
    FILE_HEADER_SIZE,
    HEAD_MAX,
    PAYLOAD_MAX,
    Entry,
    decode_file_header,
    decode_head,
    encode_entry,
    encode_file_header,
)
from storage.ports import Buffer, Disk, File

SEARCH_WINDOW = 1024 * 1024
SETTLE_STEP = 1 << 20
ROOM_SIZE = 256 * 1024
"""Zeros written behind an entry that makes a file longer, so that the next ones do not: then a sync waits for
the disk once, not for the file system's own journal as well, and takes half as long (measured)."""
ROOM_BATCH_MAX = 16 * 1024
"""Larger batches bring no room with them: it would be written twice for little."""
PAGE_SIZE = 4096
"""What a disk is written in past the page cache."""
_ROOM = bytes(ROOM_SIZE + PAGE_SIZE)


def disk_error(error: OSError, what: str) -> StorageError:
    """The error for a caller: Exhausted where the disk is full, Unavailable where it fails."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Exhausted(f"{what}: the disk is full")
    return Unavailable(f"{what}: {error.strerror or error}")


def read_exactly(file: File, offset: int, length: int) -> bytearray:
    """`length` bytes from `offset`, fewer only at the end of the file."""
    buffer = bytearray(length)
    got = file.read_into(memoryview(buffer), offset)
    del buffer[got:]
    return buffer


def write_again(file: File, start: int, end: int) -> None:
    """Write the bytes [start, end) of a file over themselves. Raises OSError.

    Whoever wrote them may have ended before they were synced, or a sync may have failed: then the kernel
    keeps them in memory, shows them to whoever reads, and writes them no more (LWN 752063). From here on
    they are as durable as the next sync makes them.
    """
    for offset in range(start, end, SETTLE_STEP):
        data = read_exactly(file, offset, min(SETTLE_STEP, end - offset))
        file.write_at([data], offset)


class AppendBatch:
    """Entries that will follow each other at the end of a file, in one write."""

    def __init__(self, file_number: int, offset: int) -> None:
        self._file_number = file_number
        self.offset = offset
        self.end = offset
        self.parts: list[Buffer] = []

    def add(self, kind: int, fields: bytes, payload: Sequence[Buffer] = ()) -> Entry:
        """Put an entry at the end. The payload's parts are not copied and must stay as they are."""
        entry, head = encode_entry(self._file_number, self.end, kind, fields, payload)
        self.parts.append(head)
        self.parts.extend(payload)
        self.end = entry.end
        return entry


class LastPages:
    """The pages at the end of a file as they lie there, to be written whole, past the page cache.

    Dirtying a page, having it written back and waiting for both costs more than the disk does (measured:
    a third of the CPU of a small synced write). What was acknowledged before and lies in the first page is
    written again as it is, as the page cache would do, too.
    """

    def __init__(self) -> None:
        # Aligned to pages; the kernel gives it memory page by page, when they are first used.
        self._buffer = memoryview(mmap.mmap(-1, PAGE_SIZE + ROOM_BATCH_MAX + PAGE_SIZE))
        self._end: int | None = None
        """Of the file, where the buffer begins with the page of this place; None where it does not."""

    def forget(self) -> None:
        """The file is written in another way."""
        self._end = None

    def lay(self, file: File, parts: Sequence[Buffer], start: int) -> tuple[list[memoryview], int]:
        """Whole pages, in one piece, with `parts` at `start` and zeros behind; and where they begin.
        Raises OSError.

        The parts take at most ROOM_BATCH_MAX bytes. Call `written` once they are in the file.
        """
        at = start % PAGE_SIZE
        if self._end != start:
            before = read_exactly(file, start - at, at)
            if len(before) < at:
                raise OSError(errno.EIO, "the file is shorter than what was written to it")
            self._buffer[:at] = before
        self._end = None
        for part in parts:
            self._buffer[at : at + len(part)] = part
            at += len(part)
        whole = -(-at // PAGE_SIZE) * PAGE_SIZE
        self._buffer[at:whole] = bytes(whole - at)
        return [self._buffer[:whole]], start - start % PAGE_SIZE

    def written(self, start: int, end: int) -> None:
        """[start, end) is in the file as laid."""
        first = start - start % PAGE_SIZE
        last = end - end % PAGE_SIZE
        if last > first:
            self._buffer[: end - last] = self._buffer[last - first : end - first]
        self._end = end


class AppendFile:
    """One append-only file and the place where its next entry goes."""

    def __init__(
        self, file: File, number: int, end: int, size_max: int | None = None, *, is_read: bool = True
    ) -> None:
        """`size_max`: room is not made beyond this size. `is_read`: what was appended is wanted again soon,
        and stays in the page cache."""
        self.file = file
        self.number = number
        self.end = end
        self._size_max = size_max
        self._room_end = end
        """Zeros, and nothing else, lie between the end and here."""
        self._broken: str | None = None
        self._pages = None if is_read else LastPages()

    @classmethod
    def create(
        cls,
        disk: Disk,
        path: str,
        magic: bytes,
        number: int,
        size_max: int | None = None,
        *,
        is_read: bool = True,
    ) -> AppendFile:
        """Make a new file, synced; its name is durable after `sync_directory`."""
        file = disk.open(path, create=True)
        try:
            file.resize(0)
            file.write_at([encode_file_header(magic, number)], 0)
            file.sync()
        except BaseException:
            file.close()
            raise
        return cls(file, number, FILE_HEADER_SIZE, size_max, is_read=is_read)

    @classmethod
    def open(
        cls, disk: Disk, path: str, magic: bytes, size_max: int | None = None, *, is_read: bool = True
    ) -> AppendFile:
        """Open one that exists; its end is the file's, with the room in it, until it is cut.

        Raises Corrupt or Refused for a strange header.
        """
        file = disk.open(path)
        try:
            number = decode_file_header(magic, read_exactly(file, 0, FILE_HEADER_SIZE))
            return cls(file, number, file.size(), size_max, is_read=is_read)
        except BaseException:
            file.close()
            raise

    @property
    def broken(self) -> str | None:
        """Why nothing can be written any more; then entries that were not acknowledged may be in the file."""
        return self._broken

    def batch(self) -> AppendBatch:
        return AppendBatch(self.number, self.end)

    def write(self, batch: AppendBatch, *, sync: bool) -> None:
        """Append a batch made by `batch()` since the last write; durable on return with `sync`.

        Raises Exhausted or Unavailable; then nothing of it stays.
        """
        if self._broken:
            raise Unavailable(self._broken)
        if batch.offset != self.end:
            raise ValueError("batch was made for another end of the file")
        try:
            if sync:
                self._write_through(batch)
            else:
                self.file.write_at(batch.parts, batch.offset)
        except OSError as error:
            try:
                self.cut(self.end)
            except OSError as second:
                # What the disk holds behind the end is now unknown, so nothing may follow it.
                self.refuse(f"disk failed ({second.strerror})")
            raise disk_error(error, "append") from error
        self.end = batch.end

    def refuse(self, reason: str) -> None:
        """Take nothing any more, until the process starts anew."""
        self._broken = f"{reason}; the server must be started anew"

    def _write_through(self, batch: AppendBatch) -> None:
        """Write and sync; a small batch that makes the file longer brings room for others with it."""
        room = 0
        is_small = batch.end - batch.offset <= ROOM_BATCH_MAX
        if self._pages is not None:
            if is_small and -(-batch.end // PAGE_SIZE) * PAGE_SIZE <= self._room_end:
                self.file.write_through(*self._pages.lay(self.file, batch.parts, batch.offset))
                self._pages.written(batch.offset, batch.end)
                return
            self._pages.forget()
        if is_small and batch.end > self._room_end:
            room = ROOM_SIZE + -(batch.end + ROOM_SIZE) % PAGE_SIZE
            if self._size_max is not None:
                room = max(0, min(room, self._size_max - batch.end))
        if room:
            try:
                self.file.write_through([*batch.parts, memoryview(_ROOM)[:room]], batch.offset)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self.cut(self.end)
            else:
                self._room_end = batch.end + room
                return
        self.file.write_through(batch.parts, batch.offset)

    def cut(self, end: int) -> None:
        """Drop what lies from `end` on, durably."""
        if self._pages is not None:
            self._pages.forget()
        self.file.resize(end)
        self.file.sync()
        self.end = self._room_end = end

    def is_room(self, start: int) -> bool:
        """Whether nothing but zeros lies from `start` on. Raises OSError."""
        size = self.file.size()
        for offset in range(start, size, SETTLE_STEP):
            data = read_exactly(self.file, offset, min(SETTLE_STEP, size - offset))
            if data.count(0) < len(data):
                return False
        return True

    def settle(self, start: int) -> None:
        """Make durable what lies from `start` on, whatever a process before this one did. Raises OSError."""
        write_again(self.file, start, self.end)
        if start < self.end:
            self.file.sync()

    def scan(self, start: int = FILE_HEADER_SIZE) -> Iterator[tuple[Entry, bytearray | None]]:
        """Entries from `start` with their payloads; None for a payload that is rotten or torn.

        Where no head is, the scan goes on at the next one that fits its sum and place: entries behind a
        torn or rotten one are whole, and taking them in does no harm where nobody was told of them.
        """
        size = self.file.size()
        entry = self._head_from(start, size)
        while entry is not None:
            yield entry, self.payload(entry)
            entry = self._head_from(entry.end, size)

    def _head_from(self, offset: int, size: int) -> Entry | None:
        """The entry at `offset`, or else the first one behind it."""
        if offset >= size:
            return None
        try:
            return decode_head(self.number, offset, read_exactly(self.file, offset, HEAD_MAX))
        except Corrupt:
            offset += 1
        while offset < size:
            window = read_exactly(self.file, offset, SEARCH_WINDOW)
            found = window.find(ENTRY_MAGIC)
            while found >= 0:
                try:
                    head = read_exactly(self.file, offset + found, HEAD_MAX)
                    return decode_head(self.number, offset + found, head)
                except Corrupt:
                    found = window.find(ENTRY_MAGIC, found + 1)
            # Windows overlap, so that a magic on the edge is not missed.
            offset += SEARCH_WINDOW - len(ENTRY_MAGIC) + 1
        return None

    def payload(self, entry: Entry) -> bytearray | None:
        """The payload of an entry of this file; None where it is rotten or torn."""
        assert entry.payload_length <= PAYLOAD_MAX
        payload = read_exactly(self.file, entry.payload_offset, entry.payload_length)
        return payload if len(payload) == entry.payload_length and entry.payload_ok(payload) else None

    def close(self) -> None:
        self.file.close()
