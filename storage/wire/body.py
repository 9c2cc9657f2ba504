"""Parts of a body: what a message carries beside its payload, in memory or still in a file."""

from __future__ import annotations

from typing import NamedTuple

from storage.ports import Buffer, File


class FileRange(NamedTuple):
    """A range of an open file."""

    file: File
    offset: int
    length: int


Part = Buffer | FileRange


def part_size(part: Part) -> int:
    return part.length if isinstance(part, FileRange) else memoryview(part).nbytes


def split_part(part: Part, length: int) -> tuple[Part, Part]:
    """The first `length` bytes of a part, and its rest. Nothing is copied."""
    if isinstance(part, FileRange):
        file, offset, total = part
        return FileRange(file, offset, length), FileRange(file, offset + length, total - length)
    view = memoryview(part).cast("B")
    return view[:length], view[length:]
