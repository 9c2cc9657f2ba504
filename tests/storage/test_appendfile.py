"""Files that are not read soon are written by whole pages: the bytes are those of any other."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from storage.appendfile import PAGE_SIZE, ROOM_BATCH_MAX, AppendFile
from storage.errors import Unavailable
from storage.host import OsDisk, OsFile
from storage.ports import Buffer

MAGIC = b"gridfsTT"
SIZES = (0, 1, 700, 1500, PAGE_SIZE - 60, PAGE_SIZE, 9000, ROOM_BATCH_MAX - 100, ROOM_BATCH_MAX, 50_000)


class Watched(OsFile):
    """Remembers what was written through, and fails when told to."""

    def __init__(self, path: Path) -> None:
        file = OsDisk().open(str(path))
        assert file.descriptor is not None
        super().__init__(file.descriptor)
        self.through: list[tuple[int, int]] = []
        self.fails = False

    def write_through(self, parts: Sequence[Buffer], offset: int) -> int:
        self.through.append((offset, sum(map(len, parts))))
        done = super().write_through(parts, offset)
        if self.fails:
            raise OSError(errno.EIO, "planted")
        return done


def made(path: Path, *, is_read: bool) -> AppendFile:
    AppendFile.create(OsDisk(), str(path), MAGIC, 7).close()
    return AppendFile(Watched(path), 7, path.stat().st_size, is_read=is_read)


def add(file: AppendFile, payload: bytes) -> None:
    batch = file.batch()
    batch.add(1, b"fields", [payload[:10], payload[10:]])
    file.write(batch, sync=True)


def test_whole_pages_hold_the_same_bytes(tmp_path: Path) -> None:
    draw = random.Random(1)
    plain, paged = made(tmp_path / "plain", is_read=True), made(tmp_path / "paged", is_read=False)
    for step in range(80):
        payload = draw.randbytes(draw.choice(SIZES))
        for file in (plain, paged):
            watched = file.file
            assert isinstance(watched, Watched)
            watched.fails = step % 17 == 3
            if watched.fails:
                with pytest.raises(Unavailable):
                    add(file, payload)
            else:
                add(file, payload)
        assert plain.end == paged.end
    assert (tmp_path / "plain").read_bytes()[: plain.end] == (tmp_path / "paged").read_bytes()[: paged.end]
    assert not any((tmp_path / "paged").read_bytes()[paged.end :])
    again = AppendFile.open(OsDisk(), str(tmp_path / "paged"), MAGIC, is_read=False)
    entries = list(again.scan())
    assert entries[-1][0].end == paged.end
    assert all(payload is not None for _, payload in entries)
    again.cut(paged.end)
    add(again, b"x" * 100)
    assert again.is_room(again.end)
    assert [payload for _, payload in again.scan()][-1] == b"x" * 100
    for file in (plain, paged, again):
        file.close()


def test_small_batches_go_in_whole_pages_into_room_that_is_there(tmp_path: Path) -> None:
    file = made(tmp_path / "f", is_read=False)
    watched = file.file
    assert isinstance(watched, Watched)
    add(file, b"a" * 1000)
    watched.through.clear()
    size = watched.size()
    for _ in range(100):
        add(file, b"b" * 1000)
    assert len(watched.through) == 100
    assert all(offset % PAGE_SIZE == 0 == length % PAGE_SIZE for offset, length in watched.through)
    assert max(length for _, length in watched.through) == 2 * PAGE_SIZE
    assert watched.size() == size
    file.close()
