"""Writes and truncates: pieces of the spool, what the writer hears, and what is read ahead."""

from __future__ import annotations

import pytest

from gridfs.files.namespace import Change
from tests.files.support import Laptop, on_a_laptop


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
@pytest.mark.parametrize("offset", [0, 1, 65_535, 1 << 40])
def test_a_long_write_is_several_records_and_one_content(size: int, offset: int) -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino = local.make(b"file")
        data = bytes(range(251)) * (size // 251 + 1)
        await local.write(ino, offset, data[:size])
        assert local.log.number == 1 + -(-size // (1 << 20))
        assert local.namespace.inode(ino).size == (offset + size if size else 0)
        out = bytearray(size)
        for piece in local.dirty.pieces(ino, offset, offset + size):
            view = memoryview(out)[piece.start - offset : piece.end - offset]
            local.spool.read_into(piece.source, piece.skip, view)
        assert out == data[:size]
        assert len(local.writer.told) == -(-size // (1 << 20))

    on_a_laptop(work)


def test_a_truncate_reaches_the_writer_and_the_overlay() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino = local.make(b"file")
        await local.write(ino, 0, b"x" * 100)
        local.namespace.change(ino, Change(size=40))
        local.namespace.change(ino, Change(size=80))
        assert local.dirty_content(ino, 80) == b"x" * 40 + bytes(40)
        assert local.writer.told == [("written", ino), ("truncated", ino, 40), ("truncated", ino, 80)]

    on_a_laptop(work)


def test_handles_of_a_file_come_and_go() -> None:
    async def work(laptop: Laptop) -> None:
        local = laptop.open()
        ino = local.make(b"file")
        first, second = local.contents.open(ino), local.contents.open(ino)
        local.contents.close(ino, first)
        await local.write(ino, 0, b"still one open")
        local.contents.close(ino, second)
        with pytest.raises(KeyError):
            local.contents.close(ino, second)

    on_a_laptop(work)
