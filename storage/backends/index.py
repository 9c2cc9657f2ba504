"""The index: which shares and leases there are and where they lie. SQLite, derived from volumes and files.

Everything in it can be made again from the log in the volumes; it says up to which entry it has followed
that log. SQLite itself never syncs: commits only reach its write-ahead log's page cache, and `checkpoint`
makes the index durable in steps of which the slow ones (fsync) run in a worker thread:

1. sync the write-ahead log; 2. copy its pages into the database; 3. sync the database;
4. truncate the write-ahead log; 5. sync the truncation.

A crash at any point leaves a whole write-ahead log over a torn database, or a whole database. Between 2
and 5 nothing may be written, which holds because the one committing task runs the checkpoint.

One connection in exclusive locking mode: it needs no shared memory, and its lock keeps a second server out.
Used from the loop's thread (opened in a worker, before anything else uses it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import apsw

from storage.appendfile import write_again
from storage.backends.changes import BARE_ENTRY_SIZE, Change, Kind, ShareState
from storage.backends.port import ShareKey
from storage.errors import Conflict, Corrupt
from storage.leases import Holder, Lease
from storage.ports import Disk, File, Offload

NAME = "index.db"
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE shares (
    pack BLOB, number INTEGER, volume INTEGER, offset INTEGER, length INTEGER,
    PRIMARY KEY (pack, number)) WITHOUT ROWID;
CREATE TABLE leases (
    pack BLOB, number INTEGER, holder INTEGER, epoch INTEGER, sequence INTEGER, volume INTEGER,
    PRIMARY KEY (pack, number, holder)) WITHOUT ROWID;
CREATE TABLE holders (
    id INTEGER PRIMARY KEY, file_system BLOB, account BLOB, UNIQUE (file_system, account));
CREATE TABLE volumes (number INTEGER PRIMARY KEY, dead INTEGER);
CREATE TABLE state (
    volume INTEGER, offset INTEGER, safe_volume INTEGER, safe_offset INTEGER,
    shares INTEGER, bytes INTEGER, complete INTEGER);
INSERT INTO state VALUES (0, 0, 0, 0, 0, 0, 0);
"""


class Position(NamedTuple):
    """A place in the log: everything before it is in the index."""

    volume: int
    offset: int


class Place(NamedTuple):
    """Where a share lies."""

    volume: int
    """Number of the volume, 0 for a file of its own."""
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Logged:
    """A change and where its entry lies."""

    change: Change
    volume: int
    offset: int
    """Of the payload."""


class ShareIndex:
    """The open index."""

    def __init__(self, disk: Disk, directory: str) -> None:
        """Open or create it. Raises Corrupt where SQLite cannot read it, Conflict where it is in use."""
        path = f"{directory}/{NAME}"
        self.wal_pages = 0
        self._files: list[File] = []
        # Made by our own hand first, so that it and its log have the mode of our files.
        disk.open(path, create=True).close()
        try:
            self._connection = apsw.Connection(path, vfs=disk.sqlite_vfs)
            try:
                self._prepare()
                # POSIX drops a process's locks when any descriptor of the file closes, so these stay open
                # until the connection has gone.
                self._files = [disk.open(f"{path}-wal", create=True), disk.open(path)]
                # A checkpoint may need the log after a loss of power, and trusts that it was written.
                write_again(self._files[0], 0, self._files[0].size())
            except BaseException:
                self._connection.close()
                raise
        except (apsw.BusyError, apsw.LockedError):
            raise Conflict(f"another server has {directory} open") from None
        except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, apsw.IOError) as error:
            raise Corrupt(f"index {path}: {error}") from error

    def _prepare(self) -> None:
        connection = self._connection
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.pragma("locking_mode", "exclusive")
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "off")
        connection.pragma("cache_size", -16384)
        connection.set_wal_hook(self._count_pages)
        with connection:
            if connection.pragma("user_version") == 0:
                connection.execute(_SCHEMA)
                connection.pragma("user_version", SCHEMA_VERSION)
            elif connection.pragma("user_version") != SCHEMA_VERSION:
                raise apsw.SQLError("its schema is another")
            # A write, so that the exclusive lock is taken now and not at the first put.
            connection.execute("UPDATE state SET complete = complete")

    def _count_pages(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self.wal_pages = pages
        return apsw.SQLITE_OK

    # Questions

    def place(self, key: ShareKey) -> Place | None:
        """Where a share lies; None where it is not here."""
        row = self._connection.execute(
            "SELECT volume, offset, length FROM shares WHERE pack = ? AND number = ?", key
        ).fetchone()
        return Place(*row) if row else None

    def state(self, key: ShareKey) -> ShareState:
        """Whether a share is here, with its leases."""
        rows = self._connection.execute(
            "SELECT file_system, account, epoch, sequence FROM leases JOIN holders ON id = holder"
            " WHERE pack = ? AND number = ?",
            key,
        )
        leases = {(file_system, account): (epoch, seq) for file_system, account, epoch, seq in rows}
        return ShareState(self.place(key) is not None, leases)

    def leased(self, holder: Holder, after: ShareKey | None, limit: int) -> list[ShareKey]:
        """Keys of shares that are here and leased to the holder: the first ones behind `after`, in order."""
        rows = self._connection.execute(
            "SELECT pack, number FROM leases JOIN shares USING (pack, number)"
            " WHERE holder = (SELECT id FROM holders WHERE file_system = ? AND account = ?)"
            " AND (pack, number) > (?, ?) ORDER BY pack, number LIMIT ?",
            (*holder, *(after or (b"", -1)), limit),
        )
        return [ShareKey(pack, number) for pack, number in rows]

    def counts(self) -> tuple[int, int]:
        """(shares, bytes of shares)."""
        shares, size = self._row("SELECT shares, bytes FROM state")
        return shares, size

    def _row(self, query: str) -> tuple[int, ...]:
        row: tuple[int, ...] = self._connection.execute(query).fetchall()[0]  # type: ignore[assignment]
        return row

    def position(self) -> tuple[Position, Position] | None:
        """(how far the log is followed, how far the renames it asks for are durable).

        The second is never behind a checkpoint, the first may be ahead of it: the operating system may
        have written this index before the directories. None for an index that was never completed.
        """
        *places, complete = self._row("SELECT volume, offset, safe_volume, safe_offset, complete FROM state")
        return (Position(*places[:2]), Position(*places[2:])) if complete else None

    def dead_bytes(self) -> dict[int, int]:
        """Bytes per volume that nothing needs any more."""
        return dict(self._connection.execute("SELECT number, dead FROM volumes ORDER BY number"))

    def own_files(self) -> Iterator[tuple[ShareKey, int]]:
        """Keys and lengths of the shares in files of their own. Nothing may change meanwhile."""
        rows = self._connection.execute("SELECT pack, number, length FROM shares WHERE volume = 0")
        for pack, number, length in rows:
            yield ShareKey(pack, number), length

    # Changes

    def apply(self, logged: Sequence[Logged], position: Position) -> list[tuple[ShareKey, Place]]:
        """Take durable changes in, in one transaction; returns the shares that went, and where they lay."""
        gone: list[tuple[ShareKey, Place]] = []
        with self._connection:
            for item in logged:
                self._apply_one(item, gone)
            self._connection.execute("UPDATE state SET volume = ?, offset = ?", position)
        return gone

    def _apply_one(self, item: Logged, gone: list[tuple[ShareKey, Place]]) -> None:
        change = item.change
        if change.kind in (Kind.SHARE, Kind.FILE):
            in_volume = change.kind == Kind.SHARE
            self.put(
                change.key, Place(item.volume if in_volume else 0, item.offset * in_volume, change.length)
            )
            if change.lease:
                self._hold(change.key, change.lease, 0 if in_volume else item.volume)
        elif change.lease is None:
            raise Corrupt("a lease entry without a lease")
        elif change.kind == Kind.LEASE:
            # Not asking whether the share is here: when the index is made anew, compaction may have put
            # the share's own entry behind this one.
            self._hold(change.key, change.lease, item.volume)
        else:
            self._release(change.key, change.lease, gone)

    def put(self, key: ShareKey, place: Place) -> None:
        """Note where a share lies; a place noted before becomes dead."""
        old = self.place(key)
        if old:
            self._drop(key, old)
        self._connection.execute("INSERT INTO shares VALUES (?, ?, ?, ?, ?)", (*key, *place))
        self._connection.execute("UPDATE state SET shares = shares + 1, bytes = bytes + ?", (place.length,))

    def forget(self, key: ShareKey) -> None:
        """Drop a share that the disk no longer has, with its leases."""
        with self._connection:
            place = self.place(key)
            if place:
                self._drop(key, place)
            self._connection.execute("DELETE FROM leases WHERE pack = ? AND number = ?", key)

    def purge_leases(self) -> None:
        """Drop leases on shares that are not here."""
        self._connection.execute(
            "DELETE FROM leases WHERE NOT EXISTS (SELECT 1 FROM shares"
            " WHERE shares.pack = leases.pack AND shares.number = leases.number)"
        )

    def forget_volume(self, number: int) -> None:
        """Drop the account of a volume that is removed."""
        self._connection.execute("DELETE FROM volumes WHERE number = ?", (number,))

    def complete(self, position: Position) -> None:
        """Note that the index holds everything up to there."""
        self._connection.execute("UPDATE state SET complete = 1, volume = ?, offset = ?", position)

    def _drop(self, key: ShareKey, place: Place) -> None:
        self._connection.execute("DELETE FROM shares WHERE pack = ? AND number = ?", key)
        self._connection.execute("UPDATE state SET shares = shares - 1, bytes = bytes - ?", (place.length,))
        if place.volume:
            self._waste(place.volume, BARE_ENTRY_SIZE + place.length)

    def _hold(self, key: ShareKey, lease: Lease, volume: int) -> None:
        holder = self._holder(lease)
        row = self._connection.execute(
            "SELECT epoch, sequence, volume FROM leases WHERE pack = ? AND number = ? AND holder = ?",
            (*key, holder),
        ).fetchone()
        if row and (row[0], row[1]) > lease.stamp:
            return
        if row and row[2]:
            self._waste(row[2], BARE_ENTRY_SIZE)
        self._connection.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?)", (*key, holder, *lease.stamp, volume)
        )

    def _release(self, key: ShareKey, lease: Lease, gone: list[tuple[ShareKey, Place]]) -> None:
        removed = self._connection.execute(
            "DELETE FROM leases WHERE pack = ? AND number = ? AND holder = ? AND (epoch, sequence) < (?, ?)"
            " RETURNING volume",
            (*key, self._holder(lease), *lease.stamp),
        ).fetchall()
        for (volume,) in removed:
            if volume:
                self._waste(int(volume), BARE_ENTRY_SIZE)
        place = self.place(key)
        if removed and place and not self.state(key).leases:
            self._drop(key, place)
            gone.append((key, place))

    def _holder(self, lease: Lease) -> int:
        found = self._connection.execute(
            "SELECT id FROM holders WHERE file_system = ? AND account = ?", lease.holder
        ).fetchone()
        if found:
            return int(found[0])
        self._connection.execute("INSERT INTO holders (file_system, account) VALUES (?, ?)", lease.holder)
        return self._connection.last_insert_rowid()

    def _waste(self, volume: int, size: int) -> None:
        self._connection.execute(
            "INSERT INTO volumes VALUES (?, ?)"
            " ON CONFLICT (number) DO UPDATE SET dead = dead + excluded.dead",
            (volume, size),
        )

    # Life

    async def checkpoint(self, offload: Offload) -> None:
        """Make the index durable; see the head of this module. Only the committing task may call it.

        The renames that the log asks for must be durable already.
        """
        wal, database = self._files
        self._connection.execute("UPDATE state SET safe_volume = volume, safe_offset = offset")
        await offload.run(wal.sync)
        self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        await offload.run(database.sync)
        self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        await offload.run(wal.sync)
        self.wal_pages = 0

    def close(self) -> None:
        """Without a checkpoint before it, the next start follows the log from the last one."""
        self._connection.close()
        for file in self._files:
            file.close()
