"""SQLite on the simulated disk: durable when it says so, whole after every crash."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Any

import apsw
import pytest

from storage.ports import WallClock
from tests.simulation.disk import SimDisk
from tests.simulation.platter import DiskFault, MachineDead, Platter
from tests.simulation.runner import chance
from tests.simulation.sqlite import SimVFS

PATH = "/data/meta.sqlite"


class StoppedClock:
    def now_ns(self) -> int:
        return 1_800_000_000 * 10**9


class Laptop:
    """One machine's disk with SQLite on it, over crashes."""

    def __init__(self, seed: int) -> None:
        self.platter = Platter(chance(seed, "platter"))
        self.boot()
        self.disk.make_directory("/data")
        self.disk.sync_directory("/")

    def boot(self) -> None:
        clock: WallClock = StoppedClock()
        self.disk = SimDisk(self.platter)
        self.vfs = SimVFS(self.disk, clock)

        self.connections: list[apsw.Connection] = []

    def connect(self) -> apsw.Connection:
        connection = apsw.Connection(PATH, vfs=self.vfs.name)
        self.connections.append(connection)
        return connection

    def open(self, journal: str) -> apsw.Connection:
        connection = self.connect()
        if journal == "wal":
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        # With FULL a rollback journal that was removed may come back and undo what was committed.
        connection.execute(f"PRAGMA synchronous={'FULL' if journal == 'wal' else 'EXTRA'}")
        assert connection.execute(f"PRAGMA journal_mode={journal}").get == journal
        return connection

    def crash(self) -> None:
        self.close()
        self.boot()

    def close(self) -> None:
        self.platter.crash()
        for connection in self.connections:
            with contextlib.suppress(apsw.Error):
                connection.close(True)
        self.vfs.unregister()


@pytest.fixture
def make_laptop() -> Iterator[Callable[[int], Laptop]]:
    laptops: list[Laptop] = []

    def make(seed: int) -> Laptop:
        laptops.append(Laptop(seed))
        return laptops[-1]

    yield make
    for laptop in laptops:
        laptop.close()


MakeLaptop = Callable[[int], Laptop]


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate"])
def test_what_was_committed_survives_a_crash(journal: str, make_laptop: MakeLaptop) -> None:
    for seed in range(8):
        laptop = make_laptop(seed)
        db = laptop.open(journal)
        db.execute("CREATE TABLE t (x)")
        for number in range(20):
            db.execute("INSERT INTO t VALUES (?)", (number,))
        laptop.crash()
        found = laptop.open(journal)
        assert found.execute("SELECT count(*), max(x) FROM t").get == (20, 19)
        assert found.execute("PRAGMA integrity_check").get == "ok"


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_transaction_is_whole_or_absent_at_every_crash_point(journal: str, make_laptop: MakeLaptop) -> None:
    """Crash at each disk operation of one transaction over many pages, in turn, until none is hit."""
    outcomes = set()
    at = 0
    while True:
        at += 1
        laptop = make_laptop(at)
        db = laptop.open(journal)
        db.execute("CREATE TABLE t (x)")
        db.execute("INSERT INTO t VALUES (zeroblob(40000))")
        last = laptop.platter.operations + at

        def before(operation: str, path: str, laptop: Laptop = laptop, last: int = last) -> None:
            if laptop.platter.operations == last:
                laptop.platter.crash()

        laptop.platter.before_operation = before
        try:
            db.execute("UPDATE t SET x = randomblob(30000)")
            returned = True
        except (apsw.IOError, apsw.CantOpenError):
            returned = False
        hit = not laptop.disk.is_alive
        laptop.platter.before_operation = lambda operation, path: None
        laptop.crash()
        found = laptop.open(journal)
        size = found.execute("SELECT length(x) FROM t").get
        assert found.execute("PRAGMA integrity_check").get == "ok"
        assert size == 30000 or (size == 40000 and not returned)
        outcomes.add(size)
        if not hit:
            break
    assert at > 5
    assert outcomes == {30000, 40000}


def test_without_sync_a_transaction_may_be_lost(make_laptop: MakeLaptop) -> None:
    """The simulator sees a missing fsync: SQLite told not to sync loses what it acknowledged."""
    counts = set()
    for seed in range(30):
        laptop = make_laptop(seed)
        db = laptop.open("wal")
        db.execute("CREATE TABLE t (x)")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("INSERT INTO t VALUES (1)")
        laptop.crash()
        counts.add(laptop.open("wal").execute("SELECT count(*) FROM t").get)
    assert counts == {0, 1}


def test_wal_needs_exclusive_mode_and_sqlite_says_so(make_laptop: MakeLaptop) -> None:
    laptop = make_laptop(0)
    assert not laptop.vfs.supports_shared_memory
    db = laptop.connect()
    assert db.execute("PRAGMA journal_mode=WAL").get == "delete"
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    assert db.execute("PRAGMA journal_mode=WAL").get == "wal"
    db.execute("CREATE TABLE t (x)")
    second = laptop.connect()
    with pytest.raises(apsw.BusyError):
        second.execute("SELECT * FROM t")


def test_two_connections_share_a_rollback_journal_by_locks(make_laptop: MakeLaptop) -> None:
    laptop = make_laptop(0)
    first, second = laptop.open("delete"), laptop.open("delete")
    first.execute("CREATE TABLE t (x)")
    first.execute("BEGIN IMMEDIATE")
    first.execute("INSERT INTO t VALUES (1)")
    assert second.execute("SELECT count(*) FROM t").get == 0
    with pytest.raises(apsw.BusyError):
        second.execute("INSERT INTO t VALUES (2)")
    reading = second.execute("SELECT * FROM sqlite_schema")
    next(reading)
    with pytest.raises(apsw.BusyError):
        first.execute("COMMIT")
    reading.close()
    first.execute("COMMIT")
    second.execute("INSERT INTO t VALUES (2)")
    assert first.execute("SELECT count(*) FROM t").get == 2


def test_a_full_disk_and_a_bad_one_are_told_apart(make_laptop: MakeLaptop) -> None:
    laptop = make_laptop(0)
    db = laptop.open("wal")
    db.execute("CREATE TABLE t (x)")
    laptop.platter.faults.append(DiskFault("write", errno.ENOSPC))
    with pytest.raises(apsw.FullError):
        db.execute("INSERT INTO t VALUES (zeroblob(100000))")
    laptop.platter.faults.append(DiskFault("sync", errno.EIO))
    with pytest.raises(apsw.IOError) as caught:
        db.execute("INSERT INTO t VALUES (zeroblob(100000))")
    error: Any = caught.value
    assert error.extendedresult == apsw.SQLITE_IOERR_FSYNC
    db.execute("INSERT INTO t VALUES (1)")
    assert db.execute("SELECT count(*) FROM t").get == 1


def test_the_connection_of_a_dead_machine_fails_and_can_be_closed(make_laptop: MakeLaptop) -> None:
    laptop = make_laptop(0)
    db = laptop.open("wal")
    db.execute("CREATE TABLE t (x)")
    laptop.platter.crash()
    with pytest.raises(apsw.IOError) as caught:
        db.execute("INSERT INTO t VALUES (1)")
    assert isinstance(caught.value.__cause__, MachineDead)
    db.close(True)


def test_time_in_sqlite_is_the_machines(make_laptop: MakeLaptop) -> None:
    db = make_laptop(0).open("delete")
    assert db.execute("SELECT unixepoch('now'), datetime('now')").get == (
        1_800_000_000,
        "2027-01-15 08:00:00",
    )
