"""Mounting, tuning and serving: the life of a FUSE session.

The kernel asks 1 MiB at a time once the mount's read-ahead is raised (root only; without it 128 KiB),
and 1 MiB buffers come from the heap and not from fresh pages once glibc's mmap threshold is raised.
The mount is initialised by ourselves (`initialise`) where that works as expected, else by libfuse.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass

import pyfuse3
import trio

from gridfs.exits import CommandError
from gridfs.files.filesystem import FileSystem
from gridfs.fuse import initialise
from gridfs.fuse.handlers import Handlers
from gridfs.fuse.initialise import InitRefused, InitRequest
from gridfs.fuse.pages import Pages, store_to
from gridfs.fuse.pausing import let_changes_wait
from gridfs.fuse.turns import TURNS
from gridfs.host import mounts
from storage.host import have_one_heap, keep_on_heap

logger = logging.getLogger(__name__)

READ_AHEAD_KIB = 4096
TASKS_MIN = 8
"""Tasks kept at hand: each request that waits for something takes one."""
TASKS_MAX = 256
HEAP_BYTES = 32 << 20
MEMORY_PARTS = 8
"""Of files larger than that part of the memory no pages are stored: they would be gone before their time."""
KEPT_BYTES = 32 << 20

COLLECTED_OBJECTS = 10_000
"""New objects after which Python looks for cycles, of which there are few; 700 without a word."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    mountpoint: str
    source: str
    """What /proc/mounts shows as the device: the path of the file system's folder."""
    read_only: bool
    allow_other: bool
    attr_timeout_s: float
    atime: bool = True
    """Reads move access times."""
    acl: bool = True
    """POSIX access control lists; without them nobody asks for any."""
    own_init: bool = True
    """Answer FUSE_INIT here; else, and where that is refused, libfuse does."""


def tune_allocator() -> None:
    """Keep buffers of a request's size on the heap. Called once, early in the daemon."""
    gc.freeze()  # modules and what they made are here to stay
    gc.set_threshold(COLLECTED_OBJECTS)
    have_one_heap()
    keep_on_heap(HEAP_BYTES, KEPT_BYTES)


class Session:
    """One mount point. `open` mounts, `serve` answers until it is unmounted, `close` cleans up."""

    def __init__(self, files: FileSystem, config: SessionConfig) -> None:
        self._config = config
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._pages = Pages(memory // MEMORY_PARTS)
        self._handlers = Handlers(
            files,
            config.attr_timeout_s,
            acl=config.acl,
            atime=config.atime and not config.read_only,
            writeback=not config.read_only,
            pages=self._pages,
        )
        let_changes_wait(self._handlers, files.pause)
        self._open = False
        self._device: int | None = None
        """Where we initialised the mount: the number of its descriptor."""

    async def open(self) -> None:
        """Mount. Raises RuntimeError with libfuse's one-line reason."""
        TURNS.install()
        options = [
            initialise.option("fsname", self._config.source),
            "subtype=gridfs",
            "default_permissions",
            *(["allow_other"] if self._config.allow_other else []),
            *(["ro"] if self._config.read_only else []),
        ]
        if self._config.own_init:
            try:
                await self._open_ourselves(options)
            except InitRefused as error:
                logger.warning("libfuse initialises the mount: %s", error)
        if self._device is None:
            pyfuse3.init(self._handlers, self._config.mountpoint, set(options))
        self._open = True

    async def _open_ourselves(self, options: list[str]) -> None:
        """Mount, and hand the initialised device to libfuse. Raises InitRefused with nothing mounted."""
        device = initialise.mount(self._config.mountpoint, options)
        try:
            request = initialise.read_request(device)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            number = theirs.detach()  # libfuse closes it
            with ours:
                _start_libfuse(self._handlers, number)
                try:
                    reply = await _libfuse_answer(request, ours, number)
                    self._handlers.own_init = True
                    initialise.write_answer(device, initialise.amend(request, reply))
                except BaseException:
                    self._handlers.own_init = False
                    pyfuse3.close(unmount=False)
                    raise
            os.dup2(device, number, inheritable=False)
            self._device = number
            self._pages.store = store_to(number)
        except BaseException:
            _detach(self._config.mountpoint)
            raise
        finally:
            os.close(device)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer requests until the file system is unmounted or `stop` is called."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._raise_read_ahead)
            nursery.start_soon(self._handlers.rows.run)
            nursery.start_soon(self._handlers.nameless.run)
            task_status.started()
            await pyfuse3.main(TASKS_MIN, TASKS_MAX)
            nursery.cancel_scope.cancel()

    async def forget(self, inodes: Collection[int]) -> None:
        """Let the kernel forget what it has of these inodes: somebody else has changed them."""
        await self._pages.all_still(inodes)
        # In a thread: the kernel may wait there for pages that we are just asked for.
        await trio.to_thread.run_sync(_forget, list(inodes))

    def statistics(self) -> dict[str, int]:
        """How often the kernel asked since the mount, by handler."""
        return dict(self._handlers.calls)

    @property
    def init(self) -> str:
        """Who agreed with the kernel on what it asks: own or libfuse."""
        return "libfuse" if self._device is None else "own"

    def stop(self) -> None:
        """Unmount, and let `serve` return. Raises nothing; programs with open files get errors."""
        if self._open:
            pyfuse3.terminate()

    def close(self) -> None:
        """Unmount if it is still mounted. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._pages.close()
        if self._device is None:
            pyfuse3.close(unmount=True)
            return
        is_mounted = initialise.is_connected(self._device)
        # The device is closed first: unmounting would wait for answers that nobody gives any more.
        pyfuse3.close(unmount=False)
        if is_mounted:
            _detach(self._config.mountpoint)

    async def _raise_read_ahead(self) -> None:
        """In a thread: the stat is answered by ourselves."""

        def write() -> None:
            device = os.stat(self._config.mountpoint).st_dev
            path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
            with open(path, "w") as file:
                file.write(str(READ_AHEAD_KIB))

        try:
            await trio.to_thread.run_sync(write, abandon_on_cancel=True)
        except OSError as error:
            logger.info("the kernel's read-ahead stays as it is (%s)", error.strerror)


def _forget(inodes: list[int]) -> None:
    for ino in inodes:
        with contextlib.suppress(OSError):  # ENOENT: the kernel has nothing of it
            pyfuse3.invalidate_inode(ino)


def _start_libfuse(handlers: Handlers, number: int) -> None:
    """Let libfuse take descriptor `number` for the device of a mount that somebody else made."""
    try:
        pyfuse3.init(handlers, f"/dev/fd/{number}", {"default_permissions"})
    except RuntimeError as error:
        os.close(number)
        raise InitRefused(f"libfuse takes no descriptor: {error}") from None


async def _libfuse_answer(request: InitRequest, ours: socket.socket, number: int) -> bytes:
    """Play INIT to libfuse, which listens at the other end, as `number`. Raises InitRefused.

    pyfuse3's loop runs for this one request; it waits for nothing on `number` afterwards.
    """
    failure: Exception | None = None
    ended = trio.Event()

    async def run_libfuse() -> None:
        nonlocal failure
        try:
            await pyfuse3.main(1, 1)
        except Exception as error:
            failure = error
        finally:
            ended.set()

    reply = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_libfuse)
        ours.setblocking(False)
        ours.send(request.data)
        with trio.move_on_after(initialise.ANSWER_S_MAX):
            await trio.lowlevel.wait_readable(ours)
            reply = ours.recv(initialise.READ_BYTES)
        while not ended.is_set():
            trio.lowlevel.notify_closing(number)
            await trio.lowlevel.checkpoint()
    if failure is not None or not reply:
        raise InitRefused(f"libfuse does not answer INIT: {failure}")
    return reply


def _detach(mountpoint: str) -> None:
    try:
        mounts.unmount(mountpoint, lazy=True)
    except CommandError as error:
        logger.error("%s stays mounted: %s", mountpoint, error)
