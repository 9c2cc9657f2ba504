"""The composition root: the one place that builds the object graph of a mounted file system.

`open_filesystem` builds everything below the front end on any `Machine`, the simulated one included;
`gridfs.daemon` adds FUSE and the control socket for a real one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from blake3 import blake3

from gridfs.codec.cipher import open_blob, seal_blob
from gridfs.codec.headkeys import HeadKeys
from gridfs.codec.keys import KeyTree
from gridfs.config import Config
from gridfs.files.contents import Contents, ContentsConfig
from gridfs.files.dirty import DirtyData
from gridfs.files.filesystem import FileSystem, FileSystemConfig
from gridfs.files.freezing import FreezeConfig, Freezer
from gridfs.files.headstate import HeadState, load_head_state
from gridfs.files.history import History
from gridfs.files.journal import Journal, JournalConfig
from gridfs.files.leftover import note_leftover
from gridfs.files.log import LogConfig, OperationLog
from gridfs.files.namespace import Namespace
from gridfs.files.readahead import Prefetcher, ReadaheadConfig
from gridfs.files.reader import Reader, ReaderConfig
from gridfs.files.replay import replay
from gridfs.files.spool import Spool
from gridfs.files.stamps import Stamps
from gridfs.files.trees import Trees, TreesConfig
from gridfs.files.writer import Writer, WriterConfig
from gridfs.grid.capacity import Capacity, CapacityConfig
from gridfs.grid.downloader import Downloader
from gridfs.grid.heads import HeadServers
from gridfs.grid.roster import Roster
from gridfs.grid.uploader import Uploader
from gridfs.meta.records import Settings
from gridfs.meta.store import Metadata
from storage.client import StorageClient
from storage.ports import Entropy, Machine

_SPOOL_KEY = "gridfs 2026 spool key"
_SEALER_KEY = "gridfs 2026 metadata sealing key"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What `-o` sets, in bytes and seconds."""

    read_only: bool = False
    fsync: str = "grid"
    allow_other: bool = False
    attr_timeout_s: float = 60.0
    grid_timeout_s: float = 30.0
    memory_bytes: int = 96 << 20
    spool_bytes: int = 4 << 30
    atime: bool = True
    """Reads move access times, by the rule of relatime."""
    acl: bool = True
    """POSIX access control lists."""
    own_init: bool = True
    """Agree with the kernel ourselves on what it asks; else libfuse does."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What stands when a file system is open; for status and tests."""

    files: FileSystem
    log: OperationLog
    dirty: DirtyData
    writer: Writer
    journal: Journal
    prefetcher: Prefetcher
    downloader: Downloader
    uploader: Uploader
    capacity: Capacity
    clients: dict[bytes, StorageClient]
    roster: Roster


class LocalSealer:
    """Seals secrets in the local database."""

    def __init__(self, local_key: bytes, entropy: Entropy) -> None:
        self._key = blake3(local_key, derive_key_context=_SEALER_KEY).digest()
        self._entropy = entropy

    def seal(self, data: bytes) -> bytes:
        return seal_blob(self._key, self._entropy.token(12), data)

    def open(self, data: bytes) -> bytes:
        return open_blob(self._key, data)


def spool_key(keys: KeyTree) -> bytes:
    """What the spool's slots are sealed under, in the end."""
    return blake3(keys.local_key, derive_key_context=_SPOOL_KEY).digest()


@asynccontextmanager
async def open_filesystem(
    machine: Machine,
    config: Config,
    roster: Roster,
    keys: KeyTree,
    database: str,
    spool_directory: str,
    options: MountOptions,
    former: tuple[KeyTree, ...] = (),
) -> AsyncIterator[Parts]:
    """Open a file system and run it until the block is left; what is not in the grid stays in the spool.

    Replays the spool, claims the head log, and starts every component. `former`: keys of older generations
    whose records may still be the newest. Raises NotEnoughServers where too few head servers answer,
    TakenOver, and the storage errors of a damaged database or spool.
    """
    heads = head_keys(config, keys, former)
    sealer = LocalSealer(keys.local_key, machine.entropy)
    metadata = Metadata.open(database, sealer, vfs=machine.disk.sqlite_vfs)
    spool = Spool(machine, spool_directory, spool_key(keys), options.spool_bytes)
    try:
        log = OperationLog(machine, metadata, database, spool, LogConfig())
        dirty = DirtyData(log)
        head_state = load_head_state(metadata)
        replay(log, dirty, head_state.emptied)
        async with trio.open_nursery() as nursery:
            parts = await _start(machine, config, roster, heads, options, log, dirty, head_state, nursery)
            yield parts
            nursery.cancel_scope.cancel()
        note_leftover(metadata, log.number, dirty.bytes, head_state.shipped)
        log.commit()
    finally:
        try:
            metadata.close()
        finally:
            spool.close()


def head_keys(config: Config, keys: KeyTree, former: tuple[KeyTree, ...] = ()) -> HeadKeys:
    """As whom a file system's client speaks to the head servers."""
    first_key = config.first_key or keys.verifying_key
    return HeadKeys(keys, first_key, config.recovery_public, config.succession, former)


async def _start(
    machine: Machine,
    config: Config,
    roster: Roster,
    keys: HeadKeys,
    options: MountOptions,
    log: OperationLog,
    dirty: DirtyData,
    head_state: HeadState,
    nursery: trio.Nursery,
) -> Parts:
    """Build the graph from the servers up, start its tasks, and claim the head log."""
    clients = {
        server.server_id: StorageClient(server.access, machine.network, machine.entropy) for server in roster
    }
    for client in clients.values():
        await nursery.start(client.run)
    downloader = Downloader(clients, roster)
    uploader = Uploader(
        clients, roster, config.file_system, config.k, config.n, config.happy, config.shares_per_server
    )
    capacity = Capacity(clients, CapacityConfig(config.k, config.n))
    heads = HeadServers(clients, config.head_servers, roster, keys.log)

    sealed_bytes = options.memory_bytes * 3 // 10
    secret = keys.tree.convergence_secret
    writer_config = WriterConfig(config.k, config.n, secret, sealed_bytes_max=sealed_bytes)
    freezer = Freezer(log, dirty, FreezeConfig(config.k))
    writer = Writer(machine, log, dirty, uploader, freezer, lambda: head_state.stamp, writer_config)
    settings = Settings(
        config.file_system,
        config.k,
        config.n,
        config.happy,
        config.shares_per_server,
        config.recovery_public,
    )
    journal_config = JournalConfig(config.k, config.n, config.quorum, settings, config.head_generation)
    history = History(heads, downloader, keys)
    journal = Journal(machine, log, dirty, writer, uploader, heads, history, keys, head_state, journal_config)

    reader = Reader(log.metadata, dirty, log.spool, downloader, ReaderConfig())
    prefetcher = Prefetcher(reader, ReadaheadConfig(budget_bytes=options.memory_bytes // 3))
    stamps = Stamps(machine.clock)
    contents = Contents(log, dirty, writer, prefetcher, stamps, ContentsConfig())
    namespace = Namespace(log, contents, stamps)
    trees = Trees(log, dirty, contents, namespace, journal, stamps, TreesConfig())
    files_config = FileSystemConfig(options.read_only, options.fsync, options.grid_timeout_s)
    files = FileSystem(log, dirty, writer, journal, contents, namespace, trees, capacity, files_config)
    await nursery.start(downloader.run)
    if not options.read_only:
        await journal.claim(len(config.head_servers) - config.quorum + 1)
        namespace.drop_orphans()
        await nursery.start(log.run)
        await nursery.start(writer.run)
        await nursery.start(journal.run)
        await nursery.start(trees.run)
    await nursery.start(prefetcher.run)
    await nursery.start(capacity.run)
    return Parts(
        files=files,
        log=log,
        dirty=dirty,
        writer=writer,
        journal=journal,
        prefetcher=prefetcher,
        downloader=downloader,
        uploader=uploader,
        capacity=capacity,
        clients=clients,
        roster=roster,
    )
