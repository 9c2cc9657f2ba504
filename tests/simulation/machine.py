"""A world of machines: booted, crashed and booted again, from one seed.

    async def scenario(world: World) -> None:
        node = world.add("s0")
        await world.start(node, program)        # returns when the program called task_status.started
        world.crash(node)                       # power loss
        await world.start(node, program)        # boots on what the crash left of its disk

    outcome = run_world(seed, scenario)         # outcome.digest is the same for the same seed

A crash goes in this order: the disk freezes, the connections break, the tasks are cancelled. So nothing
that clean-up code still does reaches the disk or a peer. What a crashed program raises is noted in the
trace and goes no further; what a living one raises ends the world, as a failure.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from storage.ports import Machine
from tests.simulation.disk import SimDisk
from tests.simulation.entropy import InlineOffload, SimClock, SimEntropy
from tests.simulation.network import Fabric, SimNetwork
from tests.simulation.pipe import Link
from tests.simulation.platter import MachineDead, Platter
from tests.simulation.runner import Trace, chance, run_seeded
from tests.simulation.sqlite import SimVFS


class Program(Protocol):
    """What a machine runs, such as a storage server."""

    async def __call__(self, machine: Machine, *, task_status: trio.TaskStatus[Any]) -> None: ...


@dataclass(eq=False)
class Node:
    """A machine over all its boots."""

    name: str
    platter: Platter
    clock: SimClock = field(default_factory=SimClock)
    machine: Machine | None = None
    """The ports of this boot; None while it is down."""
    boots: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Around everything this boot runs."""
    vfs: SimVFS | None = None
    messages: int = 0
    """Sent and received so far."""
    before_message: Callable[[], None] = lambda: None
    """Called before each; may crash the machine."""

    @property
    def is_up(self) -> bool:
        return self.machine is not None


class World:
    """All machines of one run. Made by `open_world` or `run_world`."""

    def __init__(
        self, seed: int, nursery: trio.Nursery, link: Link, listen: Callable[[str], None] | None = None
    ) -> None:
        self.seed = seed
        self.trace = Trace(listen)
        self.fabric = Fabric(seed, self.trace, link)
        self.fabric.before_message = self._before_message
        self.nodes: dict[str, Node] = {}
        self.disk_operations = 0
        """Begun so far, on all machines."""
        self._victims: list[Node] = []
        self._operations_left = 0
        """Until the victims lose power; 0 for never."""
        self._nursery = nursery

    def add(self, name: str) -> Node:
        """A new machine with an empty disk, not running."""
        assert name not in self.nodes
        node = Node(name, Platter(chance(self.seed, "platter", name)))

        def before_operation(operation: str, path: str) -> None:
            self.disk_operations += 1
            self.trace.record(name, operation, path)
            if node in self._victims and self._operations_left:
                self._operations_left -= 1
                if not self._operations_left:
                    self.power_cut(*self._victims)

        node.platter.before_operation = before_operation
        self.nodes[name] = node
        return node

    def boot(self, node: Node) -> Machine:
        """Start a machine without a program: for a client that is the scenario itself."""
        assert not node.is_up
        node.boots += 1
        node.scope = trio.CancelScope()
        self.fabric.wake(node.name)
        disk = SimDisk(node.platter)
        node.vfs = SimVFS(disk, node.clock)
        entropy = SimEntropy(chance(self.seed, "entropy", node.name, node.boots))
        network = SimNetwork(self.fabric, node.name, lambda: disk.is_alive)
        node.machine = Machine(disk, network, entropy, node.clock, InlineOffload())
        self.trace.record(node.name, "boot", node.boots)
        return node.machine

    async def start(self, node: Node, program: Program) -> Any:
        """Boot and run a program; what it gave to task_status.started. MachineDead if it crashed first."""
        try:
            return await self._nursery.start(self._run, node, program)
        except RuntimeError:
            if not node.scope.cancel_called:
                raise
            raise MachineDead from None

    async def _run(self, node: Node, program: Program, *, task_status: trio.TaskStatus[Any]) -> None:
        machine = self.boot(node)
        try:
            with node.scope:
                await program(machine, task_status=task_status)
        except* Exception as failures:
            # Not of the whole group: the world's own cancellation may be in it, and must go on.
            if node.machine is machine:
                raise
            self.trace.record(node.name, "died with", *names_of(failures))
        finally:
            if node.machine is machine:
                node.platter.shut_down()
                self._down(node, "end")

    def crash(self, node: Node, *, silently: bool = False) -> None:
        """Power loss. Peers see their connections break, or with `silently` nothing until the next boot."""
        if not node.is_up:
            return
        node.platter.crash()
        if silently:
            self.fabric.silence(node.name)
        self._down(node, "crash")
        node.scope.cancel()

    def kill(self, node: Node) -> None:
        """kill -9 of everything on a machine that goes on: nothing written is lost."""
        if not node.is_up:
            return
        node.platter.shut_down()
        self._down(node, "kill")
        node.scope.cancel()

    def power_cut(self, *nodes: Node) -> None:
        """These machines lose power at one moment; all, if none is named."""
        for node in nodes or [self.nodes[name] for name in sorted(self.nodes)]:
            self.crash(node)

    def cut_power_at(self, operation: int, *nodes: Node) -> None:
        """Let these machines (all that there are, if none is named) lose power together.

        `operation`: before which of their disk operations from now on, counted from 1; 0 takes an earlier
        call back.
        """
        self._victims = list(nodes) or [self.nodes[name] for name in sorted(self.nodes)]
        self._operations_left = operation

    def _before_message(self, name: str, what: str) -> None:
        node = self.nodes[name]
        node.messages += 1
        node.before_message()

    def _down(self, node: Node, how: str) -> None:
        self.trace.record(node.name, how)
        self.fabric.die(node.name)
        node.machine = None
        if node.vfs is not None:
            node.vfs.unregister()
            node.vfs = None


def names_of(failures: BaseExceptionGroup[BaseException]) -> list[str]:
    """Of all exceptions in a group, however deep."""
    return [
        name
        for error in failures.exceptions
        for name in (names_of(error) if isinstance(error, BaseExceptionGroup) else [type(error).__name__])
    ]


@contextlib.asynccontextmanager
async def open_world(
    seed: int, link: Link | None = None, listen: Callable[[str], None] | None = None
) -> AsyncIterator[World]:
    """A world in the running trio loop; at the end everything in it is cancelled.

    `listen` is given each line of the trace.
    """
    async with trio.open_nursery() as nursery:
        world = World(seed, nursery, link or Link(), listen)
        try:
            yield world
        finally:
            # Programs that still run end as after SIGTERM, with a disk that works.
            nursery.cancel_scope.cancel()
    for _, node in sorted(world.nodes.items()):
        world.kill(node)


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    digest: str
    """Hash of the whole trace."""
    events: int
    virtual_s: float
    result: Any
    """What the scenario returned."""
    lines: list[str]
    """The end of the trace."""


def run_world(
    seed: int,
    scenario: Callable[..., Awaitable[Any]],
    *args: object,
    link: Link | None = None,
    listen: Callable[[str], None] | None = None,
) -> Outcome:
    """Run `scenario(world, *args)` on virtual time; its exceptions come out as they are.

    `listen` is given each line of the trace.
    """
    failure: list[Exception] = []

    async def main() -> Outcome:
        result = None
        async with open_world(seed, link, listen) as world:
            try:
                result = await scenario(world, *args)
            except Exception as error:
                error.add_note("\n".join(["The end of the trace:", *world.trace.last_lines[-30:]]))
                failure.append(error)
            digest, events = world.trace.digest, world.trace.count
        return Outcome(digest, events, trio.current_time(), result, world.trace.last_lines)

    outcome = run_seeded(seed, main)
    if failure:
        raise failure[0]
    return outcome
