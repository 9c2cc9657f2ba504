"""Ports to the machine: disk, network, clock, entropy and threads.

Everything in `storage` and `gridfs` that touches the machine does so through these, so that a whole
grid, client included, runs in one process on simulated ones under trio's MockClock. Monotonic time is
trio's own clock (`trio.current_time()`) and needs no port. `storage.host` has the real adapters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeVar

import trio

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")


@dataclass(frozen=True)
class Space:
    """Bytes of a disk or of a server."""

    total: int
    """Capacity in bytes."""
    free: int
    """Bytes that this process may still use."""


class File(Protocol):
    """An open file. Calls are synchronous; long ones are made through `Offload`."""

    @property
    def descriptor(self) -> int | None:
        """The operating system's descriptor (for sendfile), or None where there is none (simulation)."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; returns the bytes read, less than asked only at the end of file."""

    def read_ready(self, buffer: memoryview, offset: int) -> int:
        """Like `read_into`, but only what is in memory: fewer bytes, or none, where the disk would have to
        be waited for. Never waits."""

    def read_direct(self, buffer: memoryview, offset: int) -> int:
        """Like `read_into`, for large ranges read once: past the page cache where possible.

        Offset, length and memory are page-aligned (`storage.pages`).
        """

    def write_at(self, parts: Sequence[Buffer], offset: int) -> int:
        """Write all parts one after the other from `offset`; returns their total. OSError on failure."""

    def write_through(self, parts: Sequence[Buffer], offset: int) -> int:
        """`write_at`, and these bytes are durable on return, with the size; others need not be.

        Whole pages in one page-aligned part go past the page cache where possible.
        """

    def write_direct(self, data: Buffer, offset: int) -> int:
        """Like `write_at`, for large data that nobody will read soon: past the page cache where possible.

        Page-aligned memory gets there (`storage.pages`). No other call on this file may run meanwhile.
        """

    def sync(self) -> None:
        """Make the file's bytes and size durable (fdatasync)."""

    def resize(self, size: int) -> None:
        """Cut or extend (with zeros) to `size` bytes."""

    def size(self) -> int: ...

    def close(self) -> None:
        """Idempotent."""


class Disk(Protocol):
    """A tree of files. Paths are absolute. Errors are OSError, as the operating system gives them."""

    @property
    def sqlite_vfs(self) -> str | None:
        """Name of the apsw VFS that keeps SQLite files on this disk; None for SQLite's own."""

    def open(
        self, path: str, *, create: bool = False, exclusive: bool = False, writable: bool = True
    ) -> File:
        """Open a file; with `create` make it (mode 0600) where missing, with `exclusive` only then."""

    def replace(self, source: str, target: str) -> None:
        """Rename atomically over `target`; durable after `sync_directory` of its parent."""

    def remove(self, path: str) -> None: ...

    def make_directory(self, path: str) -> None:
        """Make the directory (mode 0700) and its parents where missing."""

    def names(self, path: str) -> list[str]:
        """Names in a directory, sorted; FileNotFoundError where there is none."""

    def sync_directory(self, path: str) -> None:
        """Make creations, renames and removals in this directory durable."""

    def space(self, path: str) -> Space: ...


class Brief(IntEnum):
    """Kinds of calls that most disks end sooner than a worker thread would begin them."""

    READ = 0
    """Of a few pages."""
    SYNC = 1
    """Of a few pages just written."""
    LONGER_READ = 2
    """Of some hundred kilobytes."""
    LARGE_READ = 3
    """Of about a megabyte: never in the loop, but of a disk that is quick not worth being kept in memory."""


class Offload(Protocol):
    """Runs what would hold up the loop: in a worker thread, or inline in simulation.

    Handing a call over to a thread and back costs more than a good disk takes for a small one. Such brief
    calls are made in the loop for as long as those of their kind have lately been quick, wherever they ran:
    a disk that becomes slow holds the loop up for a few calls, one that hangs for as long as it hangs.
    """

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call `function(*args)` away from the loop. A checkpoint; not cancelled half-way."""

    def is_brief(self, kind: Brief) -> bool:
        """Whether a call of this kind is better made in the loop just now."""

    def run_here(self, kind: Brief, function: Callable[..., T], *args: object) -> T:
        """Call it in the loop, where `is_brief` said so."""

    async def run_brief(self, kind: Brief, function: Callable[..., T], *args: object) -> T:
        """Call it where it is better. A checkpoint only where that is away from the loop."""


class Entropy(Protocol):
    def token(self, size: int) -> bytes:
        """`size` bytes fit for keys and nonces."""


class WallClock(Protocol):
    def now_ns(self) -> int:
        """Nanoseconds since 1970, for time stamps in metadata only; never for deadlines."""


@dataclass(frozen=True)
class UnixAddress:
    path: str


@dataclass(frozen=True)
class TlsAddress:
    host: str
    port: int


Address = UnixAddress | TlsAddress


class ByteStream(Protocol):
    """One connection. One task receives, one task sends; errors are `storage.errors.Unavailable`."""

    async def receive_into(self, buffers: Sequence[memoryview]) -> int:
        """Receive at least one byte into the buffers in order; returns the count, 0 at the end."""

    async def send_all(self, parts: Sequence[Buffer]) -> None:
        """Send all parts one after the other. If cancelled, the stream must be closed."""

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        """Send what the stream takes at once; returns how many bytes that is, 0 where it is broken, too.

        Only while no task is in `send_all` or `send_file`. What it did not take must be sent next.
        """

    async def send_file(self, file: File, offset: int, length: int) -> None:
        """Send `length` bytes of `file`: by sendfile where the stream is plain."""

    def close(self) -> None:
        """Idempotent, immediate; wakes both tasks."""


Handler = Callable[[ByteStream], Awaitable[None]]


class Network(Protocol):
    async def connect(self, address: Address, server_key: bytes) -> ByteStream:
        """Connect; over TLS only to the holder of the Ed25519 public key `server_key` (32 bytes).

        Raises Unavailable where nobody answers, Refused where another key answers.
        """

    async def serve(
        self,
        address: Address,
        signing_key: bytes,
        handler: Handler,
        *,
        task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen until cancelled; each connection runs `handler` in a task of its own.

        `signing_key`: the server's Ed25519 private key (32 bytes), which TLS presents. Started with the
        address it really listens on (a port of 0 is replaced). A handler's exception ends its
        connection only.
        """


@dataclass(frozen=True)
class Machine:
    """All ports of one machine, handed in by the composition root."""

    disk: Disk
    network: Network
    entropy: Entropy
    clock: WallClock
    offload: Offload
