"""Unix sockets: plain byte streams with large buffers, sendfile, and a check of who is at the other end."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence

import trio

from storage.errors import Conflict, Refused, Unavailable
from storage.ports import Buffer, File
from storage.transport.sockets import (
    TURN_SIZE,
    close_socket,
    lost,
    read_pieces,
    wait_readable,
    wait_writable,
)

BUFFER_SIZE = 4 * 1024 * 1024
"""Of the kernel's socket buffers: 2.0 GB/s become 5.7 (measured)."""
ACCEPTED_SIZE = 1024 * 1024
"""Of the buffer that a server sends from: an answer of a megabyte leaves without waiting for its reader. What
is in there cannot be overtaken any more, so it is no larger."""
SMALL_SIZE = 4096
"""Fewer bytes than were asked for, and than this, are a message and its end."""
BACKLOG = 1024
PARTS_MAX = 512
"""Parts handed to one system call; the kernel takes 1024."""
_PATH_SIZE_MAX = 107
_CREDENTIALS = struct.Struct("iii")


class PlainStream:
    """A ByteStream over a connected stream socket."""

    def __init__(self, connection: socket.socket) -> None:
        """Takes the socket over; it becomes non-blocking."""
        connection.setblocking(False)
        self._socket = connection
        self._received = 0
        self._is_drained = False
        """Whether the last receive emptied the socket: then another one would most likely find nothing."""

    async def receive_into(self, buffers: Sequence[memoryview]) -> int:
        # Once bytes were taken nothing may raise Cancelled: they would be lost.
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = self._is_drained
        if waited:
            await wait_readable(self._socket)
        while True:
            try:
                count = self._socket.recvmsg_into(buffers[:PARTS_MAX])[0]
            except BlockingIOError:
                await wait_readable(self._socket)
                waited = True
            except OSError as error:
                raise lost(error) from error
            else:
                self._is_drained = count < SMALL_SIZE and count < sum(map(len, buffers))
                self._received = count if waited else self._received + count
                if self._received >= TURN_SIZE:
                    self._received = 0
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return count

    async def send_all(self, parts: Sequence[Buffer]) -> None:
        views = [memoryview(part).cast("B") for part in parts]
        first = 0
        while first < len(views):
            try:
                sent = self._socket.sendmsg(views[first : first + PARTS_MAX])
            except BlockingIOError:
                await wait_writable(self._socket)
                continue
            except OSError as error:
                raise lost(error) from error
            while first < len(views) and sent >= len(views[first]):
                sent -= len(views[first])
                first += 1
            if sent:
                views[first] = views[first][sent:]

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        try:
            return self._socket.sendmsg(parts[:PARTS_MAX])
        except OSError:
            return 0

    async def send_file(self, file: File, offset: int, length: int) -> None:
        descriptor = file.descriptor
        if descriptor is None:
            async for piece in read_pieces(file, offset, length):
                await self.send_all([piece])
            return
        while length:
            try:
                sent = os.sendfile(self._socket.fileno(), descriptor, offset, length)
            except BlockingIOError:
                await wait_writable(self._socket)
                continue
            except OSError as error:
                raise lost(error) from error
            if not sent:
                raise Unavailable("a file became shorter while it was sent")
            offset += sent
            length -= sent

    def close(self) -> None:
        close_socket(self._socket)


def accepted(connection: socket.socket) -> PlainStream:
    """The stream of a connection that came in; from its listener it has no buffers. Raises Refused."""
    stream = PlainStream(connection)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ACCEPTED_SIZE)
        check_peer(connection)
    except BaseException:
        stream.close()
        raise
    return stream


async def connect(path: str) -> PlainStream:
    """Raises Unavailable where nobody listens, Refused where another user does."""
    connection = _socket()
    try:
        with _short(path) as name:
            connection.connect(name)
        check_peer(connection)
    except OSError as error:
        connection.close()
        raise Unavailable(f"no server listens on unix:{path} ({os.strerror(error.errno or 0)})") from error
    except BaseException:
        connection.close()
        raise
    await trio.lowlevel.checkpoint()
    return PlainStream(connection)


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, in a directory that is nobody else's.

    The directory is made (mode 0700) where it is missing. A socket file that nobody listens on is replaced.
    Raises Refused for a directory that others can enter, Conflict where another server listens.
    """
    _require_private(os.path.dirname(path) or ".")
    listener = _socket()
    try:
        with _short(path) as name:
            _remove_stale(name, path)
            listener.bind(name)
            os.chmod(name, 0o600)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise Refused(f"cannot listen on unix:{path}: {os.strerror(error.errno or 0)}") from error
    except BaseException:
        listener.close()
        raise
    return listener


def unlisten(listener: socket.socket, path: str, identity: tuple[int, int] | None) -> None:
    """Close the listener and remove its socket file, unless another server has put its own there."""
    with contextlib.suppress(OSError):
        if socket_identity(path) == identity:
            os.unlink(path)
    close_socket(listener)


def socket_identity(path: str) -> tuple[int, int] | None:
    """(device, inode) of the socket file."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_peer(connection: socket.socket) -> None:
    """Raise Refused unless the process at the other end runs as the same user or as root."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(found)
    if uid not in (os.geteuid(), 0):
        raise Refused(f"the process at the other end of the socket runs as another user (uid {uid})")


def _socket() -> socket.socket:
    created = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    created.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_SIZE)
    created.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_SIZE)
    return created


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """A name of the same file that fits into a socket address, which has 108 bytes."""
    if len(os.fsencode(path)) <= _PATH_SIZE_MAX:
        yield path
        return
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)


def _require_private(directory: str) -> None:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        found = os.stat(directory)
    except OSError as error:
        raise Refused(f"cannot use the directory {directory}: {os.strerror(error.errno or 0)}") from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise Refused(
            f"the socket's directory {directory} is open to others: "
            "take one that is yours alone (chmod 700), or let the server make it"
        )


def _remove_stale(name: str, path: str) -> None:
    try:
        found = os.lstat(name)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise Refused(f"cannot listen on unix:{path}: there is a file that is not a socket")
    with _socket() as probe:
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            os.unlink(name)
            return
        except BlockingIOError:
            pass
    raise Conflict(f"another server listens on unix:{path}")
