"""The database file: its tables and version, how it is opened, and how it is made durable.

SPEC.md has the tables field by field. The database is in WAL mode with synchronous=NORMAL: a commit
is atomic and outlives the process; it outlives the machine after a checkpoint, which the caller makes
in a worker thread. `cache_spill` is off, so that only a commit writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import apsw
import msgspec

from gridfs.meta.operations import MAX_INTEGER
from gridfs.meta.rows import FIRST_COOKIE, Totals
from storage.errors import Corrupt, Exhausted, Missing, Refused, StorageError, Unavailable

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

APPLICATION_ID = 0x67726664
"""`grfd`, in SQLite's header: a gridfs metadata database."""
FORMAT_VERSION = 2

CACHE_KIB = 32768
AUTO_CHECKPOINT_PAGES = 16384
"""64 MiB of log: a bound in case that nobody checkpoints in a thread."""

TABLES = """
CREATE TABLE value (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID, STRICT;
CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), value BLOB NOT NULL) STRICT;
CREATE TABLE inode (
    ino INTEGER PRIMARY KEY, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
    size INTEGER NOT NULL, nlink INTEGER NOT NULL, atime INTEGER NOT NULL, mtime INTEGER NOT NULL,
    ctime INTEGER NOT NULL, rdev INTEGER NOT NULL, target BLOB, parent INTEGER, body INTEGER,
    held INTEGER NOT NULL DEFAULT 0, read_only INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE detached (ino INTEGER PRIMARY KEY) STRICT;
CREATE TABLE entry (
    parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, cookie INTEGER NOT NULL,
    type INTEGER NOT NULL, PRIMARY KEY (parent, name)
) WITHOUT ROWID, STRICT;
CREATE TABLE xattr (
    ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (ino, name)
) WITHOUT ROWID, STRICT;
CREATE TABLE extent (
    body INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL, pack INTEGER NOT NULL,
    run INTEGER NOT NULL, run_offset INTEGER NOT NULL, run_length INTEGER NOT NULL,
    skip INTEGER NOT NULL, frozen INTEGER NOT NULL, PRIMARY KEY (body, start)
) WITHOUT ROWID, STRICT;
CREATE TABLE cut (
    body INTEGER NOT NULL, number INTEGER NOT NULL, position INTEGER NOT NULL, ino INTEGER NOT NULL,
    PRIMARY KEY (body, number)
) WITHOUT ROWID, STRICT;
CREATE TABLE copy (body INTEGER PRIMARY KEY, base INTEGER NOT NULL, ino INTEGER NOT NULL) STRICT;
CREATE TABLE server (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE) STRICT;
CREATE TABLE pack (
    ref INTEGER PRIMARY KEY, pack_id BLOB NOT NULL UNIQUE, kind INTEGER NOT NULL, k INTEGER NOT NULL,
    n INTEGER NOT NULL, stream_length INTEGER NOT NULL, sealed_key BLOB NOT NULL, key_hash BLOB,
    places BLOB NOT NULL, missing BLOB NOT NULL, debt INTEGER NOT NULL, live INTEGER NOT NULL
) STRICT;
CREATE TABLE garbage (pack INTEGER PRIMARY KEY, since INTEGER NOT NULL) STRICT;
CREATE TABLE outbox (number INTEGER PRIMARY KEY, payload BLOB NOT NULL) STRICT;
CREATE TABLE touched (
    family INTEGER NOT NULL, bucket INTEGER NOT NULL, PRIMARY KEY (family, bucket)
) WITHOUT ROWID, STRICT;
CREATE TABLE taken (
    family INTEGER NOT NULL, bucket INTEGER NOT NULL, PRIMARY KEY (family, bucket)
) WITHOUT ROWID, STRICT;
CREATE TABLE kept (
    family INTEGER NOT NULL, bucket INTEGER NOT NULL, part INTEGER NOT NULL, pack BLOB NOT NULL,
    run INTEGER NOT NULL, run_offset INTEGER NOT NULL, run_length INTEGER NOT NULL,
    PRIMARY KEY (family, bucket, part)
) WITHOUT ROWID, STRICT;
"""

INDEXES = """
CREATE INDEX orphan ON inode (ino) WHERE nlink = 0;
CREATE INDEX entry_cookie ON entry (parent, cookie, ino);
CREATE INDEX entry_ino ON entry (ino);
CREATE INDEX convergent ON pack (key_hash) WHERE key_hash IS NOT NULL;
CREATE INDEX pack_kind ON pack (kind) WHERE kind != 0;
CREATE INDEX garbage_age ON garbage (since);
"""

BUCKET_BITS = 10
"""A range of rows for checkpoints: 1024 inodes, bodies or packs with all that belongs to them."""


class Table(NamedTuple):
    """A table whose rows go into checkpoints."""

    name: str
    columns: tuple[str, ...]
    key: str
    """The column by which its rows are dealt into ranges; there is an index that begins with it."""


FAMILIES: tuple[tuple[Table, ...], ...] = (
    (
        Table(
            "inode",
            (
                "ino", "mode", "uid", "gid", "size", "nlink", "atime", "mtime", "ctime", "rdev", "target",
                "parent", "body", "held", "read_only",
            ),
            "ino",
        ),
        Table("entry", ("parent", "name", "ino", "cookie", "type"), "ino"),
        Table("xattr", ("ino", "name", "value"), "ino"),
        Table("detached", ("ino",), "ino"),
    ),
    (
        Table(
            "extent",
            ("body", "start", "length", "pack", "run", "run_offset", "run_length", "skip", "frozen"),
            "body",
        ),
        Table("cut", ("body", "number", "position", "ino"), "body"),
        Table("copy", ("body", "base", "ino"), "body"),
    ),
    (
        Table(
            "pack",
            (
                "ref", "pack_id", "kind", "k", "n", "stream_length", "sealed_key", "key_hash", "places",
                "missing", "debt", "live",
            ),
            "ref",
        ),
        Table("garbage", ("pack", "since"), "pack"),
    ),
)  # fmt: skip
"""What a checkpoint holds, by family: inodes, bodies, packs. A row of `touched` names a range in which
something changed since the last checkpoint; triggers put it there, in the transaction of the change."""


def _triggers() -> str:
    statements = []
    for family, tables in enumerate(FAMILIES):
        for table in tables:
            # Only an entry is ever moved into another range, when a rename replaces its inode.
            moved = ("OLD", "NEW") if table.name == "entry" else ("NEW",)
            for event, rows in (("INSERT", ("NEW",)), ("DELETE", ("OLD",)), ("UPDATE", moved)):
                touch = "".join(
                    f" INSERT OR IGNORE INTO touched VALUES ({family}, {row}.{table.key} >> {BUCKET_BITS});"  # noqa: S608
                    for row in rows
                )
                statements.append(
                    f"CREATE TRIGGER touched_{table.name}_{event.lower()} AFTER {event} ON {table.name}"
                    f" BEGIN{touch} END;\n"
                )
    return "".join(statements)


TRIGGERS = _triggers()


class State(msgspec.Struct, array_like=True):
    """Counters of the file system, kept in memory and written with each commit, in this order."""

    applied: int = 0
    next_inode: int = 2
    next_cookie: int = FIRST_COOKIE
    next_body: int = 1
    next_pack: int = 1
    files: int = 0
    directories: int = 1
    bytes: int = 0
    packs: int = 0
    live_bytes: int = 0
    missing_shares: int = 0

    def add_bytes(self, change: int) -> None:
        """Modulo 2**63: a handful of the largest sparse files have more than an integer holds."""
        self.bytes = (self.bytes + change) & MAX_INTEGER

    def totals(self) -> Totals:
        return Totals(
            self.files, self.directories, self.bytes, self.packs, self.live_bytes, self.missing_shares
        )


def failure(error: apsw.Error, path: str = "") -> StorageError:
    """What an error of SQLite means for the caller."""
    where = f" {path}" if path else ""
    if isinstance(error, apsw.FullError):
        return Exhausted(f"no room for the metadata database{where}: {error}")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError | apsw.SQLError | apsw.ConstraintError):
        return Corrupt(f"metadata database{where} is damaged: {error}")
    return Unavailable(f"metadata database{where} cannot be used: {error}")


def translated(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Let a method raise storage errors instead of SQLite's."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except apsw.Error as error:
            raise failure(error) from error

    return call


def create(path: str, vfs: str | None) -> apsw.Connection:
    """An open connection inside no transaction, on a database without a finished format.

    Raises Refused where there is a finished one.
    """
    try:
        database = _connect(path, vfs, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        try:
            if _number(database, "application_id") or _number(database, "user_version"):
                raise Refused(f"{path} is already a database")
            if database.execute("SELECT count(*) FROM sqlite_schema").get:
                raise Refused(f"{path} is a database of something else")
            _configure(database)
        except BaseException:
            database.close(True)
            raise
    except apsw.Error as error:
        raise failure(error, path) from error
    return database


def make_tables(database: apsw.Connection) -> None:
    """The tables, the first state and the format's marks, in the open transaction."""
    make_bare_tables(database)
    finish_tables(database, msgspec.msgpack.encode(State()))


def make_bare_tables(database: apsw.Connection) -> None:
    """Tables to be filled with what is known already, in the open transaction."""
    database.execute(TABLES)


def finish_tables(database: apsw.Connection, state: bytes) -> None:
    """What makes filled tables a database: indexes, triggers, counters and marks, in the open transaction."""
    database.execute(INDEXES)
    database.execute(TRIGGERS)
    database.execute("INSERT INTO state VALUES (1, ?)", (state,))
    load(database, State())  # raises Corrupt where the counters cannot be read
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {FORMAT_VERSION}")


def open_existing(path: str, vfs: str | None) -> apsw.Connection:
    """Raises Missing, Refused (unknown version) or Corrupt."""
    try:
        database = _connect(path, vfs, apsw.SQLITE_OPEN_READWRITE)
    except apsw.CantOpenError as error:
        raise Missing(f"no metadata database at {path}") from error
    try:
        application, version = _number(database, "application_id"), _number(database, "user_version")
        if application != APPLICATION_ID:
            raise Corrupt(f"{path} is not a finished gridfs metadata database")
        if version != FORMAT_VERSION:
            raise Refused(
                f"{path} has metadata format {version}, this gridfs knows {FORMAT_VERSION}: "
                "use the gridfs that wrote it"
            )
        _configure(database)
    except apsw.Error as error:
        database.close(True)
        raise failure(error, path) from error
    except BaseException:
        database.close(True)
        raise
    return database


def connect_reading(path: str) -> apsw.Connection:
    """A connection that only reads, for a snapshot in another thread."""
    return _connect(path, None, apsw.SQLITE_OPEN_READONLY)


def close(database: apsw.Connection, *, checkpoint: bool) -> None:
    """Close a connection; idempotent. `checkpoint`: SQLite's log goes into the database."""
    if not checkpoint:
        with contextlib.suppress(apsw.ConnectionClosedError):
            database.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    database.close()


def checkpoint_on_own_connection(path: str, vfs: str | None = None) -> bool:
    """Make what is committed so far durable, through a second connection: for a worker thread.

    True: everything committed before the call survives the loss of power (the log was synced, then
    copied into the database as far as it went at the start). False: another checkpoint was under way
    or an old reader kept frames back, so nothing is promised; call again. The loop's own calls are not
    held up. Not for a database that was opened with a `vfs` of its own: see `Metadata.make_durable`.
    Idempotent. Raises Missing, Exhausted, Unavailable or Corrupt.
    """
    try:
        database = _connect(path, vfs, apsw.SQLITE_OPEN_READWRITE)
    except apsw.CantOpenError as error:
        raise Missing(f"no metadata database at {path}") from error
    try:
        database.execute("PRAGMA wal_autocheckpoint = 0")
        return checkpoint(database)
    except apsw.Error as error:
        raise failure(error, path) from error
    finally:
        database.close()


def checkpoint(database: apsw.Connection) -> bool:
    """One passive checkpoint with full syncs; whether all that was committed before is durable now."""
    synchronous = _number(database, "synchronous")
    database.execute("PRAGMA synchronous = FULL")
    try:
        # A first statement on a connection makes it see the log at all.
        database.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        ((busy, frames, copied),) = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    finally:
        database.execute(f"PRAGMA synchronous = {synchronous}")
    return not busy and frames == copied


def load(database: apsw.Connection, state: State) -> None:
    """Fill `state` in place with what was committed last. Raises Corrupt."""
    row = database.execute("SELECT value FROM state").fetchone()
    try:
        stored = msgspec.msgpack.decode(row[0], type=State) if row else None
    except msgspec.MsgspecError as error:
        raise Corrupt(f"state of the metadata cannot be read: {error}") from error
    if stored is None:
        raise Corrupt("metadata database has no state")
    for field in State.__struct_fields__:
        setattr(state, field, getattr(stored, field))


def get_state(database: apsw.Connection) -> bytes:
    """The counters as they are stored."""
    row: Any = database.execute("SELECT value FROM state").fetchone()
    return bytes(row[0])


def save(database: apsw.Connection, state: State) -> None:
    database.execute("INSERT OR REPLACE INTO state VALUES (1, ?)", (msgspec.msgpack.encode(state),))


def get_value(database: apsw.Connection, name: str) -> bytes | None:
    row: Any = database.execute("SELECT value FROM value WHERE name = ?", (name,)).fetchone()
    return bytes(row[0]) if row else None


def set_value(database: apsw.Connection, name: str, value: bytes) -> None:
    database.execute("INSERT OR REPLACE INTO value VALUES (?, ?)", (name, value))


def _connect(path: str, vfs: str | None, flags: int) -> apsw.Connection:
    database = apsw.Connection(path, flags=flags, vfs=vfs)
    # Without this a statement is planned anew, which costs more than all else, each time that one of its
    # limits has another value: SQLite might choose another index for it. Here it never should.
    database.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    if vfs is not None:
        # Before anything is read: without shared memory the log cannot be opened in any other mode.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
    return database


def _number(database: apsw.Connection, pragma: str) -> int:
    value = database.execute(f"PRAGMA {pragma}").get
    assert isinstance(value, int)
    return value


def _configure(database: apsw.Connection) -> None:
    database.execute("PRAGMA journal_mode = WAL")
    for setting in (
        "synchronous = NORMAL",
        "cache_spill = OFF",
        f"cache_size = -{CACHE_KIB}",
        f"wal_autocheckpoint = {AUTO_CHECKPOINT_PAGES}",
        "temp_store = MEMORY",
    ):
        database.execute(f"PRAGMA {setting}")
