"""Random system calls on a mount and on a file system in memory, whose answers and trees must be equal.

One seed gives the same calls again (what the daemon does in the background is not under its control). Now
and then everything is compared, the mount is left and entered, or its daemon is killed: with all files
closed before, so that nothing may differ, or with files open, whose unsent bytes may then be old or new.
`scripts/fuzz-mount` runs it for long.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import mmap
import os
import random
import signal
import stat
import sys
import tempfile
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gridfs.cli.clone import make_clone
from gridfs.exits import CommandError
from tests.mount.memory import EXCHANGE, NOREPLACE, MemoryFileSystem, Node
from tests.processes import TRACE, FileSystemShape, LocalGrid, MountedFileSystem, clean_up

NAMES = "abcdef"
DEPTH_MAX = 3
NODES_MAX = 60
HANDLES_MAX = 12
VERSIONS_MAX = 30
FILE_BYTES_MAX = 400_000
COMPARED_EVERY = 250
SYNCED_EVERY = 400
LEFT_EVERY = 2500
KILLED_EVERY = 1500
SHOWN = 40
AT_FDCWD = -100
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Handle:
    """An open file on both sides."""

    descriptor: int
    node: Node
    append: bool


class Difference(AssertionError):
    """The mount did not do what the model did; says which call of which seed."""


class Fuzzer:
    """One run on one mount. `root`: an empty directory of the mount."""

    def __init__(self, mounted: MountedFileSystem, root: Path, seed: int) -> None:
        self.mounted, self.root, self.seed = mounted, root, seed
        self.chance = random.Random(seed)
        self.model = MemoryFileSystem()
        self.handles: list[Handle] = []
        self.done = 0
        self.said: deque[str] = deque(maxlen=SHOWN)
        self.counted: Counter[str] = Counter()
        """Calls that were done, by their first word; refused ones with their errno."""
        self.calls: list[tuple[Callable[[], None], int]] = [
            (self.create, 8), (self.mkdir, 4), (self.symlink, 2), (self.link, 3), (self.unlink, 5),
            (self.rmdir, 3), (self.rename, 7), (self.open, 8), (self.close, 6), (self.read, 16),
            (self.write, 24), (self.truncate, 4), (self.truncate_handle, 4), (self.write_mapped, 4),
            (self.read_mapped, 3), (self.fsync, 1), (self.chmod, 2), (self.set_xattr, 2),
            (self.remove_xattr, 1), (self.utime, 2), (self.list, 4), (self.stat, 6), (self.clone, 2),
            (self.snapshot, 1), (self.remove_snapshot, 1),
        ]  # fmt: skip

    # ---- the run

    def run(self, operations: int) -> None:
        """Raises Difference."""
        calls, weights = zip(*self.calls, strict=True)
        try:
            while self.done < operations:
                before = self.done
                self.chance.choices(calls, weights)[0]()
                if self.done > before:  # some find nothing that they could be done to
                    self._now_and_then()
            self.close_all()
            self.compare()
        except (AssertionError, OSError, CommandError) as error:
            raise Difference(
                f"seed {self.seed}, operation {self.done}: {error!r}\nthe last ones:\n" + "\n".join(self.said)
            ) from error
        finally:
            self.forget_handles()

    def _now_and_then(self) -> None:
        if self.done % COMPARED_EVERY == 0:
            self.compare()
        if self.chance.randrange(SYNCED_EVERY) == 0:
            self._remember("gridfs sync")
            self.mounted.sync()
        if self.chance.randrange(LEFT_EVERY) == 0:
            self._remember("remount")
            self.close_all()
            self.mounted.remount()
            self.compare()
        if self.chance.randrange(KILLED_EVERY) == 0:
            self.kill(close_first=self.chance.random() < 0.6)

    def say(self, *words: object) -> None:
        """Before a call, or once its refusal is known: count and remember it."""
        self.done += 1
        self._remember(*words)

    def _remember(self, *words: object) -> None:
        text = " ".join(str(word) for word in words)
        self.said.append(f"{self.done}: {text}")
        refusal = str(words[-1])
        self.counted[f"{words[0]} {refusal}" if refusal.startswith("E") else str(words[0])] += 1

    def both(self, real: Callable[[], object], model: Callable[[], object], *words: object) -> bool:
        """Do one call on both sides; whether it was done. What each refuses must be the same."""
        expected = _refusal(model)
        found = _refusal(real)
        self.say(*words, "" if not expected else errno.errorcode[expected])
        if expected == errno.EROFS and found:
            return False  # Linux finds other reasons first, and all are good
        names = [errno.errorcode.get(code, str(code)) for code in (found, expected)]
        assert found == expected, f"{words}: {names[0]} and not {names[1]}"
        return not expected

    # ---- choosing

    def path(self, kinds: str = "fdl", *, new: float = 0.1) -> str:
        """Mostly one that is there."""
        found = [path for path, node in self.model.walk() if node.kind in kinds]
        if not found or self.chance.random() < new:
            return self.new_path()
        return self.chance.choice(found)

    def new_path(self) -> str:
        folders = ["", *(path for path, node in self.model.walk() if node.kind == "d")]
        folder = self.chance.choice([path for path in folders if path.count("/") < DEPTH_MAX - 1])
        if self.chance.random() < 0.02:
            folder = f"{folder}/none" if folder else "none"
        name = self.chance.choice(NAMES)
        return f"{folder}/{name}" if folder else name

    def is_symlink(self, path: str) -> bool:
        return any(found == path and node.kind == "l" for found, node in self.model.walk())

    def handle(self) -> Handle | None:
        return self.chance.choice(self.handles) if self.handles else None

    def is_full(self) -> bool:
        return sum(1 for _ in self.model.walk()) > NODES_MAX

    def data(self) -> bytes:
        size = self.chance.choice((1, 10, 511, 4096, 5000, 20_000, 70_000))
        return self.chance.randbytes(1 + self.chance.randrange(size))

    def offset(self, node: Node) -> int:
        size = len(node.data)
        kind = self.chance.random()
        if kind < 0.3:
            return size
        if kind < 0.4:
            return size + self.chance.randrange(100_000)
        return self.chance.randrange(size + 1)

    # ---- names

    def create(self) -> None:
        path = self.new_path()
        if self.is_full() or len(self.handles) >= HANDLES_MAX:
            return
        mode = self.chance.randrange(0o1000)

        def real() -> None:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
            made.append(os.open(self.root / path, flags, mode))

        made: list[int] = []
        if self.both(real, lambda: self.model.make(path, "f", mode & ~0o022), "create", path, oct(mode)):
            self.handles.append(Handle(made[0], self.model.find(path), append=False))

    def mkdir(self) -> None:
        path = self.new_path()
        if not self.is_full():
            self.both(
                lambda: os.mkdir(self.root / path, 0o750),
                lambda: self.model.make(path, "d", 0o750),
                "mkdir", path,
            )  # fmt: skip

    def symlink(self) -> None:
        path, target = self.new_path(), f"nowhere-{self.done}"
        if not self.is_full():
            self.both(
                lambda: os.symlink(target, self.root / path),
                lambda: self.model.make(path, "l", 0o777, target),
                "symlink", path,
            )  # fmt: skip

    def link(self) -> None:
        source, path = self.path(), self.path(new=0.8)
        self.both(
            lambda: os.link(self.root / source, self.root / path, follow_symlinks=False),
            lambda: self.model.link(source, path),
            "link", source, path,
        )  # fmt: skip

    def unlink(self) -> None:
        path = self.path("fl" if self.chance.random() < 0.9 else "d")
        self.both(lambda: os.unlink(self.root / path), lambda: self.model.unlink(path), "unlink", path)

    def rmdir(self) -> None:
        path = self.path("d" if self.chance.random() < 0.9 else "fl")
        found = dict(self.model.walk()).get(path)
        if found is None or not found.read_only:
            self.both(lambda: os.rmdir(self.root / path), lambda: self.model.rmdir(path), "rmdir", path)

    def rename(self) -> None:
        source, target = self.path(), self.path(new=0.6)
        flags = self.chance.choice((0, 0, 0, 0, NOREPLACE, EXCHANGE))

        def real() -> None:
            one, other = os.fsencode(self.root / source), os.fsencode(self.root / target)
            if LIBC.renameat2(AT_FDCWD, one, AT_FDCWD, other, flags):
                raise OSError(ctypes.get_errno(), "renameat2")

        self.both(real, lambda: self.model.rename(source, target, flags), "rename", source, target, flags)

    def clone(self) -> None:
        self._copy(self.path(new=0), self.path(new=0.9), read_only=False)

    def snapshot(self) -> None:
        self._copy(self.path("d", new=0), self.path(new=0.9), read_only=True)

    def _copy(self, source: str, target: str, *, read_only: bool) -> None:
        if self.is_full() or source not in dict(self.model.walk()):
            return

        def real() -> None:
            try:
                make_clone(str(self.root / source), str(self.root / target), read_only=read_only)
            except CommandError as error:
                reasons = {"there already": errno.EEXIST, "not a directory": errno.ENOTDIR}
                code = next((code for words, code in reasons.items() if words in str(error)), 0)
                raise OSError(code or errno.EROFS, str(error)) from error

        for handle in self.handles:
            self._send(handle)  # the kernel keeps what was written to open files, for a while
        word = "snapshot" if read_only else "clone"
        self.both(real, lambda: self.model.clone(source, target, read_only=read_only), word, source, target)

    def remove_snapshot(self) -> None:
        tops = [path for path, node in self.model.walk() if node.read_only and node.kind == "d"]
        if tops:
            path = self.chance.choice(tops)
            self.both(
                lambda: os.rmdir(self.root / path), lambda: self.model.rmdir(path), "rmdir snapshot", path
            )

    # ---- open files

    def open(self) -> None:
        path = self.path("f" if self.chance.random() < 0.95 else "d", new=0.02)
        if len(self.handles) >= HANDLES_MAX or self.is_symlink(path):
            return
        append, cut = self.chance.random() < 0.15, self.chance.random() < 0.1
        flags = os.O_RDWR | (os.O_APPEND if append else 0) | (os.O_TRUNC if cut else 0)

        def real() -> None:
            opened.append(os.open(self.root / path, flags))

        def model() -> None:
            node = self.model.find(path)
            if node.kind == "d":
                raise OSError(errno.EISDIR, "")
            if node.read_only:
                raise OSError(errno.EROFS, "")
            if cut:
                node.truncate(0)

        opened: list[int] = []
        if self.both(real, model, "open", path, "append" * append, "truncate" * cut):
            self.handles.append(Handle(opened[0], self.model.find(path), append))

    def close(self) -> None:
        if self.handles:
            handle = self.handles.pop(self.chance.randrange(len(self.handles)))
            self.say("close", handle.descriptor)
            os.close(handle.descriptor)
            handle.node.sent()

    def read(self) -> None:
        handle = self.handle()
        if handle is None:
            return
        offset, size = self.offset(handle.node), self.chance.choice((1, 4096, 30_000, 200_000))
        self.say("read", handle.descriptor, offset, size)
        assert os.pread(handle.descriptor, size, offset) == handle.node.data[offset : offset + size]

    def write(self) -> None:
        handle = self.handle()
        if handle is None or len(handle.node.data) > FILE_BYTES_MAX:
            return
        data = self.data()
        offset = len(handle.node.data) if handle.append else self.offset(handle.node)
        self.say("write", handle.descriptor, offset, len(data))
        if handle.append:
            assert os.write(handle.descriptor, data) == len(data)
        else:
            assert os.pwrite(handle.descriptor, data, offset) == len(data)
        handle.node.write(offset, data)
        if len(handle.node.versions) > VERSIONS_MAX:
            self._send(handle)

    def truncate(self) -> None:
        path = self.path("f" if self.chance.random() < 0.95 else "d", new=0.02)
        size = self.chance.randrange(150_000)
        if not self.is_symlink(path):
            self.both(
                lambda: os.truncate(self.root / path, size),
                lambda: self.model.truncate(path, size),
                "truncate", path, size,
            )  # fmt: skip

    def truncate_handle(self) -> None:
        handle = self.handle()
        if handle is not None:
            size = self.chance.choice((0, self.offset(handle.node)))
            self.say("ftruncate", handle.descriptor, size)
            os.ftruncate(handle.descriptor, size)
            handle.node.truncate(size)

    def write_mapped(self) -> None:
        handle = self.handle()
        if handle is None or not handle.node.data:
            return
        size = len(handle.node.data)
        offset = self.chance.randrange(size)
        data = self.data()[: size - offset]
        self.say("write mapped", handle.descriptor, offset, len(data))
        with mmap.mmap(handle.descriptor, size) as mapped:
            mapped[offset : offset + len(data)] = data
            if self.chance.random() < 0.3:
                mapped.flush()
        handle.node.write(offset, data)

    def read_mapped(self) -> None:
        handle = self.handle()
        if handle is None or not handle.node.data:
            return
        self.say("read mapped", handle.descriptor)
        with mmap.mmap(handle.descriptor, len(handle.node.data), prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == handle.node.data

    def fsync(self) -> None:
        handle = self.handle()
        if handle is not None:
            self.say("fsync", handle.descriptor)
            os.fsync(handle.descriptor)
            handle.node.sent()

    def _send(self, handle: Handle) -> None:
        """What close does, without the close."""
        os.close(os.dup(handle.descriptor))
        handle.node.sent()

    # ---- attributes

    def chmod(self) -> None:
        path, mode = self.path("fd"), self.chance.randrange(0o1000)
        if not self.is_symlink(path):
            self.both(
                lambda: os.chmod(self.root / path, mode), lambda: self.model.chmod(path, mode), "chmod", path
            )

    def set_xattr(self) -> None:
        path, value = self.path("fd"), self.chance.randbytes(self.chance.randrange(300))
        name = f"user.{self.chance.choice(NAMES)}"
        if not self.is_symlink(path):
            self.both(
                lambda: os.setxattr(self.root / path, name, value),
                lambda: self.model.set_xattr(path, name, value),
                "setxattr", path, name, len(value),
            )  # fmt: skip

    def remove_xattr(self) -> None:
        path, name = self.path("fd"), f"user.{self.chance.choice(NAMES)}"
        if not self.is_symlink(path):
            self.both(
                lambda: os.removexattr(self.root / path, name),
                lambda: self.model.remove_xattr(path, name),
                "removexattr", path, name,
            )  # fmt: skip

    def utime(self) -> None:
        path, now = self.path("fd", new=0), self.chance.randrange(-(1 << 40), 1 << 60)
        node = dict(self.model.walk()).get(path)
        if node is not None and not node.read_only:
            self.say("utime", path, now)
            os.utime(self.root / path, ns=(now, now + 1))
            found = os.stat(self.root / path)
            assert (found.st_atime_ns, found.st_mtime_ns) == (now, now + 1)

    def list(self) -> None:
        path = self.path("d", new=0)
        node = dict(self.model.walk()).get(path, self.model.root)
        if node.kind == "d":
            self.say("list", path)
            where = self.root / path if node is not self.model.root else self.root
            assert sorted(os.listdir(where)) == sorted(node.entries)

    def stat(self) -> None:
        path = self.path()

        def real() -> None:
            found.append(os.lstat(self.root / path))

        found: list[os.stat_result] = []
        if self.both(real, lambda: self.model.find(path), "stat", path):
            self._same_attributes(path, self.model.find(path), found[0])

    # ---- comparing everything

    def compare(self) -> None:
        """Every name, attribute and byte; what is not open is read from the daemon again."""
        self._remember("compare")
        model = dict(self.model.walk())
        found = {str(path.relative_to(self.root)): path for path in self.root.rglob("*")}
        assert sorted(found) == sorted(model)
        inodes: dict[int, Node] = {}
        for path, node in model.items():
            status = os.lstat(found[path])
            self._same_attributes(path, node, status)
            assert inodes.setdefault(status.st_ino, node) is node, f"{path}: another inode"
            if node.kind == "f":
                assert _content(found[path]) == node.data, f"{path}: content"
            if node.kind == "l":
                assert os.readlink(found[path]) == node.target, f"{path}: target"
        assert len(inodes) == len({id(node) for node in model.values()})

    def _same_attributes(self, path: str, node: Node, status: os.stat_result) -> None:
        kind = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}[stat.S_IFMT(status.st_mode)]
        mode = stat.S_IMODE(status.st_mode)
        assert (kind, mode, status.st_nlink) == (node.kind, node.mode, node.links), f"{path}: attributes"
        if kind == "f":
            assert status.st_size == len(node.data), f"{path}: size"
        if kind != "l":
            where = self.root / path
            xattrs = {name: os.getxattr(where, name) for name in os.listxattr(where)}
            assert xattrs == node.xattrs, f"{path}: extended attributes"

    # ---- kills

    def close_all(self) -> None:
        while self.handles:
            handle = self.handles.pop()
            os.close(handle.descriptor)
            handle.node.sent()

    def forget_handles(self) -> None:
        for handle in self.handles:
            try:
                os.close(handle.descriptor)
            except OSError as error:
                if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                    raise
        self.handles.clear()

    def kill(self, *, close_first: bool) -> None:
        """kill -9 of the daemon. What was acknowledged is there; bytes that the kernel kept may be old."""
        self._remember("kill", "closed" if close_first else "with open files")
        if close_first:
            self.close_all()
        self.mounted.kill_daemon()
        self.forget_handles()
        self.mounted.mount()
        for path, node in self.model.walk():
            if node.kind == "f" and node.versions:
                found = (self.root / path).read_bytes()
                assert node.may_be(found), f"{path}: neither old nor new bytes after a kill"
                node.data[:] = found
                node.sent()
        self.compare()


def _refusal(call: Callable[[], object]) -> int:
    """The errno with which a call fails, 0 if it does not."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(prog="fuzz-mount", description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=100_000, metavar="N")
    parser.add_argument("--seed", type=int, default=time.time_ns() % (1 << 32), metavar="S")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    os.environ[TRACE] = uuid.uuid4().hex
    os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="gridfs-fuzz", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        grid = LocalGrid(directory / "grid")
        mounted = MountedFileSystem(grid, directory / "home", directory / "mnt")
        print(f"seed {given.seed}, {given.operations} operations", flush=True)
        try:
            grid.up(6)
            mounted.create(FileSystemShape())
            mounted.mount()
            fuzzer = Fuzzer(mounted, mounted.path, given.seed)
            try:
                fuzzer.run(given.operations)
            except Difference as difference:
                print(difference, file=sys.stderr)
                sys.exit(1)
            print(f"seed {given.seed}: {fuzzer.done} operations without a difference")
            print(", ".join(f"{what} {count}" for what, count in sorted(fuzzer.counted.items())))
        finally:
            mounted.tear_down()
            grid.tear_down()
            clean_up(os.environ[TRACE], directory)


if __name__ == "__main__":
    main()
