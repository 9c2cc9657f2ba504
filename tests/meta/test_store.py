"""Transactions, opening, durability, and what happens when the disk fails."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from gridfs.meta import schema
from gridfs.meta.inodes import CHANGED_MAX
from gridfs.meta.names import KEPT_MAX
from gridfs.meta.operations import Commit, Drop, Link, Rename, SetAttributes, SetXattr, Unlink, Write
from gridfs.meta.store import ROOT, Metadata, checkpoint_on_own_connection
from storage.errors import Corrupt, Exhausted, Missing, Refused

from .support import DIRECTORY, Driver, MaskSealer, extent_record, pack_record


def test_a_new_file_system_has_a_root(tmp_path: Path) -> None:
    store = Metadata.create(
        str(tmp_path / "m.db"), MaskSealer(), root_mode=0o700, root_uid=5, root_gid=6, time=7
    )
    root = store.inode(ROOT)
    assert root is not None
    assert (root.mode, root.uid, root.gid, root.nlink, root.mtime) == (DIRECTORY & ~0o077, 5, 6, 2, 7)
    assert (store.applied, store.in_transaction, store.orphans()) == (0, False, [])
    assert store.check() == []
    store.close()
    store.close()


def test_numbers_that_are_in_are_ignored(driver: Driver) -> None:
    ino = driver.make(b"file")
    write = Write(ino, 0, 10, 300)
    number = driver.do(write)
    driver.do(SetAttributes(ino, None, None, None, None, None, 3, 301))
    before = driver.picture()
    driver.store.apply(number, write)
    driver.store.apply(1, Drop(77))
    assert driver.picture() == before


def test_what_was_not_committed_is_gone_after_a_kill_and_replayed(driver: Driver, tmp_path: Path) -> None:
    kept = driver.make(b"kept")
    driver.store.commit()
    lost = driver.make(b"lost")
    assert driver.store.in_transaction
    for suffix in ("", "-wal"):
        shutil.copyfile(driver.path + suffix, str(tmp_path / "found.db") + suffix)
    found = Metadata.open(str(tmp_path / "found.db"), MaskSealer())
    assert found.applied == 1
    assert [entry.ino for entry in found.entries(ROOT)] == [kept]
    assert found.reserve_inode() == lost
    assert found.check() == []
    found.close()


def test_values_are_part_of_the_transaction(driver: Driver) -> None:
    driver.store.set_value("epoch", b"1")
    driver.store.commit()
    driver.store.set_value("epoch", b"2")
    assert driver.store.get_value("epoch") == b"2"
    driver.reopen()
    assert driver.store.get_value("epoch") == b"1"
    assert driver.store.get_value("nothing") is None


def test_create_refuses_what_is_there_and_finishes_what_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "m.db")
    Path(path).touch()
    Metadata.create(path, MaskSealer()).close()
    with pytest.raises(Refused, match="already a database"):
        Metadata.create(path, MaskSealer())
    foreign = str(tmp_path / "foreign.db")
    connection = apsw.Connection(foreign)
    connection.execute("CREATE TABLE t (a)")
    connection.close()
    with pytest.raises(Refused, match="something else"):
        Metadata.create(foreign, MaskSealer())
    with pytest.raises(Corrupt, match="not a finished"):
        Metadata.open(foreign, MaskSealer())


def test_open_tells_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(Missing):
        Metadata.open(str(tmp_path / "nothing.db"), MaskSealer())
    assert not (tmp_path / "nothing.db").exists()
    (tmp_path / "noise.db").write_bytes(b"noise" * 1000)
    with pytest.raises(Corrupt):
        Metadata.open(str(tmp_path / "noise.db"), MaskSealer())
    (tmp_path / "empty.db").touch()
    with pytest.raises(Corrupt, match="not a finished"):
        Metadata.open(str(tmp_path / "empty.db"), MaskSealer())


def changed(path: str, sql: str) -> None:
    connection = apsw.Connection(path)
    connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    ("sql", "error", "text"),
    [
        ("PRAGMA user_version = 3", Refused, "has metadata format 3"),
        ("DELETE FROM state", Corrupt, "no state"),
        ("UPDATE state SET value = x'c1'", Corrupt, "cannot be read"),
        ("DROP TABLE cut", Corrupt, "damaged"),
    ],
)
def test_another_version_is_refused_and_damage_is_corrupt(
    tmp_path: Path, sql: str, error: type[Exception], text: str
) -> None:
    path = str(tmp_path / "m.db")
    Metadata.create(path, MaskSealer()).close()
    changed(path, sql)
    with pytest.raises(error, match=text) as caught:
        Metadata.open(path, MaskSealer())
    assert "\n" not in str(caught.value)


def test_damaged_pages_are_corrupt_and_not_wrong_answers(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "m.db")
    for number in range(500):
        driver.make(b"%d" % number)
    driver.store.commit()
    assert driver.store.make_durable()
    driver.store.close()
    data = bytearray(Path(driver.path).read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 200] = b"\xee" * 200
    Path(driver.path).write_bytes(data)

    def use() -> None:
        store = Metadata.open(driver.path, MaskSealer())
        try:
            store.entries(ROOT)
        finally:
            store.close()

    with pytest.raises(Corrupt):
        use()


def test_another_sealers_key_is_corrupt(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(Write(ino, 0, 10, 5))
    driver.do(Commit([pack_record(1)], [extent_record(ino, 0, 10, 2)]))
    driver.store.commit()

    class Other(MaskSealer):
        def open(self, data: bytes) -> bytes:
            raise Corrupt("does not open")

    other = Metadata.open(driver.path, Other())
    with pytest.raises(Corrupt):
        other.pack(1)
    with pytest.raises(Corrupt):
        other.outbox(0, 1000)
    other.close()


def test_a_checkpoint_moves_all_committed_into_the_database(driver: Driver, tmp_path: Path) -> None:
    driver.make(b"file")
    driver.store.commit()
    driver.make(b"later")
    results: list[bool] = []
    worker = threading.Thread(target=lambda: results.append(checkpoint_on_own_connection(driver.path)))
    worker.start()
    worker.join()
    assert results == [True]
    # Without its log the database alone holds what was committed, and not what was not.
    shutil.copyfile(driver.path, tmp_path / "alone.db")
    alone = Metadata.open(str(tmp_path / "alone.db"), MaskSealer())
    assert [entry.name for entry in alone.entries(ROOT)] == [b"file"]
    alone.close()
    with pytest.raises(RuntimeError):
        driver.store.make_durable()
    driver.store.commit()
    assert driver.store.make_durable()
    with pytest.raises(Missing):
        checkpoint_on_own_connection(str(tmp_path / "nothing.db"))


def test_an_old_reader_keeps_a_checkpoint_from_promising(driver: Driver) -> None:
    driver.make(b"file")
    driver.store.commit()
    reader = apsw.Connection(driver.path)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM inode").fetchall()
    driver.make(b"later")
    driver.store.commit()
    assert not checkpoint_on_own_connection(driver.path)
    reader.execute("COMMIT")
    assert checkpoint_on_own_connection(driver.path)
    reader.close()


class FaultyDisk(apsw.VFS):
    """A VFS whose writes fail when told to; it has no shared memory, like a simulated disk."""

    def __init__(self) -> None:
        super().__init__("gridfs-faulty", "")
        self.failure: type[apsw.Error] | None = None

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return FaultyFile(self, name, flags)


class FaultyFile(apsw.VFSFile):
    def __init__(self, disk: FaultyDisk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self.disk = disk
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self.disk.failure is not None:
            raise self.disk.failure("told to")
        super().xWrite(data, offset)


@pytest.fixture
def faulty() -> Iterator[FaultyDisk]:
    disk = FaultyDisk()
    yield disk
    disk.unregister()


def test_a_commit_that_fails_leaves_the_transaction_whole(tmp_path: Path, faulty: FaultyDisk) -> None:
    driver = Driver(tmp_path / "m.db", vfs="gridfs-faulty")
    before = driver.make(b"before")
    driver.do(Write(before, 0, 100, 5))
    driver.store.commit()
    ino = driver.make(b"file")
    driver.do(Write(before, 100, 100, 6))
    driver.do(Write(ino, 0, 100, 6))
    driver.do(Commit([pack_record(1, missing=[2])], [extent_record(before, 0, 200, driver.number)]))
    driver.do(SetXattr(ino, b"user.a", b"1", 8))
    driver.do(Unlink(ROOT, b"file", ino, 9))
    driver.store.set_value("name", b"value")
    reserved = driver.store.reserve_inode()
    driver.store.drop_outbox(1)
    picture = driver.picture()
    for _ in range(2):
        faulty.failure = apsw.FullError
        with pytest.raises(Exhausted):
            driver.store.commit()
        assert driver.store.in_transaction
        faulty.failure = None
        assert driver.picture() == picture
        assert driver.store.check() == []
    driver.do(Write(before, 300, 1, 10))
    driver.store.commit()
    driver.reopen()
    assert driver.store.applied == driver.number
    assert driver.store.get_value("name") == b"value"
    assert driver.store.orphans() == [ino]
    assert driver.store.reserve_inode() > reserved
    assert driver.store.pack(1).live_bytes == 200
    assert driver.store.check() == []
    assert driver.store.make_durable()
    driver.store.close()


def test_a_transaction_that_sqlite_rolls_back_by_itself_is_made_once_more(tmp_path: Path) -> None:
    """As it may do when a read fails."""
    driver = Driver(tmp_path / "m.db")
    driver.make(b"before")
    driver.store.commit()
    driver.make(b"file")
    picture = driver.picture()
    driver.store._database.execute("ROLLBACK")
    driver.store.commit()
    assert driver.picture() == picture
    driver.reopen()
    assert driver.store.applied == driver.number
    assert driver.store.check() == []
    driver.store.close()


def test_closing_makes_nothing_once_more_that_a_failing_disk_took_back(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "m.db")
    driver.make(b"file")
    driver.store._database.execute("ROLLBACK")
    driver.store._steps = [(lambda: pytest.fail("made once more"), ())]
    driver.store.close()
    driver.store.close()


class FailingSealer(MaskSealer):
    """Fails once when told to."""

    fails = False

    def seal(self, data: bytes) -> bytes:
        if self.fails:
            self.fails = False
            raise ZeroDivisionError
        return super().seal(data)


def test_a_failure_half_way_takes_the_whole_operation_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    driver = Driver(tmp_path / "m.db")
    ino = driver.make(b"file")
    directory = driver.make(b"directory", DIRECTORY)
    driver.do(Write(ino, 0, 100, 5))
    driver.do(Commit([pack_record(1)], [extent_record(ino, 0, 100, driver.number)]))
    for operation in (
        SetXattr(ino, b"user.a", b"1", 6),
        SetAttributes(ino, None, None, None, None, None, 0, 7),
        Rename(ROOT, b"file", directory, b"moved", ino, 0, False, 8),
        Unlink(ROOT, b"file", ino, 9),
        Write(ino, 100, 100, None),
    ):
        picture = driver.picture()
        with monkeypatch.context() as patch:
            # The outbox comes last, when all rows of an operation are changed.
            patch.setattr(driver.store._outbox, "put", fail)
            with pytest.raises(ZeroDivisionError):
                driver.store.apply(driver.number + 1, operation)
        assert driver.picture() == picture
    driver.make(b"whole")
    driver.store.commit()
    assert driver.store.check() == []
    driver.store.close()


def test_a_failure_while_everything_is_written_leaves_the_transaction_whole(tmp_path: Path) -> None:
    sealer = FailingSealer()
    driver = Driver(tmp_path / "m.db", sealer)
    ino = driver.make(b"file")
    driver.do(Write(ino, 0, 100, 5))
    for look in (driver.store.commit, driver.store.check, lambda: driver.store.outbox(0, 1)):
        driver.do(SetXattr(ino, b"user.a", b"1", 6))
        sealer.fails = True
        with pytest.raises(ZeroDivisionError):
            look()
        assert driver.store.inode(ino).size == 100  # type: ignore[union-attr]
        assert driver.store.in_transaction
    assert [entry.inode.size for entry in driver.store.listing(ROOT)] == [100]
    driver.store.commit()
    picture = driver.picture()
    driver.reopen()
    assert driver.picture() == picture
    assert driver.store.applied == driver.number
    assert driver.store.check() == []
    driver.store.close()


def test_what_waits_in_memory_is_seen_by_every_question(driver: Driver) -> None:
    """Also after it was written, was put out of memory, and was changed again."""
    store = driver.store
    directory = driver.make(b"directory", DIRECTORY)
    for begin in range(0, 3 * KEPT_MAX, KEPT_MAX // 2):
        names = {b"%06d" % number: 0 for number in range(begin, begin + KEPT_MAX // 2)}
        for name in names:
            names[name] = driver.make(name, parent=directory)
        first, second, *_, last = names
        driver.do(Unlink(directory, last, names[last], 7))
        driver.do(Drop(names[last]))
        driver.do(Rename(directory, first, directory, b"r" + first, names[first], 0, False, 8))
        driver.do(Rename(directory, second, directory, b"r" + first, names[second], names[first], False, 9))
        if begin % KEPT_MAX:
            store.commit()
    listed = {entry.name: entry.inode for entry in store.listing(directory, 0, 1 << 20)}
    assert [entry.name for entry in store.entries(directory, 0, 1 << 20)] == list(listed)
    assert len(listed) == 6 * (KEPT_MAX // 2 - 2)
    for name, inode in listed.items():
        assert store.lookup(directory, name) == inode.ino
        assert store.inode(inode.ino) == inode
    assert store.lookup(directory, b"000000") is None
    assert len(store.orphans()) == 6
    assert store.inode(directory).nlink == 2  # type: ignore[union-attr]
    assert store.path_of(listed[b"000003"].ino) == "/directory/000003"


def test_a_row_that_is_let_go_just_before_it_changes(driver: Driver) -> None:
    inodes = [driver.make(b"%06d" % number) for number in range(CHANGED_MAX + 1)]
    driver.store.commit()
    driver.reopen()
    store = driver.store
    first, *others = inodes
    assert store.inode(first) is not None  # the oldest in memory
    for ino in (*others, first):
        driver.do(SetAttributes(ino, None, 77, None, None, None, None, 7))
    assert [ino for ino in inodes if store.inode(ino).uid != 77] == []  # type: ignore[union-attr]


def test_a_name_for_a_while_costs_the_table_nothing(driver: Driver) -> None:
    """As git and editors make files: a new name, a link or rename to the right one."""
    store = driver.store
    driver.make(b"other")
    store.commit()
    before = store._database.total_changes()
    ino = driver.make(b"a while")
    driver.do(Write(ino, 0, 100, 5))
    driver.do(SetAttributes(ino, 0o444, None, None, None, 6, None, 6))
    driver.do(Link(ino, ROOT, b"for good", 7))
    driver.do(Unlink(ROOT, b"a while", ino, 8))
    assert store._database.total_changes() == before
    store.commit()
    # Two inodes and a name, with the ranges that they touch; four operations of the outbox and one of writes.
    assert store._database.total_changes() - before <= 2 + 1 + 3 + 5 + 1


def test_no_statement_is_planned_for_each_value(driver: Driver) -> None:
    """SQLite would plan those with a limit or a range anew at each call."""
    store, planned = driver.store, 0

    def count(*_: object) -> int:
        nonlocal planned
        planned += 1
        return apsw.SQLITE_OK

    store._database.authorizer = count  # asked while a statement is planned
    for number in range(4):
        ino = driver.make(b"%d" % number)
        driver.do(Write(ino, 0, 100, 5))
        driver.do(Commit([pack_record(number + 1)], [extent_record(ino, 0, 100, driver.number)]))
        store.extents(ino, number, 50 + number)
        store.listing(ROOT, number, 10 + number)
        store.entries(ROOT, number, 10 + number)
        store.outbox(number, 1000)
        driver.do(SetAttributes(ino, None, None, None, None, 6, 50 + number, 6))
        if number == 0:
            assert planned
            planned = 0
    assert planned == 0


def test_state_keeps_its_order() -> None:
    """The state is an array on disk: fields are only ever added at its end."""
    assert schema.State.__struct_fields__ == (
        "applied", "next_inode", "next_cookie", "next_body", "next_pack", "files", "directories", "bytes",
        "packs", "live_bytes", "missing_shares",
    )  # fmt: skip
