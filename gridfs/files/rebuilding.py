"""A metadata database made anew from the newest checkpoint in the grid.

For a machine that has nothing, or whose own state is of no use any more: it is older than the journal packs
that are kept, or it went another way than the grid. Nothing is thrown away: what is replaced is renamed.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass

from gridfs.files.aside import set_aside
from gridfs.files.headstate import CLIENT_SIZE, NOBODY, Base, HeadState, save_base, save_head_state
from gridfs.files.runs import RunIn, batches, only_run, read_runs
from gridfs.grid.downloader import Downloader
from gridfs.meta.checkpoints import Loader
from gridfs.meta.ranges import Root, decode_root
from gridfs.meta.records import HeadBody
from gridfs.meta.store import Inode, Metadata, Sealer
from storage.headlog import HeadRecord
from storage.ports import Disk, Machine

logger = logging.getLogger(__name__)

PERMISSIONS = 0o7777
BATCH_BYTES = 16 << 20
"""Bytes of a checkpoint in memory while a database is made."""


class RebuildNeeded(Exception):
    """This machine's metadata cannot go on from where they are: they have to be made anew.

    `str()` is one line that says why.
    """

    def __init__(
        self,
        reason: str,
        newest: HeadRecord,
        body: HeadBody,
        root: Inode,
        client: bytes,
        *,
        keeps_spool: bool,
    ) -> None:
        super().__init__(reason)
        self.newest = newest
        self.body = body
        self.root = root
        """The root directory as it is here: no operation has made it."""
        self.client = client
        """Whose folder it is, and stays: what its runs have written is no stranger's. Zeros if nobody's."""
        self.keeps_spool = keeps_spool
        """Whether the spool is of the same history as the grid."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The root directory as it is made, where no checkpoint tells: no operation has made it."""

    mode: int
    """Permission bits."""
    uid: int
    gid: int
    time: int
    """Nanoseconds since 1970."""


async def rebuild(
    machine: Machine, downloader: Downloader, sealer: Sealer, needed: RebuildNeeded, database: str
) -> None:
    """Make the database at the path `database` from the checkpoint that a head record names, or an empty
    one where there is none; operations behind it follow when the epoch is claimed.

    What is there is set aside first, once the new one is whole. Raises what reading packs raises.
    """
    disk = machine.disk
    draft = clear_draft(disk, database)
    epoch, root = needed.newest.epoch, needed.root
    owner = Owner(root.mode & PERMISSIONS, root.uid, root.gid, root.mtime)
    mount_id = needed.client + bytes(len(NOBODY) - CLIENT_SIZE)
    number = await make_database(machine, downloader, sealer, needed.body, draft, owner, epoch, mount_id)
    disk.sync_directory(_parent(database))
    # The log of the old database must never be beside the new one, which it would damage: it goes first.
    set_aside(disk, database, "-wal")
    _remove(disk, f"{database}-shm")
    disk.replace(draft, database)
    disk.sync_directory(_parent(database))
    logger.warning("the metadata were made anew from the grid, up to operation %d: %s", number, needed)


async def make_database(
    machine: Machine,
    downloader: Downloader,
    sealer: Sealer,
    body: HeadBody,
    path: str,
    owner: Owner,
    epoch: int,
    mount_id: bytes = NOBODY,
) -> int:
    """Make a database at a path that is free, from the checkpoint that a head record's body names, or an
    empty one where there is none; returns the last operation in it.

    `epoch`: above it the next is claimed. `mount_id`: of whose folder it is. It is durable, but for its name.
    Raises what reading packs raises.
    """
    number = 0
    vfs = machine.disk.sqlite_vfs
    if body.checkpoint is None:
        Metadata.create(
            path,
            sealer,
            vfs=vfs,
            root_mode=owner.mode,
            root_uid=owner.uid,
            root_gid=owner.gid,
            time=owner.time,
        ).close()
    else:
        (found,) = await read_runs(downloader, [only_run(body.checkpoint)])
        root = decode_root(found)
        number = root.number
        await _load(machine, downloader, sealer, root, path)
    with closing(Metadata.open(path, sealer, vfs=vfs)) as metadata:
        state = HeadState(epoch, mount_id, shipped=number, gathered=number, emptied=number)
        state.heads, state.leaving = body.heads, body.leaving
        save_head_state(metadata, state)
        save_base(metadata, Base(body.checkpoint, number))
        metadata.commit()
        metadata.make_durable()
    return number


def put_in_place(disk: Disk, database: str) -> None:
    """Put the draft of `make_database` in the place of a database that is closed and of no use any more."""
    for suffix in ("-wal", "-shm"):
        _remove(disk, database + suffix)
    disk.replace(draft_of(database), database)
    disk.sync_directory(_parent(database))


def clear_draft(disk: Disk, database: str) -> str:
    """Remove what a process left that ended in the making; returns the draft's path."""
    draft = draft_of(database)
    for suffix in ("", "-wal", "-shm", "-journal"):
        _remove(disk, draft + suffix)
    return draft


def draft_of(database: str) -> str:
    """Where a database is made that is to take another's place."""
    return f"{database}.new"


def finish_rebuild(disk: Disk, database: str) -> None:
    """Where a process ended between the two renames of `rebuild`, make the second one."""
    names = disk.names(_parent(database))
    name = database.rpartition("/")[2]
    if name not in names and draft_of(name) in names:
        disk.replace(draft_of(database), database)
        disk.sync_directory(_parent(database))


async def _load(machine: Machine, downloader: Downloader, sealer: Sealer, root: Root, path: str) -> None:
    loader = Loader(path, machine.disk.sqlite_vfs, sealer, root)
    try:
        parts = sorted(root.parts, key=lambda part: (part.pack, part.run))
        runs = [RunIn(root.packs[p.pack], p.run, p.run_offset, p.run_length) for p in parts]
        families = iter(part.family for part in parts)
        for batch in batches(runs, BATCH_BYTES):
            for data in await read_runs(downloader, batch):
                await machine.offload.run(loader.add, next(families), data)
        await machine.offload.run(loader.finish)
    except BaseException:
        loader.give_up()
        raise


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _remove(disk: Disk, path: str) -> None:
    if path.rpartition("/")[2] in disk.names(_parent(path)):
        disk.remove(path)
