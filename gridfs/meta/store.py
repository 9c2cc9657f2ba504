"""The metadata of one file system: the state up to the operation `applied`, in SQLite.

All calls are synchronous and short, and are made in the loop; between two awaits of the caller they
are atomic. `apply` opens a transaction by itself and changes it by one operation or not at all;
`commit` ends it. What was applied and not yet committed is seen by every read here, and is lost when
the process dies: the spool replays it, and `apply` ignores numbers that are already in.

Failures: an operation that does not fit the state raises Corrupt and changes nothing. A commit that
fails (disk full) leaves the transaction open and whole, to be tried again: SQLite rolls it back, and
the steps since the last commit, which are kept for this, are made once more. Where that fails too, every
call tries it again before anything else, and raises what it raises: nobody sees a state without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import apsw

from gridfs.meta import schema
from gridfs.meta.bodies import Bodies
from gridfs.meta.checking import find_problems
from gridfs.meta.checkpoints import Checkpoints, Range, Snapshot
from gridfs.meta.clones import Clones
from gridfs.meta.commits import Commits
from gridfs.meta.inodes import Inodes
from gridfs.meta.names import Names
from gridfs.meta.namespace import Namespace, make_root
from gridfs.meta.operations import Attach, Clone, Commit, Detach, Operation, Retire, encode
from gridfs.meta.outbox import Outbox
from gridfs.meta.packs import Packs, key_hash
from gridfs.meta.ranges import KeptPart
from gridfs.meta.rows import ROOT, Entry, Extent, Garbage, Inode, Listed, Pack, Sealer, Totals
from gridfs.meta.schema import State, checkpoint_on_own_connection
from gridfs.meta.tree import Tree
from storage.errors import StorageError

__all__ = [
    "ROOT",
    "Entry",
    "Extent",
    "Garbage",
    "Inode",
    "Listed",
    "Metadata",
    "Pack",
    "Sealer",
    "Totals",
    "checkpoint_on_own_connection",
    "key_hash",
]

T = TypeVar("T")
P = ParamSpec("P")


def _whole(
    method: Callable[Concatenate[Metadata, P], T],
) -> Callable[Concatenate[Metadata, P], T]:
    """Let a method see the whole state, and raise storage errors instead of SQLite's."""

    @wraps(method)
    def call(self: Metadata, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            # A disk that fails, be it at a read, may make SQLite roll the transaction back by itself.
            if self._lacks_steps or (self._steps and not self._database.in_transaction):
                self._redo()
            return method(self, *args, **kwargs)
        except apsw.Error as error:
            raise schema.failure(error) from error

    return call


class Metadata:
    """One file system's metadata. Made by `create` or `open`, never directly.

    Any method may raise Corrupt (the database is damaged), Exhausted (the disk is full) or
    Unavailable (the disk failed).
    """

    def __init__(self, database: apsw.Connection, sealer: Sealer) -> None:
        self._sealer = sealer
        self._use(database)

    def _use(self, database: apsw.Connection) -> None:
        self._database = database
        self._state = State()
        self._packs = Packs(database, self._state, self._sealer)
        self._inodes = Inodes(database)
        self._names = Names(database, self._state)
        self._bodies = Bodies(database, self._state, self._inodes, self._packs)
        self._tree = Tree(database, self._inodes, self._names)
        shared = (self._state, self._inodes, self._names, self._tree, self._bodies)
        self._namespace = Namespace(database, *shared)
        self._clones = Clones(database, *shared, self._namespace)
        self._commits = Commits(self._packs, self._bodies, self._tree)
        self._outbox = Outbox(database, self._sealer)
        self._checkpoints = Checkpoints(database)
        self._steps: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        """Makes the open transaction once more, from the last commit on."""
        self._lacks_steps = False
        """It was rolled back, and not all steps are made again yet."""
        self._reserved = 0
        self._reload()

    @classmethod
    def create(
        cls,
        path: str,
        sealer: Sealer,
        *,
        vfs: str | None = None,
        root_mode: int = 0o755,
        root_uid: int = 0,
        root_gid: int = 0,
        time: int = 0,
    ) -> Metadata:
        """Make the database of an empty file system, durable on return but for its directory entry.

        `root_mode`: permission bits of the root directory. `vfs`: name of an apsw VFS (see `open`).
        A creation that was killed half-way is done anew. Raises Refused where there is a database.
        """
        database = schema.create(path, vfs)
        try:
            with database:
                schema.make_tables(database)
                make_root(database, root_mode, root_uid, root_gid, time)
            schema.checkpoint(database)
            return cls(database, sealer)
        except apsw.Error as error:
            database.close(True)
            raise schema.failure(error, path) from error
        except BaseException:
            database.close(True)
            raise

    @classmethod
    def open(cls, path: str, sealer: Sealer, *, vfs: str | None = None) -> Metadata:
        """Open the database at `path`.

        With a `vfs` of its own (simulation) the file is locked exclusively, because such a disk has no
        shared memory: no second connection then, `make_durable` instead. Raises Missing where there is
        no file, Refused for an unknown format version, Corrupt for a damaged or unfinished database.
        """
        database = schema.open_existing(path, vfs)
        try:
            return cls(database, sealer)
        except apsw.Error as error:
            database.close(True)
            raise schema.failure(error, path) from error
        except BaseException:
            database.close(True)
            raise

    def switch(self, path: str, *, vfs: str | None = None) -> None:
        """Go on with the database at `path`, like `open`; this one must be closed."""
        self._use(schema.open_existing(path, vfs))

    @_whole
    def inodes(self) -> list[int]:
        """Numbers of all inodes."""
        self._flush(self._inodes.flush)
        return [ino for (ino,) in self._database.execute("SELECT ino FROM inode")]

    @schema.translated
    def close(self, *, checkpoint: bool = True) -> None:
        """Idempotent. What was not committed is dropped; the spool has it. `checkpoint`: put SQLite's log
        into the database; else the next who opens it does."""
        self._steps.clear()
        self._lacks_steps = False
        schema.close(self._database, checkpoint=checkpoint)

    # Transactions

    @property
    def applied(self) -> int:
        """Number of the last operation in the state, the open transaction included; 0 at the start."""
        return self._state.applied

    @property
    def in_transaction(self) -> bool:
        """Whether anything waits for `commit`."""
        return bool(self._steps)

    @_whole
    def apply(self, number: int, operation: Operation, encoded: bytes | None = None) -> None:
        """Make one change within the open transaction; a number not above `applied` is ignored.

        `encoded`: the operation, from one who has that already. Permissions are the caller's. Raises Corrupt,
        with nothing changed, where the operation does not fit the state. Everything that is not ignored also
        goes to the outbox.
        """
        if number <= self._state.applied:
            return
        if encoded is None:
            encoded = encode(operation)
        self._change(self._apply, self.apply, number, operation, encoded)

    def _apply(self, number: int, operation: Operation, encoded: bytes) -> None:
        if isinstance(operation, Commit):
            self._commits.apply(operation, number)
        elif isinstance(operation, Retire):
            self._packs.retire(operation.pack_ids, number)
        elif isinstance(operation, Clone | Attach | Detach):
            self._clones.apply(operation, number)
        else:
            self._namespace.apply(operation, number)
        self._outbox.put(number, operation, encoded)
        self._state.applied = number

    @_whole
    def commit(self) -> None:
        """End the transaction: atomic, and kept when the process dies; durable after a checkpoint.

        Raises Exhausted or Unavailable where the disk refuses: then the transaction is still open and
        whole, and commit may be called again.
        """
        if not self._steps:
            return
        try:
            self._write_waiting()
            schema.save(self._database, self._state)
            self._database.execute("COMMIT")
        except BaseException:
            self._redo()
            raise
        self._steps.clear()

    @_whole
    def make_durable(self) -> bool:
        """`checkpoint_on_own_connection` on this connection, in the loop; not inside a transaction."""
        if self._steps:
            raise RuntimeError("make_durable inside a transaction")
        return schema.checkpoint(self._database)

    @_whole
    def work(self, limit_rows: int = 1000) -> bool:
        """Clear away up to `limit_rows` extents of cut and dropped bodies, in the open transaction.

        Returns whether more is left. Has no effect that an inode or a read shows; live bytes fall.
        """
        if not self._bodies.has_work:
            return False
        return self._change(self._bodies.work, self.work, limit_rows)

    @_whole
    def revoke(self, number: int) -> None:
        """Take back the operation that was applied last, `number`; nobody was told of it."""
        assert self._steps
        assert self._state.applied == number
        self._steps.pop()
        self._redo()

    def _change(self, step: Callable[..., T], again: Callable[..., object], *arguments: Any) -> T:
        """Make one step of the open transaction, wholly or not at all; `again` makes it once more."""
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")
        before = self._changes()
        try:
            result = step(*arguments)
        except BaseException:
            if self._changes() != before or not self._database.in_transaction:
                self._redo()
            elif not self._steps:
                self._database.execute("ROLLBACK")
            raise
        self._steps.append((again, arguments))
        return result

    def _changes(self) -> int:
        kept = self._inodes.changes + self._names.changes + self._packs.changes
        return self._database.total_changes() + kept

    def _flush(self, *kept: Callable[[], None]) -> None:
        """Before the tables themselves are read: what waits in memory for them, or for any, goes there."""
        try:
            for flush in kept or (self._write_waiting,):
                flush()
        except BaseException:
            self._redo()
            raise

    def _write_waiting(self) -> None:
        for each in (self._inodes, self._names, self._bodies, self._packs, self._outbox):
            each.flush()

    def _reload(self) -> None:
        schema.load(self._database, self._state)
        for each in (self._inodes, self._names, self._packs):
            each.forget()
        self._bodies.reload()
        self._outbox.forget(self._state.applied)

    def _redo(self) -> None:
        """Go back to the last commit and make all steps again; where that fails, the next call does."""
        if not self._lacks_steps:
            self._reserved = self._state.next_inode
        self._lacks_steps = True
        steps = self._steps
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")
        self._reload()
        # Numbers are never given twice, also those that nothing was made for yet.
        self._state.next_inode = max(self._state.next_inode, self._reserved)
        self._lacks_steps = False
        self._steps = []
        try:
            for step, arguments in steps:
                step(*arguments)
        except BaseException:
            self._steps = steps
            self._lacks_steps = True
            raise

    # Inodes and names

    @_whole
    def reserve_inode(self) -> int:
        """A number that no inode has had. If no Make is logged for it, it may come again after a crash."""
        ino = self._state.next_inode
        self._state.next_inode = ino + 1
        return ino

    @_whole
    def inode(self, ino: int) -> Inode | None:
        return self._tree.inode(ino)

    @_whole
    def lookup(self, parent: int, name: bytes) -> int | None:
        """The inode of a name, or None."""
        return self._tree.lookup(parent, name)

    @_whole
    def parent_of(self, ino: int) -> int:
        """The directory in which a directory lies; the root's is the root. Raises Missing."""
        return self._tree.parent_of(ino)

    def path_of(self, ino: int) -> str:
        """Where an inode lies, for a person: one of its paths, or "inode N" where none is known."""
        try:
            if self._database.in_transaction:
                self._flush()
            return self._tree.path_of(ino)
        except (apsw.Error, StorageError):
            return f"inode {ino}"

    @_whole
    def entries(self, parent: int, after_cookie: int = 0, limit: int = 1000) -> list[Entry]:
        """Up to `limit` entries whose cookie is above `after_cookie`, by cookie. No `.` and `..`.

        A name keeps its cookie when it is renamed within its directory or replaced by a rename.
        """
        self._flush(self._names.flush)
        return self._tree.entries(parent, after_cookie, limit)

    @_whole
    def listing(self, parent: int, after_cookie: int = 0, limit: int = 1000) -> list[Listed]:
        """Like `entries`, each with its inode."""
        self._flush(self._inodes.flush, self._names.flush)
        return self._tree.listing(parent, after_cookie, limit)

    @property
    def last_cookie(self) -> int:
        """The highest cookie given so far: a listing that stops there ends, whatever is created meanwhile."""
        return self._state.next_cookie - 1

    @_whole
    def has_entries(self, parent: int) -> bool:
        self._flush(self._names.flush)
        return self._tree.has_entries(parent)

    @_whole
    def xattr(self, ino: int, name: bytes) -> bytes | None:
        return self._tree.xattr(ino, name)

    @_whole
    def xattrs(self, ino: int) -> list[bytes]:
        """Names of an inode's extended attributes, sorted."""
        return self._tree.xattrs(ino)

    @_whole
    def orphans(self) -> list[int]:
        """Inodes without a name, which a Drop ends; ascending."""
        self._flush(self._inodes.flush)
        return self._tree.orphans()

    @_whole
    def detached(self) -> list[int]:
        """Directories that nobody sees, with all that lies in them: clones that were not finished, and
        snapshots that were deleted; ascending."""
        return self._tree.detached()

    # Data

    @_whole
    def extents(self, ino: int, start: int, end: int) -> list[Extent]:
        """Extents that overlap [start, end), whole (not clipped), by start; gaps read as zeros."""
        return self._bodies.extents(ino, start, end)

    @_whole
    def pack(self, pack_ref: int) -> Pack:
        """Raises Missing for a reference that this store never gave."""
        return self._packs.pack(pack_ref)

    @_whole
    def find_pack(self, pack_id: bytes) -> int | None:
        return self._packs.find_pack(pack_id)

    @_whole
    def find_convergent(self, key_hash: bytes) -> int | None:
        """The convergent pack of known content, by `key_hash(key)`; garbage is found as well."""
        return self._packs.find_convergent(key_hash)

    @_whole
    def owing(self, after: int, up_to: int) -> list[int]:
        """References above `after`, up to `up_to`, of packs in use that lack shares; ascending.

        Reads each of these packs' rows: ask for a few thousand at a time.
        """
        return self._packs.owing(after, up_to)

    @property
    def last_pack(self) -> int:
        """The highest reference that a pack has had."""
        return self._state.next_pack - 1

    @_whole
    def garbage(self, limit: int = 1000) -> list[Garbage]:
        """Packs that nothing refers to, longest dead first. A Commit that names one takes it back."""
        return self._packs.garbage(limit)

    def totals(self) -> Totals:
        """Kept up to date with every operation; costs nothing."""
        return self._state.totals()

    # What still has to be shipped, and small values

    @_whole
    def outbox(self, after: int, limit_bytes: int) -> list[tuple[int, bytes]]:
        """Encoded operations with numbers above `after`, in order: at least one if there is any, else
        as many as fit into `limit_bytes`. Successive Writes to one inode are one, under the last number.
        """
        self._flush(self._outbox.flush)
        return self._outbox.rows(after, limit_bytes)

    @_whole
    def drop_outbox(self, up_to: int) -> None:
        """Forget what was shipped, in the open transaction."""
        self._change(self._outbox.drop, self.drop_outbox, up_to)

    # Checkpoints

    @_whole
    def begin_checkpoint(self, path: str | None) -> Snapshot:
        """A snapshot of everything up to `applied`, whose ranges are those that changed since the newest
        checkpoint. Ends the open transaction. `path`: of this database, for a connection of its own; None
        where it can have none. The caller closes the snapshot.
        """
        self._change(self._take_checkpoint, self._take_checkpoint)
        self.commit()
        if path is None:
            return Snapshot(self._database, self._sealer, shared=True)
        database = schema.connect_reading(path)
        try:
            return Snapshot(database, self._sealer, shared=False)
        except BaseException:
            database.close()
            raise

    def _take_checkpoint(self) -> None:
        self._write_waiting()  # what that touches is this checkpoint's business
        self._checkpoints.take()

    @_whole
    def finish_checkpoint(self, ranges: Sequence[Range], parts: Sequence[KeptPart]) -> None:
        """The checkpoint is stored and named in the grid; in the open transaction."""
        self._change(self._checkpoints.finish, self.finish_checkpoint, ranges, parts)

    @_whole
    def superseded(self, in_use: Sequence[bytes]) -> list[bytes]:
        """Ids of journal and checkpoint packs that neither the newest checkpoint nor `in_use` names."""
        return self._checkpoints.superseded(in_use)

    @_whole
    def get_value(self, name: str) -> bytes | None:
        return schema.get_value(self._database, name)

    @_whole
    def set_value(self, name: str, value: bytes) -> None:
        """Keep a small value, in the open transaction."""
        self._change(partial(schema.set_value, self._database), self.set_value, name, value)

    @_whole
    def check(self) -> list[str]:
        """Read everything and name each broken invariant of SPEC.md; empty when all is well. Slow."""
        self._flush()
        return find_problems(self._database, self._state)
