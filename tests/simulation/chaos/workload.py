"""The programs on a mount: each operation is done, told to the history, and what it answers is checked.

The real file system does an operation in one step, without awaiting, once it has room for it; so the history
is in the very order in which operations were received, whichever task made them.
"""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Protocol, TypeVar

import trio

from gridfs.assembly import Parts
from gridfs.files.claiming import TakenOver
from gridfs.files.namespace import RENAME_EXCHANGE, Change
from gridfs.grid.errors import GridError
from gridfs.meta.rows import ROOT
from storage.errors import StorageError
from tests.simulation.chaos.history import Violation, difference, misfit, with_bytes
from tests.simulation.chaos.model import Key, Node, State
from tests.simulation.chaos.mount import Mount, skeleton
from tests.simulation.chaos.plan import Op, Plan
from tests.simulation.platter import MachineDead

T = TypeVar("T")

NAMES = [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"]
XATTRS = [b"user.a", b"user.b", b"user.c"]
NODES_MAX = 50
BYTES_MAX = 2 << 20
"""In all files together, about."""
SYNC_S = 400.0
FILE = stat.S_IFREG
FOLDER = stat.S_IFDIR
NEW = -1
"""The number of an inode that was not given one yet."""


class Excuses(Protocol):
    """Knows what may fail just now."""

    def for_reads(self, node: str, since: float) -> bool: ...

    def for_syncs(self, node: str, since: float) -> bool: ...

    def for_disk(self, node: str, since: float) -> bool: ...


class Actor:
    """One program."""

    def __init__(self, mount: Mount, plan: Plan, task: int, excuses: Excuses) -> None:
        assert mount.parts is not None
        self.mount, self.plan, self.excuses = mount, plan, excuses
        self.parts: Parts = mount.parts
        self.files = self.parts.files
        self.names = self.parts.files.namespace
        self.history = mount.history
        self.folder = b"" if plan.shared else b"task%d" % task
        self.fenced = False
        """It was told that another machine writes now."""
        self.failed = 0

    async def do(self, op: Op) -> bool:
        """Do one operation; whether there was something that it could be done to."""
        stream = random.Random(op.draw)
        await trio.sleep(op.pause_s)
        begin = trio.current_time()
        self.mount.world.trace.record(self.mount.name, "do", op.kind, op.draw)
        method: Callable[[random.Random], Awaitable[bool]] = getattr(self, op.kind)
        try:
            await self._settle_in()
            done = await method(stream)
        except MachineDead:
            raise
        except (TakenOver, GridError, StorageError, OSError) as error:
            self.mount.require_alive()
            self._excuse(op, error, begin)
            done = True
        self.mount.require_alive()
        return done

    def _excuse(self, op: Op, error: Exception, begin: float) -> None:
        """An operation failed: that must have a reason, and it must have changed nothing."""
        trace = self.mount.world.trace
        trace.record(self.mount.name, "failed", op.kind, type(error).__name__, str(error)[:100])
        self.failed += 1
        is_fenced = isinstance(error, TakenOver) or getattr(error, "errno", 0) == errno.EROFS
        if is_fenced and self.mount.is_contested:
            self.fenced = True
            return
        node = self.mount.name
        reads = op.kind in ("read", "use_unlinked")
        excused = self.excuses.for_disk(node, begin) or (
            self.excuses.for_reads(node, begin) if reads else self.excuses.for_syncs(node, begin)
        )
        if not excused or is_fenced:
            raise Violation("availability", f"{op.kind}: {error!r}") from error
        if not self.excuses.for_disk(node, begin):
            self._check_names()

    def _check_names(self) -> None:
        found = skeleton(self.names)
        expected = self.history.now
        if found.described != expected.described:
            blank = {ino: replace(node, data=bytes(len(node.data))) for ino, node in expected.nodes.items()}
            raise Violation("answers", difference(found, State(blank, expected.names)))

    # ---- telling

    async def ready(self, *, room: bool = True) -> None:
        """What a front end does before a change."""
        self.files.require_writable()
        if room:
            await self.files.require_room()
        else:
            await self.files.pause.over()
        self.files.require_writable()

    def step(
        self,
        act: Callable[[], T],
        effect: Callable[[State, T | None], State],
        touched: Callable[[T], Iterable[int]],
    ) -> T:
        """Do one change and tell the history. `effect(state, None)` is what it does before its answer is
        known; `touched`: the inodes whose attributes it may change."""
        task = trio.lowlevel.current_task()
        self.mount.under_way[task] = lambda: effect(self.history.now, None)
        try:
            result = act()
        except (OSError, StorageError):
            self._undone()
            raise
        finally:
            del self.mount.under_way[task]
        self.mount.require_alive()
        self.tell(effect(self.history.now, result), touched(result))
        return result

    def _undone(self) -> None:
        """The disk failed at an operation. It is done or not, and nothing in between; if nothing else comes,
        the next mount may find it done all the same."""
        if not self.mount.is_alive:
            return
        maybe = self.mount.under_way[trio.lowlevel.current_task()]()
        try:
            found = skeleton(self.names)
        except (OSError, StorageError):
            self.history.maybe.append(maybe)
            return
        if found.described_loosely == maybe.described_loosely and found.described != self.state.described:
            self.history.tell(with_bytes(found, maybe))
        else:
            self.history.maybe.append(maybe)
            self._check_names()

    def tell(self, state: State, touched: Iterable[int]) -> None:
        """A change was made: note its attributes, once those that can be known were checked."""
        nodes = dict(state.nodes)
        for ino in touched:
            inode = self.parts.log.metadata.inode(ino)
            if inode is None:
                continue
            node = nodes[ino]
            expected = (oct(node.mode), node.uid, node.gid, node.rdev, node.read_only)
            shown = (oct(inode.mode), inode.uid, inode.gid, inode.rdev, inode.read_only)
            if shown != expected:
                raise Violation("answers", f"inode {ino} shows {shown}, not {expected}")
            if node.is_file and inode.size != len(node.data):
                raise Violation("answers", f"inode {ino} has {inode.size} bytes, not {len(node.data)}")
            if inode.nlink and inode.nlink != state.links(ino):
                raise Violation("answers", f"inode {ino} counts {inode.nlink} links, not {state.links(ino)}")
            nodes[ino] = node.seen(inode)
        self.history.tell(State(nodes, state.names))

    # ---- choosing

    @property
    def state(self) -> State:
        return self.history.now

    def paths(self, of: Callable[[Node], bool], *, changeable: bool = True) -> list[bytes]:
        state = self.state
        prefix = self.folder + b"/" if self.folder else b""
        return [
            path
            for path, ino in state.paths.items()
            if path.startswith(prefix)
            and of(state.nodes[ino])
            and not (changeable and state.nodes[ino].read_only)
        ]

    def a_file(self, stream: random.Random, *, changeable: bool = True) -> bytes | None:
        found = self.paths(lambda node: node.is_file, changeable=changeable)
        return stream.choice(found) if found else None

    def a_name(self, stream: random.Random) -> bytes | None:
        """Anything whose name may be changed."""
        found = [path for path in self.paths(lambda node: True, changeable=False) if self.may_change(path)]
        return stream.choice(found) if found else None

    def may_change(self, path: bytes) -> bool:
        """Whether the directory in which it lies is not part of a snapshot."""
        return not self.state.nodes[self.state.key(path)[0]].read_only

    def a_folder(self, stream: random.Random) -> int:
        """Where something may be made."""
        found = self.paths(lambda node: node.is_directory)
        base = self.state.paths[self.folder] if self.folder else ROOT
        deep = [path for path in found if path.count(b"/") < 4]
        if not deep or stream.random() < 0.5:
            return base
        return self.state.paths[stream.choice(deep)]

    def free(self, stream: random.Random, directory: int) -> bytes:
        """A name that is not taken."""
        names = [name for name in NAMES if self.state.find(directory, name) is None]
        if names:
            return stream.choice(names)
        number = 0
        while self.state.find(directory, b"n%d" % number) is not None:
            number += 1
        return b"n%d" % number

    @property
    def is_full(self) -> bool:
        state = self.state
        return len(state.paths) > NODES_MAX

    @property
    def has_many_bytes(self) -> bool:
        state = self.state
        return sum(len(state.nodes[ino].data) for ino in state.paths.values()) > BYTES_MAX

    # ---- names

    async def _settle_in(self) -> None:
        """Make the task's own folder, where it is not there."""
        while self.folder and self.folder not in self.state.paths:
            await self.ready()
            if self.folder not in self.state.paths:
                self._make(ROOT, self.folder, Node(FOLDER | 0o755))

    def _make(self, directory: int, name: bytes, node: Node) -> int:
        def act() -> int:
            return self.names.make(directory, name, node.mode, node.uid, node.gid, node.rdev, node.target).ino

        def effect(state: State, ino: int | None) -> State:
            number = ino or NEW
            return state.put(number, node).bind(directory, name, number)

        return self.step(act, effect, lambda ino: (directory, ino))

    async def mark(self) -> None:
        """Make one more file in the root."""
        await self.ready()
        name = b"mark%d" % self.history.last
        self._make(ROOT, name, Node(FILE | 0o600))
        await self._write(self.state.names[ROOT, name], 0, b"mark")

    async def make(self, stream: random.Random) -> bool:
        await self.ready()
        if self.is_full:
            return await self.unlink(stream)
        directory = self.a_folder(stream)
        mode = FILE | stream.choice([0o644, 0o600, 0o755])
        self._make(
            directory, self.free(stream, directory), Node(mode, stream.randrange(3), stream.randrange(3))
        )
        return True

    async def mkdir(self, stream: random.Random) -> bool:
        await self.ready()
        if self.is_full:
            return await self.rmdir(stream)
        directory = self.a_folder(stream)
        self._make(directory, self.free(stream, directory), Node(FOLDER | 0o755, 1, 1))
        return True

    async def symlink(self, stream: random.Random) -> bool:
        await self.ready()
        if self.is_full:
            return await self.unlink(stream)
        directory = self.a_folder(stream)
        node = Node(stat.S_IFLNK | 0o777, 1, 1, target=b"x" * stream.randint(1, 300))
        self._make(directory, self.free(stream, directory), node)
        return True

    async def link(self, stream: random.Random) -> bool:
        await self.ready()
        path = self.a_file(stream)
        if path is None or self.is_full:
            return await self.make(stream)
        ino, directory = self.state.paths[path], self.a_folder(stream)
        name = self.free(stream, directory)
        self.step(
            lambda: self.names.link(ino, directory, name),
            lambda state, _: state.bind(directory, name, ino),
            lambda _: (directory, ino),
        )
        return True

    async def unlink(self, stream: random.Random) -> bool:
        await self.ready(room=False)
        found = [
            path
            for path in self.paths(lambda node: not node.is_directory, changeable=False)
            if self.may_change(path)
        ]
        if not found:
            return False
        self._unlink(stream.choice(found))
        return True

    def _unlink(self, path: bytes) -> None:
        directory, name = self.state.key(path)
        ino = self.state.paths[path]
        self.step(
            lambda: self.names.unlink(directory, name),
            lambda state, _: state.unbind(directory, name),
            lambda _: (directory, ino),
        )

    async def rmdir(self, stream: random.Random) -> bool:
        await self.ready(room=False)
        state = self.state
        full = {directory for directory, _ in state.names}
        found = [path for path in self.paths(lambda node: node.is_directory) if state.paths[path] not in full]
        if not found:
            return False
        self._rmdir(stream.choice(found))
        return True

    def _rmdir(self, path: bytes) -> None:
        directory, name = self.state.key(path)
        self.step(
            lambda: self.names.rmdir(directory, name),
            lambda state, _: state.unbind(directory, name),
            lambda _: (directory,),
        )

    async def drop_snapshot(self, stream: random.Random) -> bool:
        """Of a snapshot's directory, with all that lies in it."""
        await self.ready(room=False)
        state = self.state
        found = [
            path
            for path in self.paths(lambda node: node.is_directory, changeable=False)
            if state.nodes[state.paths[path]].read_only and self.may_change(path)
        ]
        if not found:
            return False
        self._rmdir(stream.choice(found))
        return True

    # ---- renaming

    async def _rename(self, old: Key, directory: int, name: bytes, *, exchange: bool = False) -> bool:
        """Whether what it needs was still there when it was due."""
        moved, replaced = self.state.names[old], self.state.find(directory, name)
        await self.files.require_order(*old, directory, name)
        self.files.require_writable()
        if (self.state.find(*old), self.state.find(directory, name)) != (moved, replaced):
            return False
        if self._is_inside(directory, moved):
            return False
        flags = RENAME_EXCHANGE if exchange else 0

        def touched(_: None) -> list[int]:
            return [old[0], directory, moved, *([replaced] if replaced is not None else [])]

        self.step(
            lambda: self.files.rename(*old, directory, name, flags),
            lambda state, _: state.rename(old, (directory, name), exchange=exchange),
            touched,
        )
        if replaced is not None and replaced != moved:
            for ino in (moved, replaced) if exchange else (moved,):
                if self.state.nodes[ino].is_file:
                    self.history.moved.append((self.history.last, ino))
        return True

    def _is_inside(self, directory: int, ino: int) -> bool:
        return directory == ino or directory in set(self.state.below(ino))

    async def rename(self, stream: random.Random) -> bool:
        await self.ready(room=False)
        path = self.a_name(stream)
        if path is None:
            return False
        directory = self.a_folder(stream)
        if self._is_inside(directory, self.state.paths[path]):
            return False
        return await self._rename(self.state.key(path), directory, self.free(stream, directory))

    def _two_files(self, stream: random.Random) -> tuple[bytes, bytes] | None:
        files = [path for path in self.paths(lambda node: node.is_file) if self.may_change(path)]
        if len(files) < 2:
            return None
        first, second = stream.sample(files, 2)
        return None if self.state.paths[first] == self.state.paths[second] else (first, second)

    async def replace(self, stream: random.Random) -> bool:
        """A file over another one."""
        await self.ready(room=False)
        two = self._two_files(stream)
        if two is None:
            return False
        return await self._rename(self.state.key(two[0]), *self.state.key(two[1]))

    async def exchange(self, stream: random.Random) -> bool:
        await self.ready(room=False)
        two = self._two_files(stream)
        if two is None:
            return False
        return await self._rename(self.state.key(two[0]), *self.state.key(two[1]), exchange=True)

    async def save(self, stream: random.Random) -> bool:
        """As editors and package managers do: write beside, perhaps sync, rename over."""
        await self.ready()
        path = self.a_file(stream)
        if path is None or not self.may_change(path) or self.has_many_bytes:
            return await self.make(stream)
        directory, name = self.state.key(path)
        if self.state.find(directory, b"new~") is not None:
            return False
        ino = self._make(directory, b"new~", Node(FILE | 0o644, 1, 1))
        await self._write(ino, 0, stream.randbytes(stream.choice([10, 3000, 20_000])))
        if stream.random() < 0.4:
            await self._fsync(ino)
        await self.ready(room=False)
        there = self.state.find(directory, b"new~") == ino
        if not there or self.state.find(directory, name) is None or self._is_folder(directory, name):
            return True  # others were quicker
        await self._rename((directory, b"new~"), directory, name)
        if stream.random() < 0.3:
            await self._fsync(directory)
        return True

    def _is_folder(self, directory: int, name: bytes) -> bool:
        ino = self.state.find(directory, name)
        return ino is not None and not self.state.nodes[ino].is_file

    # ---- attributes

    async def chmod(self, stream: random.Random) -> bool:
        await self.ready(room=False)
        path = self.a_file(stream)
        if path is None:
            return False
        ino = self.state.paths[path]
        mode = FILE | stream.randrange(0o1000)
        self._change(ino, Change(mode=mode), mode=mode)
        return True

    async def utimens(self, stream: random.Random) -> bool:
        await self.ready(room=False)
        path = self.a_file(stream)
        if path is None:
            return False
        atime, mtime = (stream.randrange(-(10**18), 4 * 10**18) for _ in range(2))
        ino = self.state.paths[path]
        self._change(ino, Change(atime=atime, mtime=mtime), atime=atime, mtime=mtime)
        now = self.state.nodes[ino]
        if (now.atime, now.mtime) != (atime, mtime):
            raise Violation("answers", f"inode {ino} shows times other than those that were set")
        return True

    def _change(self, ino: int, change: Change, **expected: object) -> None:
        self.step(
            lambda: self.names.change(ino, change),
            lambda state, _: state.edit(ino, **expected),
            lambda _: (ino,),
        )

    async def set_xattr(self, stream: random.Random) -> bool:
        await self.ready(room=False)
        path = self.a_name(stream)
        if path is None or self.state.nodes[self.state.paths[path]].read_only:
            return False
        ino = self.state.paths[path]
        name, value = stream.choice(XATTRS), stream.randbytes(stream.choice([0, 5, 300]))
        others = tuple(item for item in self.state.nodes[ino].xattrs if item[0] != name)
        self.step(
            lambda: self.names.set_xattr(ino, name, value),
            lambda state, _: state.edit(ino, xattrs=tuple(sorted((*others, (name, value))))),
            lambda _: (ino,),
        )
        return True

    async def remove_xattr(self, stream: random.Random) -> bool:
        await self.ready(room=False)
        found = self.paths(lambda node: bool(node.xattrs))
        if not found:
            return False
        ino = self.state.paths[stream.choice(found)]
        name = stream.choice(self.state.nodes[ino].xattrs)[0]
        left = tuple(item for item in self.state.nodes[ino].xattrs if item[0] != name)
        self.step(
            lambda: self.names.remove_xattr(ino, name),
            lambda state, _: state.edit(ino, xattrs=left),
            lambda _: (ino,),
        )
        return True

    # ---- bytes

    async def _write(self, ino: int, offset: int, data: bytes) -> None:
        """Into an inode that is there, or was when it was opened."""
        handle = self.files.open(ino)
        task = trio.lowlevel.current_task()
        self.mount.under_way[task] = lambda: self.state.write(ino, offset, data)
        try:
            await self.files.write(handle, offset, data)
            self.mount.require_alive()
            self.tell(self.state.write(ino, offset, data), (ino,))
        except (OSError, StorageError):
            self._undone()
            raise
        finally:
            del self.mount.under_way[task]
            if self.mount.is_alive:
                self.files.release(handle)

    async def write(self, stream: random.Random) -> bool:
        await self.ready()
        path = self.a_file(stream)
        if path is None:
            return await self.make(stream)
        size = stream.choice([1, 10, 500, 4096, 10_000, 30_000])
        offset = stream.randrange(2 * len(self.state.nodes[self.state.paths[path]].data) + 2000)
        await self._write(self.state.paths[path], min(offset, 400_000), stream.randbytes(size))
        return True

    async def overwrite(self, stream: random.Random) -> bool:
        """Inside of what is there."""
        await self.ready()
        path = self.a_file(stream)
        if path is None:
            return await self.make(stream)
        length = len(self.state.nodes[self.state.paths[path]].data)
        size = stream.randint(1, max(1, length // stream.choice([1, 2, 10])))
        offset = stream.randrange(max(1, length - size + 1))
        await self._write(self.state.paths[path], offset, stream.randbytes(size))
        return True

    async def append(self, stream: random.Random) -> bool:
        await self.ready()
        path = self.a_file(stream)
        if path is None or self.has_many_bytes:
            return await self.make(stream)
        ino = self.state.paths[path]
        size = stream.choice([1, 100, 4096, 20_000])
        await self._write(ino, len(self.state.nodes[ino].data), stream.randbytes(size))
        return True

    async def large(self, stream: random.Random) -> bool:
        await self.ready()
        path = self.a_file(stream)
        if path is None or self.has_many_bytes:
            return await self.truncate(stream)
        size = stream.choice([70_000, 200_000, 450_000])
        await self._write(self.state.paths[path], stream.choice([0, 65_536, 1000]), stream.randbytes(size))
        return True

    async def truncate(self, stream: random.Random) -> bool:
        await self.ready(room=False)
        path = self.a_file(stream)
        if path is None:
            return False
        ino = self.state.paths[path]
        length = len(self.state.nodes[ino].data)
        size = stream.choice([0, 1, length // 2, max(0, length - 1), length + stream.randrange(9000), 65_536])
        self.step(
            lambda: self.names.change(ino, Change(size=size)),
            lambda state, _: state.truncate(ino, size),
            lambda _: (ino,),
        )
        return True

    async def read(self, stream: random.Random) -> bool:
        path = self.a_file(stream, changeable=False)
        if path is None:
            return False
        ino = self.state.paths[path]
        length = len(self.state.nodes[ino].data)
        size = stream.choice([1, 4096, 30_000, 128 << 10, 1 << 20])
        offset = 0 if stream.random() < 0.4 else stream.randrange(length + 1000)
        await self._read(ino, offset, size)
        return True

    async def _read(self, ino: int, offset: int, size: int) -> None:
        begin = self.history.last
        handle = self.files.open(ino)
        try:
            found = bytes(await self.files.read(handle, offset, size))
        finally:
            if self.mount.is_alive:
                self.files.release(handle)
        self.mount.require_alive()
        versions: list[bytes] = []
        for state in self.history.states[begin:]:
            piece = state.nodes[ino].data[offset : offset + size]
            if not versions or versions[-1] != piece:
                versions.append(piece)
        wrong = misfit(found, versions, zeros=False)
        if wrong is not None or not any(len(found) == len(version) for version in versions):
            raise Violation(
                "reads",
                f"inode {ino}, {size} bytes at {offset}: got {len(found)}, of which byte {wrong} is none of "
                f"{len(versions)} versions with {[len(version) for version in versions]} bytes",
            )

    async def use_unlinked(self, stream: random.Random) -> bool:
        """A file that loses its name while it is open stays usable."""
        await self.ready(room=False)
        files = [path for path in self.paths(lambda node: node.is_file) if self.may_change(path)]
        if not files:
            return False
        path = stream.choice(files)
        ino = self.state.paths[path]
        handle = self.files.open(ino)
        try:
            self._unlink(path)
            await self._write(ino, stream.randrange(5000), stream.randbytes(2000))
            await trio.sleep(stream.choice([0, 0.5, 4]))
            await self._read(ino, 0, 1 << 20)
        finally:
            if self.mount.is_alive:
                self.files.release(handle)
        return True

    # ---- clones

    async def clone(self, stream: random.Random) -> bool:
        await self.ready()
        path = self.a_file(stream, changeable=False)
        if path is None or self.is_full or self.has_many_bytes:
            return await self.make(stream)
        await self._clone(path, stream, read_only=False)
        return True

    async def clone_tree(self, stream: random.Random) -> bool:
        return await self._clone_tree(stream, read_only=False)

    async def snapshot(self, stream: random.Random) -> bool:
        return await self._clone_tree(stream, read_only=True)

    async def _clone_tree(self, stream: random.Random, *, read_only: bool) -> bool:
        await self.ready()
        found = self.paths(lambda node: node.is_directory, changeable=False)
        if not found or self.is_full or self.has_many_bytes:
            return False
        await self._clone(stream.choice(found), stream, read_only=read_only)
        return True

    async def _clone(self, path: bytes, stream: random.Random, *, read_only: bool) -> None:
        state = self.state
        source = state.paths[path]
        directory = self.a_folder(stream)
        name = self.free(stream, directory)
        maker = 1000 + stream.randrange(1 << 20)
        trees = self.files.trees

        def act() -> dict[int, int]:
            made = trees.make(directory, name, state.nodes[source].mode, maker)
            assert made is not None
            return self._copies(source, made.ino)

        def effect(state: State, copies: dict[int, int] | None) -> State:
            number = (lambda ino: -ino) if copies is None else copies.__getitem__
            cloned = state.clone(source, number, read_only=read_only)
            return cloned.bind(directory, name, number(source))

        async with trees.prepared(source, directory, name, maker, read_only=read_only):
            copies = self.step(act, effect, lambda copies: (directory, *copies.values()))
        for ino in copies.values():
            if self.state.nodes[ino].is_file:
                self.history.cloned.append((self.history.last, ino))

    def _copies(self, source: int, copy: int) -> dict[int, int]:
        """Inode -> its copy, of all below a clone."""
        copies = {source: copy}
        for (directory, name), ino in self.state.names.items():
            if directory == source:
                made = self.parts.log.metadata.lookup(copy, name)
                if made is None:
                    raise Violation("answers", f"a clone lacks {name!r}")
                copies.update(self._copies(ino, made))
        return copies

    # ---- durability

    async def fsync(self, stream: random.Random) -> bool:
        path = self.a_file(stream)
        if path is None:
            return False
        await self._fsync(self.state.paths[path])
        return True

    async def fsync_directory(self, stream: random.Random) -> bool:
        await self._fsync(self.a_folder(stream))
        return True

    async def _fsync(self, ino: int) -> None:
        index = self.history.last
        self.mount.outbox_emptied()
        await self.files.fsync(ino)
        if self.plan.fsync == "spool":
            self.mount.promised_locally(index, ino)
        else:
            self.mount.promised(index, ino)

    async def sync(self, stream: random.Random) -> bool:
        index = self.history.last
        with trio.move_on_after(SYNC_S) as scope:
            await self.files.sync()
            self.mount.promised(index, None)
        if scope.cancelled_caught and not self.mount.is_contested:
            since = trio.current_time() - SYNC_S
            if not self.excuses.for_syncs(self.mount.name, since):
                raise Violation("availability", f"gridfs sync took longer than {SYNC_S:g} s")
        return True

    # ---- the rest

    async def nap(self, stream: random.Random) -> bool:
        await trio.sleep(stream.choice([1.0, 5.0, 20.0]))
        return True

    async def look(self, stream: random.Random) -> bool:
        self._check_names()
        return True
