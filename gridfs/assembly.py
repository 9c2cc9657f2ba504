"""The composition root: the one place that builds the object graph of a mounted file system.

`open_filesystem`, and `follow_filesystem` for one that is only read, build everything below the front end on
any `Machine`, the simulated one included; `gridfs.daemon` adds FUSE and the control socket for a real one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio
from blake3 import blake3

from gridfs.codec.cipher import open_blob, seal_blob
from gridfs.codec.headkeys import HeadKeys
from gridfs.codec.keys import KeyTree, ReadTree
from gridfs.config import Config
from gridfs.files.checkpointing import CheckpointConfig, Checkpointer
from gridfs.files.contents import Contents, ContentsConfig
from gridfs.files.dirty import DirtyData
from gridfs.files.filesystem import FileSystem, FileSystemConfig
from gridfs.files.following import FollowConfig, Follower, clear_scratch
from gridfs.files.freezing import FreezeConfig, Freezer
from gridfs.files.headstate import HeadState, load_head_state
from gridfs.files.history import History
from gridfs.files.journal import Journal, JournalConfig
from gridfs.files.leftover import note_leftover
from gridfs.files.log import LogConfig, OperationLog
from gridfs.files.lull import Lull
from gridfs.files.namespace import Namespace
from gridfs.files.readahead import Prefetcher, ReadaheadConfig
from gridfs.files.reader import Reader, ReaderConfig
from gridfs.files.rebuilding import (
    RebuildNeeded,
    Remaking,
    finish_rebuild,
    rebuild,
)
from gridfs.files.replay import replay
from gridfs.files.spool import Spool
from gridfs.files.stamps import Stamps
from gridfs.files.trees import Trees, TreesConfig
from gridfs.files.writer import Writer, WriterConfig
from gridfs.grid.capacity import Capacity, CapacityConfig
from gridfs.grid.downloader import Downloader, DownloaderConfig
from gridfs.grid.heads import Claim, HeadServers
from gridfs.grid.roster import Roster
from gridfs.grid.uploader import Uploader
from gridfs.meta.records import Settings
from gridfs.meta.store import Metadata
from gridfs.upkeep.debts import Debts, DebtsConfig
from storage.client import StorageClient
from storage.pages import PagePool
from storage.ports import Entropy, Machine

_SPOOL_KEY = "gridfs 2026 spool key"
_SEALER_KEY = "gridfs 2026 metadata sealing key"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What `-o` sets, in bytes and seconds."""

    read_only: bool = False
    takeover: bool = False
    """Go on from what another client has written last."""
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
    measure: str = ""
    """For measurements only. "single": a request for each range; "copying": reads through one more buffer."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What stands when a file system is open; for status and tests."""

    files: FileSystem
    log: OperationLog
    dirty: DirtyData
    writer: Writer
    journal: Journal
    checkpointer: Checkpointer
    prefetcher: Prefetcher
    downloader: Downloader
    uploader: Uploader
    capacity: Capacity
    debts: Debts
    heads: HeadServers
    contents: Contents
    clients: dict[bytes, StorageClient]
    roster: Roster
    following: Follower | None = None
    """Of a mount that only reads what others write."""


class LocalSealer:
    """Seals secrets in the local database."""

    def __init__(self, local_key: bytes, entropy: Entropy) -> None:
        self._key = blake3(local_key, derive_key_context=_SEALER_KEY).digest()
        self._entropy = entropy

    def seal(self, data: bytes) -> bytes:
        return seal_blob(self._key, self._entropy.token(12), data)

    def open(self, data: bytes) -> bytes:
        return open_blob(self._key, data)


def spool_key(keys: KeyTree | ReadTree) -> bytes:
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

    Replays the spool, claims the head log, and starts every component; metadata that cannot go on are made
    anew from the grid first. `former`: keys of older generations whose records may still be the newest.
    Raises NotEnoughServers where too few head servers answer, TakenOver, and the
    storage errors of a damaged database or spool.
    """
    async with (
        connected(machine, roster) as clients,
        reach(
            config, roster, head_keys(config, keys, former), clients, _reading(options), _kept_bytes(options)
        ) as grid,
        run_filesystem(machine, config, grid, database, spool_directory, options) as parts,
    ):
        yield parts


@asynccontextmanager
async def run_filesystem(
    machine: Machine,
    config: Config,
    grid: Grid,
    database: str,
    spool_directory: str,
    options: MountOptions,
    claim: Claim | None = None,
) -> AsyncIterator[Parts]:
    """The same on a grid that was reached before. `claim`: what head servers answered to the claim that the
    head state in the database tells; without it an epoch is claimed anew."""
    local, running = await _claimed(machine, config, grid, database, spool_directory, options, claim)
    try:
        async with trio.open_nursery() as nursery:
            for run in running.tasks:
                await nursery.start(run)
            yield running.parts
            nursery.cancel_scope.cancel()
        local.note_leftover()
        local.log.commit()
    finally:
        local.close()


@asynccontextmanager
async def follow_filesystem(
    machine: Machine,
    config: Config,
    roster: Roster,
    keys: ReadTree,
    database: str,
    spool_directory: str,
    options: MountOptions,
) -> AsyncIterator[Parts]:
    """Open a file system that somebody else writes, as it is now in the grid, and follow what is written
    until the block is left.

    Raises NotEnoughServers where no quorum of head servers answers, and what reading the grid raises.
    """
    options = replace(options, read_only=True, atime=False)
    async with (
        connected(machine, roster) as clients,
        reach(
            config, roster, head_keys(config, keys), clients, _reading(options), _kept_bytes(options)
        ) as grid,
    ):
        clear_scratch(machine.disk, spool_directory)
        sealer = LocalSealer(keys.local_key, machine.entropy)
        local = _open_local(machine, keys, sealer, database, spool_directory, options)
        _use_known_heads(config, grid, local.head_state)
        try:
            running = _build(machine, config, grid, options, local)
            parts = running.parts
            following = Follower(
                local.log,
                local.dirty,
                parts.contents,
                grid.heads,
                grid.history,
                grid.keys,
                local.head_state,
                Remaking(machine, grid.downloader, sealer, database),
                parts.prefetcher.reader,
                FollowConfig(),
            )
            await following.catch_up()
            async with trio.open_nursery() as nursery:
                for run in (*running.tasks, following.run):
                    await nursery.start(run)
                yield replace(parts, following=following)
                nursery.cancel_scope.cancel()
            local.log.commit()
        finally:
            local.close()


def _use_known_heads(config: Config, grid: Grid, state: HeadState) -> None:
    """The list of head servers that was known last, where the configuration has an older one."""
    if state.heads is not None and state.heads.generation >= config.head_generation:
        grid.heads.use(state.heads, state.leaving)


def head_keys(config: Config, keys: KeyTree | ReadTree, former: tuple[KeyTree, ...] = ()) -> HeadKeys:
    """As whom a file system's client speaks to the head servers."""
    first_key = config.first_key or keys.verifying_key
    return HeadKeys(keys, first_key, config.recovery_public, config.succession, former)


@dataclass(frozen=True, slots=True)
class Grid:
    """The way to the servers; it stands before anything local is opened."""

    clients: dict[bytes, StorageClient]
    roster: Roster
    downloader: Downloader
    uploader: Uploader
    heads: HeadServers
    history: History
    keys: HeadKeys
    pages: PagePool
    """The memory of all who move much data."""


@dataclass(frozen=True, slots=True)
class _Local:
    """What lies on this machine, replayed."""

    log: OperationLog
    dirty: DirtyData
    head_state: HeadState

    def note_leftover(self) -> None:
        note_leftover(self.log.metadata, self.log.number, self.dirty.bytes, self.head_state.shipped)

    def close(self) -> None:
        self.log.close()


@dataclass(frozen=True, slots=True)
class _Running:
    """An open file system and the tasks that it needs, in the order of their start."""

    parts: Parts
    tasks: tuple[Callable[..., Awaitable[None]], ...]


@asynccontextmanager
async def connected(machine: Machine, roster: Roster) -> AsyncIterator[dict[bytes, StorageClient]]:
    """Clients of all servers, by their ids, while the block runs."""
    clients = {
        server.server_id: StorageClient(server.access, machine.network, machine.entropy) for server in roster
    }
    async with trio.open_nursery() as nursery:
        for client in clients.values():
            await nursery.start(client.run)
        yield clients
        nursery.cancel_scope.cancel()


def _reading(options: MountOptions) -> DownloaderConfig:
    config = DownloaderConfig(lent_bytes=options.memory_bytes // 4)
    if options.measure == "single":
        config = replace(config, spans_max=1)
    return config


def _kept_bytes(options: MountOptions) -> int:
    """What one stream needs. Several keep what they need as long as they go on."""
    return options.memory_bytes * 5 // 12


@asynccontextmanager
async def reach(
    config: Config,
    roster: Roster,
    keys: HeadKeys,
    clients: dict[bytes, StorageClient],
    reading: DownloaderConfig | None = None,
    pages_bytes: int = 16 << 20,
) -> AsyncIterator[Grid]:
    """One file system's way to its servers, while the block runs. `clients` must be running. `pages_bytes`:
    memory that is kept, with what is in use, for those who move much data."""
    pages = PagePool(pages_bytes, huge_pages=True)
    downloader = Downloader(clients, roster, reading, pages)
    uploader = Uploader(
        clients, roster, config.file_system, config.k, config.n, config.happy, config.shares_per_server
    )
    heads = HeadServers(clients, config.head_list, roster, keys.log, keys.verifier())
    async with trio.open_nursery() as nursery:
        await nursery.start(downloader.run)
        await nursery.start(heads.run)
        yield Grid(
            clients, roster, downloader, uploader, heads, History(heads, downloader, keys), keys, pages
        )
        nursery.cancel_scope.cancel()


async def _claimed(
    machine: Machine,
    config: Config,
    grid: Grid,
    database: str,
    spool_directory: str,
    options: MountOptions,
    claim: Claim | None,
) -> tuple[_Local, _Running]:
    """The local state, brought up to date with the grid, and all that stands on it; nothing runs yet."""
    keys = grid.keys.tree
    sealer = LocalSealer(keys.local_key, machine.entropy)
    if not options.read_only:
        for client in grid.clients.values():
            client.use_head_key(keys.verifying_key, grid.keys.sign)
    while True:
        local = _open_local(machine, keys, sealer, database, spool_directory, options)
        _use_known_heads(config, grid, local.head_state)
        try:
            running = _build(machine, config, grid, options, local)
            if not options.read_only:
                await running.parts.journal.claim(claim)
                running.parts.files.namespace.drop_orphans()
            return local, running
        except RebuildNeeded as needed:
            if needed.keeps_spool:
                local.close()
            else:
                # First of all: its records must never meet metadata of another history.
                local.log.spool.set_aside()
                local.log.metadata.close()
            await rebuild(machine, grid.downloader, sealer, needed, database)
            claim = None
        except BaseException:
            local.close()
            raise


def _open_local(
    machine: Machine,
    keys: KeyTree | ReadTree,
    sealer: LocalSealer,
    database: str,
    spool_directory: str,
    options: MountOptions,
) -> _Local:
    finish_rebuild(machine.disk, database)
    metadata = Metadata.open(database, sealer, vfs=machine.disk.sqlite_vfs)
    spool = Spool(machine, spool_directory, spool_key(keys), options.spool_bytes)
    log = OperationLog(machine, metadata, database, spool, LogConfig())
    local = _Local(log, DirtyData(log), load_head_state(metadata))
    try:
        replay(log, local.dirty, local.head_state.emptied)
    except BaseException:
        local.close()
        raise
    return local


def _build(machine: Machine, config: Config, grid: Grid, options: MountOptions, local: _Local) -> _Running:
    """The graph from the log up."""
    log, dirty, head_state = local.log, local.dirty, local.head_state
    uploader, downloader = grid.uploader, grid.downloader
    capacity = Capacity(grid.clients, CapacityConfig(config.k, config.n))

    pages = grid.pages
    sealed_bytes = options.memory_bytes * 3 // 10
    secret = grid.keys.tree.convergence_secret
    writer_config = WriterConfig(config.k, config.n, secret, sealed_bytes_max=sealed_bytes)
    freezer = Freezer(log, dirty, FreezeConfig(config.k))
    writer = Writer(machine, log, dirty, uploader, freezer, lambda: head_state.stamp, writer_config, pages)
    settings = Settings(
        config.file_system,
        config.k,
        config.n,
        config.happy,
        config.shares_per_server,
        config.recovery_public,
    )
    reading = ReaderConfig(in_place=options.measure != "copying")
    reader = Reader(log.metadata, dirty, log.spool, downloader, reading)
    prefetcher = Prefetcher(reader, ReadaheadConfig(budget_bytes=options.memory_bytes // 2), pages)
    stamps = Stamps(machine.clock)
    contents_config = ContentsConfig(room_timeout_s=options.grid_timeout_s)
    contents = Contents(log, dirty, writer, prefetcher, stamps, contents_config)
    checkpointer = Checkpointer(
        machine, log, uploader, downloader, head_state, CheckpointConfig(config.k, config.n)
    )
    journal = Journal(
        machine,
        log,
        dirty,
        writer,
        uploader,
        checkpointer,
        Lull(contents.pause),
        grid.heads,
        grid.history,
        grid.keys,
        head_state,
        JournalConfig(config.k, config.n, settings, config.head_generation, takes_over=options.takeover),
    )
    namespace = Namespace(log, contents, stamps)
    trees = Trees(log, dirty, contents, namespace, journal, stamps, TreesConfig())
    files_config = FileSystemConfig(options.read_only, options.fsync, options.grid_timeout_s)
    files = FileSystem(log, dirty, writer, journal, contents, namespace, trees, capacity, files_config)
    debts = Debts(
        log,
        reader,
        downloader,
        uploader,
        capacity,
        machine.offload,
        stamp=lambda: head_state.stamp,
        is_allowed=lambda: files.writable and journal.is_owner,
        config=DebtsConfig(),
    )
    writing = (log.run, writer.run, checkpointer.run, journal.run, trees.run, debts.run)
    parts = Parts(
        files=files,
        log=log,
        dirty=dirty,
        writer=writer,
        journal=journal,
        checkpointer=checkpointer,
        prefetcher=prefetcher,
        downloader=downloader,
        uploader=uploader,
        capacity=capacity,
        debts=debts,
        heads=grid.heads,
        contents=contents,
        clients=grid.clients,
        roster=grid.roster,
    )
    return _Running(parts, (*(() if options.read_only else writing), prefetcher.run, capacity.run))
