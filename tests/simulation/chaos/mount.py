"""One client machine and what its file system was told; how it is looked at."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import trio

from gridfs.assembly import Parts
from gridfs.files.namespace import Namespace
from gridfs.grid.errors import GridError
from gridfs.meta.rows import ROOT, Inode
from storage.errors import StorageError
from tests.simulation.chaos.history import History, Violation
from tests.simulation.chaos.model import Node, State
from tests.simulation.filesystem import Client
from tests.simulation.machine import World
from tests.simulation.platter import MachineDead

T = TypeVar("T")

READ_STEP = 128 << 10
PATIENCE_S = 900.0
"""Virtual time in which everything must be readable again, whatever went wrong before."""


@dataclass(eq=False)
class Mount:
    """A client machine over all its sessions."""

    world: World
    client: Client
    history: History
    parts: Parts | None = None
    """Of the session that runs."""
    boot: int = 0
    identity: bytes = b""
    """What the runs of its folder share; another one once the metadata were made anew."""
    number: int = 0
    """Of the last operation when the session began."""
    predecessor: Mount | None = None
    """The machine that this one takes the file system from, while that still runs."""
    is_recovered: bool = True
    """Its folder is there; else it has to be recovered first."""
    may_be_refused: bool = False
    """Another machine may have written since it was last mounted: it may have to be told to take over."""
    has_finished: bool = False
    """The work of the session is done."""
    fenced_at: int | None = None
    """Another machine took the file system over, in this state of our history."""
    is_contested: bool = False
    """Another machine may take it over any time now."""
    under_way: dict[trio.lowlevel.Task, Callable[[], State]] = field(default_factory=dict)
    """What the operations that tasks are in the middle of lead to."""
    synced: int = 0
    """fsyncs acknowledged in this session."""
    strike_at_sync: int = 0
    """After which of them the machine dies; 0 for none."""
    strike: Callable[[], None] = lambda: None
    emptied: int = 0
    """Number up to which the outbox was emptied, as last seen."""

    @property
    def name(self) -> str:
        return self.client.node.name

    def begin(self, parts: Parts) -> None:
        """A session of this machine has opened."""
        self.parts = parts
        self.boot = self.client.node.boots
        self.synced = 0
        self.has_finished = False
        self.identity = parts.journal.state.client
        self.number = parts.log.number
        self.under_way.clear()

    @property
    def is_alive(self) -> bool:
        """Whether what `begin` was told of still runs."""
        return self.client.node.is_up and self.client.node.boots == self.boot

    def require_alive(self) -> None:
        if not self.is_alive:
            raise MachineDead

    def dies(self) -> None:
        """Called right before it: note what may or may not have been done then."""
        effect = self.under_way.get(trio.lowlevel.current_task())
        if effect is not None and self.is_alive:
            self.history.maybe.append(effect())

    # ---- promises

    def promised(self, index: int, ino: int | None) -> None:
        """An fsync of `ino`, or of everything, has returned, which was called in state `index`."""
        self.require_alive()
        if self.fenced_at is not None and index > self.fenced_at:
            raise Violation(
                "two writers",
                f"{self.name} acknowledged state {index}, but another machine went on from {self.fenced_at}",
            )
        self._promise(index, ino, local=False)
        self._strike_if_due()

    def promised_locally(self, index: int, ino: int) -> None:
        """The same for an fsync that promises nothing beyond this machine."""
        self.require_alive()
        self._promise(index, ino, local=True)
        self._strike_if_due()

    def _promise(self, index: int, ino: int | None, *, local: bool) -> None:
        promises = self.history.local if local else self.history.grid
        if ino is None:
            promises.all_of(self.history.states[index], index)
        else:
            promises.one(ino, index)
        self.world.trace.record(self.name, "promised", index, ino, local)

    def _strike_if_due(self) -> None:
        self.synced += 1
        if self.synced == self.strike_at_sync:
            self.strike()
            raise MachineDead

    def outbox_emptied(self) -> None:
        """What is promised locally may be lost with the power once the outbox was emptied behind it (see
        `gridfs/files/SPEC.md`, 4): such promises end here. Names stay."""
        if self.parts is not None and self.parts.journal.state.emptied != self.emptied:
            self.emptied = self.parts.journal.state.emptied
            self.history.local.bytes.clear()


# ---- looking


def skeleton(names: Namespace) -> State:
    """Everything but the bytes of files: zeros stand for them. Checks link counts."""
    nodes: dict[int, Node] = {}
    bound: dict[tuple[int, bytes], int] = {}
    counted: dict[int, int] = {}
    waiting = [ROOT]
    nodes[ROOT] = _node(names, names.inode(ROOT))
    while waiting:
        directory = waiting.pop()
        for entry in names.entries(directory, 0, 10_000):
            inode = names.inode(entry.ino)
            bound[directory, entry.name] = entry.ino
            counted[entry.ino] = inode.nlink
            if entry.ino not in nodes:
                nodes[entry.ino] = _node(names, inode)
                if stat.S_ISDIR(inode.mode):
                    waiting.append(entry.ino)
    state = State(nodes, bound)
    for ino, count in counted.items():
        if count != state.links(ino):
            raise Violation("answers", f"inode {ino} counts {count} links, not {state.links(ino)}")
    return state


def _node(names: Namespace, inode: Inode) -> Node:
    xattrs = tuple((name, names.xattr(inode.ino, name)) for name in names.xattrs(inode.ino))
    data = bytes(inode.size) if stat.S_ISREG(inode.mode) else b""
    return Node(0, data=data, target=inode.target, xattrs=xattrs).seen(inode)


async def look(parts: Parts) -> State:
    """Everything that a mount shows. Waits while too few servers answer, but not for ever."""
    state = await _patiently("names", lambda: _checked_skeleton(parts))
    for ino in {ino: None for ino in state.paths.values() if state.nodes[ino].is_file}:
        state.nodes[ino] = state.edit(
            ino, data=await _patiently(f"inode {ino}", partial(read_whole, parts, ino))
        ).nodes[ino]
    return State(state.nodes, state.names)


async def _checked_skeleton(parts: Parts) -> State:
    if problems := parts.log.metadata.check():
        raise Violation("metadata", "; ".join(problems[:3]))
    return skeleton(parts.files.namespace)


async def _patiently(what: str, read: Callable[[], Awaitable[T]]) -> T:
    """Again and again, but not for ever: servers may be away, or the disk may fail for a while."""
    begin = trio.current_time()
    while True:
        try:
            return await read()
        except MachineDead:
            raise
        except (GridError, StorageError, OSError) as error:
            if trio.current_time() - begin > PATIENCE_S:
                raise Violation("liveness", f"{what} cannot be read: {error}") from error
            await trio.sleep(2)


async def read_whole(parts: Parts, ino: int) -> bytes:
    files = parts.files
    handle = files.open(ino)
    try:
        pieces: list[bytes] = []
        position = 0
        while piece := bytes(await files.read(handle, position, READ_STEP)):
            pieces.append(piece)
            position += len(piece)
    finally:
        files.release(handle)
    return b"".join(pieces)
