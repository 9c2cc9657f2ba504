"""What goes wrong in a run, and what may fail because of it.

Each kind of `Fault` is a method of `Injector`. In a careful run a fault of a server waits until no more
servers are in trouble than fsync allows for; what is damaged for good (a rotten share, a disk that was set
back) stays within what reads allow for in every run.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import trio

from storage.errors import StorageError
from storage.format.entry import FILE_HEADER_SIZE
from storage.ports import Machine
from tests.simulation.chaos.history import Violation
from tests.simulation.chaos.lies import KINDS, Lies
from tests.simulation.chaos.plan import Fault, Plan
from tests.simulation.filesystem import HOME, Servers
from tests.simulation.machine import Node, World
from tests.simulation.pipe import Link
from tests.simulation.platter import UNLIMITED, Directory, DiskFault, Inode, MachineDead
from tests.simulation.runner import chance
from tests.simulation.test_grid import DIRECTORY, server_program

FOREVER = float("inf")
LINGER_S = 50.0
"""How long a server that was in trouble may be out of use afterwards: the longest pause between two attempts
to connect."""
DISK_LINGER_S = 90.0
"""The same for the disk of a client: errors of the background are told to a later call."""
RESTARTS_MAX = 100
DAY_NS = 24 * 3600 * 10**9


@dataclass
class Trouble:
    """A machine is not what it should be, for some time."""

    node: str
    begin: float
    end: float = FOREVER
    linger_s: float = LINGER_S
    for_good: bool = False
    """Of no use for reads, but for the rest."""

    def counts_at(self, time: float) -> bool:
        return self.begin <= time < self.end + self.linger_s


class Injector:
    """Brings faults about and keeps account of them."""

    def __init__(self, world: World, plan: Plan, servers: Servers, lies: Lies, nursery: trio.Nursery) -> None:
        self.world, self.plan, self.servers, self.lies = world, plan, servers, lies
        self.clients: list[Node] = []
        """Machines with a client on them, the newest last."""
        self.struck: Counter[str] = Counter()
        self.set_back: dict[str, None] = {}
        """Servers whose disk was replaced by an older copy."""
        self._nursery = nursery
        self._troubles: list[Trouble] = []
        self._disk_troubles: list[Trouble] = []
        self._busy: dict[str, None] = {}
        self._copies: dict[str, Directory] = {}
        self._starting: dict[str, trio.Lock] = {node.name: trio.Lock() for node in servers.nodes}
        self._due: list[Fault] = []
        self._to_be_restarted: dict[Node, None] = {}

    # ---- what may fail

    def for_reads(self, node: str, since: float) -> bool:
        """Whether a read that began at `since` may have failed."""
        return self._worst(since, for_good=True) > self.plan.shape.lost_for_reads

    def for_syncs(self, node: str, since: float) -> bool:
        """Whether an fsync may have, or anything that waits for room in the spool."""
        return self._worst(since, for_good=False) > self.plan.shape.lost_for_syncs

    def for_disk(self, node: str, since: float) -> bool:
        return any(
            trouble.node == node and trouble.end + trouble.linger_s >= since
            for trouble in self._disk_troubles
        )

    def _worst(self, since: float, *, for_good: bool) -> int:
        """The most servers that were in trouble at one time since then."""
        times = [since, *[trouble.begin for trouble in self._troubles if trouble.begin > since]]
        return max(len(self._in_trouble(time, for_good=for_good)) for time in times)

    def _in_trouble(self, time: float, *, for_good: bool) -> dict[str, None]:
        return {
            trouble.node: None
            for trouble in self._troubles
            if trouble.counts_at(time) and (for_good or not trouble.for_good)
        }

    @property
    def damaged(self) -> list[str]:
        """Servers that do not have all that they said they had."""
        return list({trouble.node: None for trouble in self._troubles if trouble.for_good})

    @contextlib.contextmanager
    def _trouble(self, *nodes: Node, linger_s: float = LINGER_S) -> Iterator[None]:
        begun = [Trouble(node.name, trio.current_time(), linger_s=linger_s) for node in nodes]
        self._troubles += begun
        try:
            yield
        finally:
            for trouble in begun:
                trouble.end = trio.current_time()

    def all_in_trouble(self) -> None:
        """All servers went down just now."""
        with self._trouble(*self.servers.nodes):
            self.world.trace.record("chaos", "all servers are down")

    # ---- running

    def plan_session(self, faults: tuple[Fault, ...], number: int) -> None:
        """These are due in the session that begins; those before it that were not are dropped."""
        self._due = list(faults)
        node = self.servers.nodes[chance(self.plan.seed, "copy", number).randrange(self.plan.shape.n)]
        if node.is_up:
            image = copy.deepcopy(node.platter.root)
            image.crash(chance(self.plan.seed, "copied", number))
            self._copies = {node.name: image}

    def done(self, count: int) -> None:
        """So many operations of the session are done: begin the faults that are due."""
        while self._due and self._due[0].after <= count:
            self._nursery.start_soon(self._strike, self._due.pop(0))

    async def _strike(self, fault: Fault) -> None:
        await trio.sleep(fault.delay_s)
        await getattr(self, fault.kind)(fault, random.Random(fault.draw))

    def begun(self, fault: Fault | str, *details: object) -> None:
        """Count a fault that really happens."""
        kind = fault if isinstance(fault, str) else fault.kind
        self.struck[kind] += 1
        self.world.trace.record("chaos", kind, *details)

    async def end(self) -> None:
        """No more faults come: make good what can be."""
        self.world.fabric.heal()
        for node in list(self._to_be_restarted):
            await self._restart(node)
        await self.all_up()

    async def all_up(self) -> None:
        for node in self.servers.nodes:
            await self.up(node)

    async def up(self, node: Node) -> None:
        """Start a server that is down; it is tried again, as an operator's service manager does."""
        async with self._starting[node.name]:
            for _ in range(RESTARTS_MAX):
                if node.is_up:
                    return
                with contextlib.suppress(RuntimeError, MachineDead):
                    self.servers.running[node.name] = await self.world.start(node, serve)
                await trio.sleep(0 if node.is_up else 1)
            raise Violation("servers", f"{node.name} does not start again")

    async def _victim(self, stream: random.Random) -> Node | None:
        """A server that may fail now; None if none ever may. Waits until one may."""
        shape = self.plan.shape
        most = shape.n if self.plan.reckless else shape.lost_for_syncs
        if not most:
            return None
        while True:
            now = trio.current_time()
            others = self._in_trouble(now, for_good=False)
            free = [
                node
                for node in self.servers.nodes
                if node.name not in self._busy and len({**others, node.name: None}) <= most
            ]
            if free:
                return stream.choice(free)
            await trio.sleep(1)

    @contextlib.asynccontextmanager
    async def _failing(self, fault: Fault, stream: random.Random, *details: object) -> Any:
        """Choose a server and let it be in trouble within; gives None where none may be."""
        node = await self._victim(stream)
        if node is None:
            yield None
            return
        self._busy[node.name] = None
        try:
            with self._trouble(node):
                self.begun(fault, node.name, fault.lasts_s, *details)
                yield node
        finally:
            del self._busy[node.name]

    def _clients(self, stream: random.Random) -> list[Node]:
        """Those that a fault of the network concerns."""
        return list(self.clients) if stream.random() < 0.7 else [self.clients[-1]]

    # ---- servers

    async def server_crash(self, fault: Fault, stream: random.Random, *, silently: bool = False) -> None:
        async with self._failing(fault, stream) as node:
            if node is not None:
                self.world.crash(node, silently=silently)
                await trio.sleep(fault.lasts_s)
                await self.up(node)

    async def server_silence(self, fault: Fault, stream: random.Random) -> None:
        await self.server_crash(fault, stream, silently=True)

    async def server_kill(self, fault: Fault, stream: random.Random) -> None:
        async with self._failing(fault, stream) as node:
            if node is not None:
                self.world.kill(node)
                await trio.sleep(fault.lasts_s / 4)
                await self.up(node)

    async def server_hang(self, fault: Fault, stream: random.Random) -> None:
        await self._hold_back(fault, stream, to=True, fro=True)

    async def server_deaf(self, fault: Fault, stream: random.Random) -> None:
        await self._hold_back(fault, stream, to=True, fro=False)

    async def server_mute(self, fault: Fault, stream: random.Random) -> None:
        await self._hold_back(fault, stream, to=False, fro=True)

    async def clog(self, fault: Fault, stream: random.Random) -> None:
        """A short one: lost packets that are sent again."""
        to = stream.random() < 0.5
        await self._hold_back(fault, stream, to=to, fro=not to, lasts_s=min(3.0, fault.lasts_s))

    async def _hold_back(
        self, fault: Fault, stream: random.Random, *, to: bool, fro: bool, lasts_s: float | None = None
    ) -> None:
        async with self._failing(fault, stream, to, fro) as node:
            if node is None:
                return
            clients = self._clients(stream)
            ways = [(client.name, node.name) for client in clients if to]
            ways += [(node.name, client.name) for client in clients if fro]
            for way in ways:
                self.world.fabric.partition(*way)
            try:
                await trio.sleep(fault.lasts_s if lasts_s is None else lasts_s)
            finally:
                for way in ways:
                    self.world.fabric.unclog(*way)

    async def server_slow(self, fault: Fault, stream: random.Random) -> None:
        async with self._failing(fault, stream) as node:
            if node is None:
                return
            link = Link(stream.choice([0.1, 0.5, 2.0]), stream.choice([2e4, 2e5, 1e6]))
            ways = [
                way for client in self.clients for way in ((client.name, node.name), (node.name, client.name))
            ]
            for way in ways:
                self.world.fabric.set_link(*way, link)
            try:
                await trio.sleep(fault.lasts_s)
            finally:
                for way in ways:
                    self.world.fabric.set_link(*way, None)

    async def server_reset(self, fault: Fault, stream: random.Random) -> None:
        async with self._failing(fault, stream) as node:
            if node is not None:
                self.world.fabric.reset(node.name)

    async def server_disk_error(self, fault: Fault, stream: random.Random) -> None:
        """Some operations fail; in the end an operator starts the server anew."""
        async with self._failing(fault, stream) as node:
            if node is None:
                return
            planted = _disk_faults(stream, DIRECTORY)
            node.platter.faults += planted
            self._to_be_restarted[node] = None
            try:
                await trio.sleep(fault.lasts_s)
            finally:
                node.platter.faults = [other for other in node.platter.faults if other not in planted]
            await self._restart(node)

    async def server_disk_full(self, fault: Fault, stream: random.Random) -> None:
        async with self._failing(fault, stream) as node:
            if node is None:
                return
            node.platter.capacity = node.platter.used() + stream.choice([0, 5_000, 200_000])
            self._to_be_restarted[node] = None
            try:
                await trio.sleep(fault.lasts_s)
            finally:
                node.platter.capacity = UNLIMITED
            await self._restart(node)

    async def _restart(self, node: Node) -> None:
        """A server says, after its disk has failed, that it must be started anew."""
        del self._to_be_restarted[node]
        self.world.kill(node)
        await self.up(node)

    async def lie(self, fault: Fault, stream: random.Random) -> None:
        kind = stream.choice(KINDS)
        async with self._failing(fault, stream, kind) as node:
            if node is None or ("head" in kind and not self._may_hide_records(node)):
                return
            with self.lies.told_by(node.platter, kind, stream):
                await trio.sleep(fault.lasts_s)

    def _may_hide_records(self, node: Node) -> bool:
        """Fewer than W servers may deny records at once, in reckless runs too."""
        liars = [other.name for other in self.servers.nodes if "head" in self.lies.of(other.platter)[0]]
        return len({*liars, *self.set_back, node.name}) < self.plan.shape.quorum

    async def grid_power_cut(self, fault: Fault, stream: random.Random) -> None:
        """All servers lose power at one moment."""
        self.begun(fault)
        with self._trouble(*self.servers.nodes):
            for node in self.servers.nodes:
                self.world.crash(node)
            await trio.sleep(fault.lasts_s / 4)
            await self.all_up()

    # ---- damage that stays

    def _may_damage(self, node: Node) -> bool:
        damaged = dict.fromkeys(self.damaged)
        return len({**damaged, node.name: None}) <= self.plan.shape.lost_for_reads

    def _damage(self, node: Node) -> None:
        self._troubles.append(Trouble(node.name, trio.current_time(), for_good=True))

    async def rot(self, fault: Fault, stream: random.Random) -> None:
        """Bytes of shares on a disk change by themselves."""
        candidates = [node for node in self.servers.nodes if self._may_damage(node)]
        if not candidates:
            return
        node = stream.choice(candidates)
        files = [
            (path, inode)
            for path, inode in files_below(node.platter.root, DIRECTORY)
            if path.startswith((f"{DIRECTORY}/shares/volumes/", f"{DIRECTORY}/shares/shares/"))
            and len(inode.current) > FILE_HEADER_SIZE
        ]
        if not files:
            return
        self._damage(node)
        self.begun(fault, node.name)
        for _ in range(stream.randint(1, 8)):
            _, inode = stream.choice(files)
            position = stream.randrange(FILE_HEADER_SIZE, len(inode.current))
            change = stream.randrange(1, 256)
            inode.current[position] ^= change
            if position < len(inode.durable):
                inode.durable[position] ^= change

    async def rollback(self, fault: Fault, stream: random.Random) -> None:
        """A server's disk is replaced by a copy of it that was made some time ago."""
        for name, image in list(self._copies.items()):
            node = self.world.nodes[name]
            if not self._may_damage(node) or name in self._busy:
                continue
            del self._copies[name]
            self._busy[name] = None
            try:
                with self._trouble(node):
                    self._damage(node)
                    self.set_back[name] = None
                    self.begun(fault, name)
                    self.world.kill(node)
                    node.platter.root = image
                    await self.up(node)
            finally:
                del self._busy[name]

    # ---- clients

    async def client_reset(self, fault: Fault, stream: random.Random) -> None:
        self.begun(fault)
        with self._trouble(*self.servers.nodes, linger_s=5.0):
            self.world.fabric.reset(self.clients[-1].name)

    async def client_disk_error(self, fault: Fault, stream: random.Random) -> None:
        node = self.clients[-1]
        self.begun(fault, node.name, fault.lasts_s)
        with self._disk_trouble(node):
            planted = _disk_faults(stream, HOME)
            node.platter.faults += planted
            try:
                await trio.sleep(fault.lasts_s)
            finally:
                node.platter.faults = [other for other in node.platter.faults if other not in planted]

    async def client_disk_full(self, fault: Fault, stream: random.Random) -> None:
        node = self.clients[-1]
        self.begun(fault, node.name, fault.lasts_s)
        with self._disk_trouble(node):
            node.platter.capacity = node.platter.used() + stream.choice([0, 20_000, 300_000])
            try:
                await trio.sleep(fault.lasts_s)
            finally:
                node.platter.capacity = UNLIMITED

    @contextlib.contextmanager
    def _disk_trouble(self, node: Node) -> Iterator[None]:
        trouble = Trouble(node.name, trio.current_time(), linger_s=DISK_LINGER_S)
        self._disk_troubles.append(trouble)
        try:
            yield
        finally:
            trouble.end = trio.current_time()

    async def clock(self, fault: Fault, stream: random.Random) -> None:
        """A wall clock jumps, to and fro, up to a day."""
        node = stream.choice([*self.servers.nodes, *self.clients, *self.clients])
        jump = stream.choice([-DAY_NS, -(10**9), 10**9, DAY_NS])
        self.begun(fault, node.name, jump)
        node.clock.offset_ns += jump


async def serve(machine: Machine, *, task_status: trio.TaskStatus[Any]) -> None:
    """A storage server that may end where its disk fails: somebody starts it again."""
    try:
        await server_program(machine, task_status=task_status)
    except* (StorageError, OSError):
        pass


def _disk_faults(stream: random.Random, path: str) -> list[DiskFault]:
    operations = ["write", "write", "sync", "sync", "read", "open", "resize", "replace", "remove"]
    operations += ["sync_directory", "make_directory", "size"]
    return [
        DiskFault(
            stream.choice(operations),
            errno.EIO,
            path,
            skip=stream.randrange(6),
            count=stream.randint(1, 4),
            kept=stream.choice([0.0, 0.5, 0.99]),
            forgets=stream.random() < 0.5,
        )
        for _ in range(stream.randint(1, 3))
    ]


def files_below(root: Directory, path: str) -> list[tuple[str, Inode]]:
    """All files below an absolute path that are there now, by path."""
    directory = root
    for name in path.strip("/").split("/"):
        entry = directory.current.get(name)
        if not isinstance(entry, Directory):
            return []
        directory = entry
    found: list[tuple[str, Inode]] = []
    waiting = [(path, directory)]
    while waiting:
        prefix, directory = waiting.pop()
        for name, entry in directory.current.items():
            if isinstance(entry, Directory):
                waiting.append((f"{prefix}/{name}", entry))
            else:
                found.append((f"{prefix}/{name}", entry))
    return sorted(found, key=lambda item: item[0])
