"""A metadata database made anew from the newest checkpoint in the grid.

For a machine that has nothing, or whose own state is of no use any more: it is older than the journal packs
that are kept, or it went another way than the grid. Nothing is thrown away: what is replaced is renamed.
"""

from __future__ import annotations

import logging

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


async def rebuild(
    machine: Machine, downloader: Downloader, sealer: Sealer, needed: RebuildNeeded, database: str
) -> None:
    """Make the database at the path `database` from the checkpoint that a head record names, or an empty
    one where there is none; operations behind it follow when the epoch is claimed.

    What is there is set aside first, once the new one is whole. Raises what reading packs raises.
    """
    disk = machine.disk
    draft = f"{database}.new"
    for suffix in ("", "-wal", "-shm", "-journal"):
        _remove(disk, draft + suffix)
    number = 0
    if needed.body.checkpoint is None:
        Metadata.create(
            draft,
            sealer,
            vfs=disk.sqlite_vfs,
            root_mode=needed.root.mode & PERMISSIONS,
            root_uid=needed.root.uid,
            root_gid=needed.root.gid,
            time=needed.root.mtime,
        ).close()
    else:
        (found,) = await read_runs(downloader, [only_run(needed.body.checkpoint)])
        root = decode_root(found)
        number = root.number
        await _load(machine, downloader, sealer, root, draft)
    metadata = Metadata.open(draft, sealer, vfs=disk.sqlite_vfs)
    try:
        epoch = needed.newest.epoch
        mount_id = needed.client + bytes(len(NOBODY) - CLIENT_SIZE)
        state = HeadState(epoch, mount_id, shipped=number, gathered=number, emptied=number)
        save_head_state(metadata, state)
        save_base(metadata, Base(needed.body.checkpoint, number))
        metadata.commit()
        metadata.make_durable()
    finally:
        metadata.close()
    disk.sync_directory(_parent(database))
    # The log of the old database must never be beside the new one, which it would damage: it goes first.
    set_aside(disk, database, "-wal")
    _remove(disk, f"{database}-shm")
    disk.replace(draft, database)
    disk.sync_directory(_parent(database))
    logger.warning("the metadata were made anew from the grid, up to operation %d: %s", number, needed)


def finish_rebuild(disk: Disk, database: str) -> None:
    """Where a process ended between the two renames of `rebuild`, make the second one."""
    names = disk.names(_parent(database))
    name = database.rpartition("/")[2]
    if name not in names and f"{name}.new" in names:
        disk.replace(f"{database}.new", database)
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
