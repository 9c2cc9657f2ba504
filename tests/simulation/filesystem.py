"""A whole file system in a simulated world: real servers, real clients, and how they are killed.

    client = Client(world, await start_servers(world))
    client.create()
    await client.session(work)          # opens, runs work(parts), closes; returns what work returned

What a session runs belongs to the client's machine: `kill_at` and `cut_power_at` end it before one of the
machine's disk operations, and then `session` returns None.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from gridfs.assembly import LocalSealer, MountOptions, Parts, open_filesystem
from gridfs.codec.keys import KeyTree
from gridfs.config import Config
from gridfs.files.namespace import Change
from gridfs.grid.roster import Roster, Server
from gridfs.meta.rows import ROOT
from gridfs.meta.store import Metadata
from storage.identity import create_account
from storage.ports import Machine
from storage.server.composition import RunningServer
from storage.wire.url import Access
from tests.simulation.machine import Node, Program, World
from tests.simulation.platter import MachineDead
from tests.simulation.test_grid import DIRECTORY, make_durably, server_program

T = TypeVar("T")

HOME = "/home/fs"
DATABASE = f"{HOME}/metadata.sqlite"
SPOOL = f"{HOME}/spool"
KEYS = KeyTree(bytes(range(32)))
FILE = stat.S_IFREG | 0o644
FOLDER = stat.S_IFDIR | 0o755
OPTIONS = MountOptions(memory_bytes=32 << 20, spool_bytes=32 << 20)


@dataclasses.dataclass(frozen=True)
class Servers:
    """The grid of a world."""

    world: World
    nodes: list[Node]
    roster: Roster
    config: Config
    running: dict[str, RunningServer]
    """By machine: of the last start."""

    async def restart(self, *nodes: Node) -> None:
        for node in nodes:
            self.running[node.name] = await self.world.start(node, server_program)


async def start_servers(
    world: World,
    k: int = 4,
    n: int = 6,
    happy: int = 5,
    program: Program = server_program,
    prefix: str = "s",
) -> Servers:
    """`n` real servers on machines of their own, all of them head servers."""
    nodes, listed = [], []
    started = {}
    for index in range(n):
        node = world.add(f"{prefix}{index}")
        make_durably(world, node, DIRECTORY)
        running = started[node.name] = await world.start(node, program)
        assert node.machine is not None
        account = create_account(node.machine.disk, node.machine.entropy, DIRECTORY, "full")
        access = running.access
        listed.append(
            Server(
                index, Access(access.server_id, access.address, account.name, account.secret, account.rights)
            )
        )
        nodes.append(node)
    roster = Roster(tuple(listed))
    heads = tuple(server.server_id for server in roster)
    config = Config(b"f" * 16, k, n, happy, 1, heads, bytes(32))
    return Servers(world, nodes, roster, config, started)


class Client:
    """A machine with a file system's folder on it."""

    def __init__(self, world: World, servers: Servers, name: str = "client") -> None:
        self.world, self.servers = world, servers
        self.config: Config = servers.config
        self.tree = KEYS
        self.former: tuple[KeyTree, ...] = ()
        self.node = world.add(name)
        self.operations = 0
        """Disk operations of this machine so far."""
        self._strike_at = 0
        self._strike_at_message = 0
        self._strike: Callable[[Node], None] = world.kill
        noted = self.node.platter.before_operation

        def before_operation(operation: str, path: str) -> None:
            self.operations += 1
            noted(operation, path)
            if self.operations == self._strike_at:
                self._strike(self.node)

        def before_message() -> None:
            if self.node.messages == self._strike_at_message:
                self._strike(self.node)

        self.node.platter.before_operation = before_operation
        self.node.before_message = before_message

    @property
    def local_key(self) -> bytes:
        return self.tree.local_key

    def create(self) -> None:
        """What `gridfs create` does: an empty database and a spool folder, durable."""
        disk = self.world.boot(self.node).disk
        machine = self.node.machine
        assert machine is not None
        disk.make_directory(SPOOL)
        sealer = LocalSealer(self.local_key, machine.entropy)
        Metadata.create(DATABASE, sealer, vfs=disk.sqlite_vfs).close()
        for directory in (HOME, "/home", "/"):
            disk.sync_directory(directory)
        self.world.kill(self.node)

    def adopt(self, other: Client) -> None:
        """Have the keys of another machine, whose disk was copied."""
        self.config, self.tree, self.former = other.config, other.tree, other.former

    def strike_at(self, strike: Callable[[Node], None], *, operation: int = 0, message: int = 0) -> None:
        """Call `strike(node)` before this machine's disk operation `operation`, or before its message
        `message`, from now on, counted from 1; 0: never."""
        self._strike = strike
        self._strike_at = self.operations + operation if operation else 0
        self._strike_at_message = self.node.messages + message if message else 0

    def kill_at(self, operation: int) -> None:
        """Kill the client's process before its disk operation `operation` from now on, from 1; 0: never."""
        self.strike_at(self.world.kill, operation=operation)

    def cut_power_at(self, operation: int) -> None:
        """The same with the power of its machine."""
        self.strike_at(self.world.crash, operation=operation)

    async def session(
        self, work: Callable[[Parts], Awaitable[T]], options: MountOptions = OPTIONS
    ) -> T | None:
        """Boot, open, run `work(parts)`, close. Returns its result; None if the machine died meanwhile.

        What fails on a living machine is raised.
        """
        done = trio.Event()
        results: list[T] = []
        failures: list[Exception] = []

        async def program(machine: Machine, *, task_status: trio.TaskStatus[Any]) -> None:
            task_status.started()
            try:
                async with self.opened(machine, options) as parts:
                    results.append(await work(parts))
            except Exception as error:
                if self.node.machine is not machine:
                    raise
                failures.append(error)
            finally:
                done.set()

        try:
            await self.world.start(self.node, program)
            await done.wait()
        except MachineDead:
            return None
        died = not results and not failures
        while self.node.is_up:  # its program has ended and leaves the machine in this turn or the next
            await trio.lowlevel.checkpoint()
        for error in failures:
            raise _first(error)
        return None if died else results[0]

    def opened(self, machine: Machine, options: MountOptions = OPTIONS) -> Any:
        return open_filesystem(
            machine, self.config, self.servers.roster, self.tree, DATABASE, SPOOL, options, self.former
        )

    @asynccontextmanager
    async def mounted(self, options: MountOptions = OPTIONS) -> AsyncIterator[Parts]:
        """For a client that is not killed: boot and open in the scenario's own task."""
        machine = self.world.boot(self.node)
        try:
            async with self.opened(machine, options) as parts:
                yield parts
        finally:
            self.world.kill(self.node)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Shell:
    """Short ways to use an open file system; paths are names in the root or in one folder below it."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.files = parts.files
        self.names = parts.files.namespace

    def find(self, path: str) -> int | None:
        ino = ROOT
        for name in path.split("/"):
            inode = self.names.lookup(ino, name.encode())
            if inode is None:
                return None
            ino = inode.ino
        return ino

    def parent(self, path: str) -> tuple[int, bytes]:
        folder, _, name = path.rpartition("/")
        parent = self.find(folder) if folder else ROOT
        assert parent is not None, folder
        return parent, name.encode()

    def mkdir(self, path: str) -> int:
        return self.names.make(*self.parent(path), FOLDER, 1, 1).ino

    def create(self, path: str) -> int:
        return self.names.make(*self.parent(path), FILE, 1, 1).ino

    async def write(self, path: str, data: bytes, offset: int = 0) -> int:
        """Write into a file, which is made if it is not there; returns its inode."""
        ino = self.find(path)
        if ino is None:
            ino = self.create(path)
        handle = self.files.open(ino)
        await self.files.write(handle, offset, data)
        self.files.release(handle)
        return ino

    async def read(self, path: str) -> bytes | None:
        """The whole content; None if there is no such file."""
        ino = self.find(path)
        return None if ino is None else await self.read_inode(ino)

    async def read_inode(self, ino: int, step: int = 128 << 10) -> bytes:
        handle = self.files.open(ino)
        parts, position = [], 0
        while piece := bytes(await self.files.read(handle, position, step)):
            parts.append(piece)
            position += len(piece)
        self.files.release(handle)
        return b"".join(parts)

    def truncate(self, path: str, size: int) -> None:
        ino = self.find(path)
        assert ino is not None
        self.names.change(ino, Change(size=size))

    def rename(self, source: str, target: str) -> None:
        self.files.rename(*self.parent(source), *self.parent(target), 0)

    async def clone(self, source: str, target: str, *, read_only: bool = False) -> int:
        """A clone of a file or a tree, as `gridfs clone` makes it; returns its inode."""
        ino = self.find(source)
        assert ino is not None
        parent, name = self.parent(target)
        maker = 77
        async with self.files.trees.prepared(ino, parent, name, maker, read_only=read_only):
            made = self.files.trees.make(parent, name, self.names.inode(ino).mode, maker)
        assert made is not None
        return made.ino

    def unlink(self, path: str) -> None:
        self.names.unlink(*self.parent(path))

    def rmdir(self, path: str) -> None:
        self.names.rmdir(*self.parent(path))

    async def fsync(self, path: str) -> None:
        ino = self.find(path)
        assert ino is not None
        await self.files.fsync(ino)

    async def tree(self) -> dict[str, bytes | None]:
        """Everything: path -> content, None for a folder."""
        found: dict[str, bytes | None] = {}
        waiting = [("", ROOT)]
        while waiting:
            prefix, folder = waiting.pop()
            for entry in self.names.entries(folder, 0, 10_000):
                path = prefix + entry.name.decode()
                if stat.S_ISDIR(entry.mode):
                    found[path] = None
                    waiting.append((path + "/", entry.ino))
                else:
                    found[path] = await self.read_inode(entry.ino)
        return found


def gauges(parts: Parts) -> dict[str, int]:
    """Everything that must be zero once all is stored and closed."""
    return {
        "dirty bytes": parts.dirty.bytes,
        "dirty inodes": parts.dirty.inodes,
        "waiting writers": parts.dirty.waiting,
        "sealed bytes": parts.writer.sealed_bytes,
        "flights": parts.writer.flights,
        "read-ahead bytes": parts.prefetcher.bytes,
        "lent bytes": parts.downloader.statistics().lent_bytes,
        "packs in flight": parts.uploader.statistics().packs_in_flight,
        "bytes in flight": parts.uploader.statistics().bytes_in_flight,
        "spool live bytes": parts.log.spool.live_bytes,
        "operations not shipped": parts.log.number - parts.journal.up_to,
    }
