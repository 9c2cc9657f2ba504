"""Mounting, tuning and serving: the life of a FUSE session.

The kernel asks 1 MiB at a time once the mount's read-ahead is raised (root only; without it 128 KiB),
and 1 MiB buffers come from the heap and not from fresh pages once glibc's mmap threshold is raised.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from dataclasses import dataclass

import pyfuse3
import trio

from gridfs.files.filesystem import FileSystem
from gridfs.fuse.handlers import Handlers
from gridfs.fuse.pausing import let_changes_wait

logger = logging.getLogger(__name__)

READ_AHEAD_KIB = 4096
TASKS_MAX = 256
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
HEAP_BYTES = 32 << 20
KEPT_BYTES = 32 << 20
"""Free memory at the top of the heap that is kept: giving it back and taking it again costs page faults."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    mountpoint: str
    source: str
    """What /proc/mounts shows as the device: the path of the file system's folder."""
    read_only: bool
    allow_other: bool
    attr_timeout_s: float


def tune_allocator() -> None:
    """Keep buffers of a request's size on the heap. Called once, early in the daemon."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 1)  # buffers travel between threads: one heap has them all
        libc.mallopt(M_MMAP_THRESHOLD, HEAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


class Session:
    """One mount point. `open` mounts, `serve` answers until it is unmounted, `close` cleans up."""

    def __init__(self, files: FileSystem, config: SessionConfig) -> None:
        self._config = config
        self._handlers = Handlers(files, config.attr_timeout_s)
        let_changes_wait(self._handlers, files.pause)
        self._open = False

    def open(self) -> None:
        """Mount. Raises RuntimeError with libfuse's one-line reason."""
        options = {f"fsname={self._config.source}", "subtype=gridfs", "default_permissions"}
        if self._config.allow_other:
            options.add("allow_other")
        if self._config.read_only:
            options.add("ro")
        pyfuse3.init(self._handlers, self._config.mountpoint, options)
        self._open = True

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer requests until the file system is unmounted or `stop` is called."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._raise_read_ahead)
            task_status.started()
            await pyfuse3.main(1, TASKS_MAX)

    def stop(self) -> None:
        """Unmount, and let `serve` return. Raises nothing; programs with open files get errors."""
        if self._open:
            pyfuse3.terminate()

    def close(self) -> None:
        """Unmount if it is still mounted. Idempotent."""
        if self._open:
            self._open = False
            pyfuse3.close(unmount=True)

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
