"""Checkpoints: what is stored of a database, range by range, makes the same database again."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import apsw
import pytest

from gridfs.meta import checking, checkpoints, ranges, schema
from gridfs.meta.checkpoints import Loader
from gridfs.meta.operations import (
    KIND_CHECKPOINT,
    KIND_JOURNAL,
    Clone,
    Commit,
    Drop,
    Link,
    PackRecord,
    Rename,
    Retire,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
)
from gridfs.meta.ranges import KeptPart, Root, decode_part, decode_root, encode_parts, encode_root
from gridfs.meta.store import ROOT, Metadata
from storage.errors import Corrupt, Refused

from .support import DIRECTORY, Driver, MaskSealer, extent_record, pack_record

TABLES = [table.name for tables in schema.FAMILIES for table in tables] + ["server", "state"]
FIRST_MARK = 1_000_000


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of four inodes, bodies and packs, and parts of a few rows."""
    for module in (schema, checkpoints, checking):
        monkeypatch.setattr(module, "BUCKET_BITS", 2)
    monkeypatch.setattr(schema, "TRIGGERS", schema._triggers())
    monkeypatch.setattr(ranges, "PART_BYTES", 300)


class Grid:
    """The packs of checkpoints: pack id -> run -> bytes."""

    def __init__(self) -> None:
        self.packs: dict[bytes, list[bytes]] = {}
        self.root: Root | None = None
        self.parts_written = 0

    def store(
        self, driver: Driver, *, own_connection: bool = True, finish: bool = True
    ) -> list[tuple[int, int]]:
        """Make a checkpoint of the driver's database; returns the ranges that were written."""
        snapshot = driver.store.begin_checkpoint(driver.path if own_connection else None)
        try:
            driver.make(b"while it is made %d" % driver.number)
            written: list[tuple[KeptPart, PackRecord]] = []
            while parts := snapshot.next_parts(2000):
                mark = FIRST_MARK + len(self.packs)
                record = pack_record(mark, kind=KIND_CHECKPOINT, stream_length=sum(len(p) for *_, p in parts))
                self.packs[record.pack_id] = [part for _, _, part in parts]
                for run, (place, number, part) in enumerate(parts):
                    written.append((KeptPart(*place, number, record.pack_id, run, 0, len(part)), record))
            self.parts_written += len(written)
            root = decode_root(encode_root(snapshot.root(written)))
            assert root.number == driver.number - 1
        finally:
            snapshot.close()
        if finish:
            self.root = root
            records = {record.pack_id: record for _, record in written}
            driver.do(Commit(list(records.values()), []))
            driver.store.finish_checkpoint(snapshot.ranges, [kept for kept, _ in written])
            old = driver.store.superseded([])
            driver.do(Retire(old))
            driver.store.commit()
        return snapshot.ranges

    def load(self, path: Path) -> str:
        assert self.root is not None
        loader = Loader(str(path), None, MaskSealer(), self.root)
        for place in self.root.parts:
            loader.add(place.family, self.packs[self.root.packs[place.pack].pack_id][place.run])
        loader.finish()
        return str(path)


def rows(path: str) -> dict[str, list[Any]]:
    database = apsw.Connection(path)
    try:
        return {
            name: sorted(database.execute(f"SELECT * FROM {name}"), key=repr)  # noqa: S608
            for name in TABLES
        }
    finally:
        database.close()


def step(driver: Driver, stream: random.Random) -> None:
    """One random change of anything that a checkpoint has to know."""
    store = driver.store
    files = [entry for entry in store.entries(ROOT, 0, 10_000) if entry.mode != 0o040000]
    choice = stream.randrange(10)
    if choice < 3 or not files:
        driver.make(b"name %d" % driver.number)
        return
    entry = stream.choice(files)
    ino = entry.ino
    match choice:
        case 3:
            size = stream.randrange(1, 9) * 4096
            driver.do(Write(ino, 0, size, 200))
            mark = stream.randrange(1, 30)
            extents = [extent_record(ino, at, 4096, driver.number, run=at) for at in range(0, size, 8192)]
            driver.do(Commit([pack_record(mark)], extents))
        case 4:
            driver.do(SetAttributes(ino, None, None, None, None, None, stream.randrange(9) * 4096, 300))
        case 5:
            driver.do(Unlink(ROOT, entry.name, ino, 300))
            if ino in store.orphans():
                driver.do(Drop(ino))
        case 6:
            driver.do(Rename(ROOT, entry.name, ROOT, b"moved %d" % driver.number, ino, 0, False, 300))
        case 7:
            driver.do(Link(ino, ROOT, b"link %d" % driver.number, 300))
        case 8:
            driver.do(SetXattr(ino, b"user.x", stream.randbytes(stream.randrange(200)), 300))
        case _:
            driver.do(Clone(store.reserve_inode(), ino, ROOT, b"clone %d" % driver.number, False, 300))
    if stream.random() < 0.3:
        store.work(3)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("seed", range(6))
def test_a_checkpoint_makes_the_same_database(tmp_path: Path, seed: int) -> None:
    stream = random.Random(seed)
    driver = Driver(tmp_path / "m.db")
    grid = Grid()
    for turn in range(6):
        for _ in range(stream.randrange(60)):
            step(driver, stream)
        if stream.random() < 0.5:
            grid.store(driver, own_connection=seed % 2 == 0, finish=False)  # the process died there
            driver.store.commit()
            driver.reopen()
        driver.store.commit()
        expected = rows(driver.path)
        grid.store(driver, own_connection=seed % 2 == 0)
        made = grid.load(tmp_path / f"{turn}.db")
        assert rows(made) == expected
        restored = Metadata.open(made, MaskSealer())
        assert restored.check() == []
        restored.close()
        assert driver.store.check() == []


@pytest.mark.usefixtures("narrow")
def test_only_ranges_that_changed_are_written(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "m.db")
    made = [driver.make(b"%d" % index) for index in range(100)]
    grid = Grid()
    first = grid.store(driver)
    assert len(first) >= 25
    grid.store(driver)
    driver.do(SetXattr(made[50], b"user.x", b"value", 300))
    ranges = set(grid.store(driver))
    assert (0, made[50] >> 2) in ranges
    assert not {(0, made[index] >> 2) for index in (20, 40, 60, 80)} & ranges


@pytest.mark.usefixtures("narrow")
def test_packs_that_are_hardly_used_or_were_given_up_are_written_anew(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "m.db")
    made = [driver.make(b"%d" % index) for index in range(100)]
    grid = Grid()
    for _ in range(12):
        for ino in made[: len(made) - 4 : 4]:
            driver.do(SetAttributes(ino, 0o600, None, None, None, None, None, 300))
        grid.store(driver)
    assert grid.root is not None
    used: dict[int, int] = {}
    for place in grid.root.parts:
        used[place.pack] = used.get(place.pack, 0) + place.run_length
    assert all(4 * size >= grid.root.packs[pack].stream_length for pack, size in used.items())
    victim = grid.root.packs[0]
    lost = {(place.family, place.bucket) for place in grid.root.parts if not place.pack}
    driver.do(Retire([victim.pack_id]))  # as another client does that has made a checkpoint of its own
    assert lost <= set(grid.store(driver))
    assert victim.pack_id not in {record.pack_id for record in grid.root.packs}


def test_what_a_newer_checkpoint_replaces_is_found(driver: Driver) -> None:
    driver.make(b"a", DIRECTORY)
    journals = [pack_record(mark, kind=KIND_JOURNAL, missing=[1]) for mark in (1, 2)]
    driver.do(Commit([*journals, pack_record(3)], []))
    assert driver.store.totals().missing_shares == 2
    grid = Grid()
    assert driver.store.superseded([journals[1].pack_id]) == [journals[0].pack_id]
    grid.store(driver)
    assert driver.store.superseded([]) == []
    assert driver.store.totals().missing_shares == 0
    assert driver.store.check() == []
    assert {item.pack_id for item in driver.store.garbage()} == {
        (mark).to_bytes(32, "big") for mark in (1, 2, 3)
    }


def test_only_journals_and_checkpoints_are_retired(driver: Driver) -> None:
    driver.do(Commit([pack_record(3)], []))
    assert "no journal" in driver.refused(Retire([pack_record(3).pack_id]))
    assert "no journal" in driver.refused(Retire([bytes(32)]))


def test_a_torn_checkpoint_is_refused(tmp_path: Path, driver: Driver) -> None:
    grid = Grid()
    grid.store(driver)
    assert grid.root is not None
    part = grid.packs[grid.root.packs[0].pack_id][0]
    rubbish = (b"\xc1", b"\x91\x92\x09\x90", b"\x91\x92\x00\x91\x91\x01")
    for damaged in (b"", part[:-1], part + b"x", b"y" + part[1:], *map(zlib.compress, rubbish), *rubbish):
        with pytest.raises(Corrupt):
            decode_part(damaged, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "PART_BYTES_MAX", 10)
        with pytest.raises(Corrupt, match="too long"):
            decode_part(part, 0)
    with pytest.raises(Corrupt):
        decode_root(encode_root(grid.root)[:-1])
    fields = {name: getattr(grid.root, name) for name in grid.root.__struct_fields__}
    with pytest.raises(Refused, match="format version 9"):
        decode_root(encode_root(Root(**fields | {"version": 9})))
    with pytest.raises(Corrupt, match="has not"):
        decode_root(encode_root(Root(**fields | {"packs": []})))
    loader = Loader(str(tmp_path / "new.db"), None, MaskSealer(), grid.root)
    loader.give_up()
    with pytest.raises(Corrupt, match="not a finished"):
        Metadata.open(str(tmp_path / "new.db"), MaskSealer())


def test_parts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "PART_BYTES", 1000)
    many = [[index, b"n" * 10, b"v" * 100] for index in range(100)]
    parts = list(encode_parts([(2, many[:60]), (3, []), (2, many[60:])]))
    assert all(len(zlib.decompress(part)) < 1200 for part in parts)
    assert all(len(part) < 100 for part in parts)
    assert [row for part in parts for _, found in decode_part(part, 0) for row in found] == many
