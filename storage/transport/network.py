"""The real `Network`: Unix sockets and TLS, and nothing else."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable

import trio

from storage.errors import StorageError, Unavailable
from storage.ports import Address, ByteStream, Handler, TlsAddress, UnixAddress
from storage.transport import tls, unix
from storage.transport.sockets import close_socket, wait_readable

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 1024
HANDSHAKE_S_MAX = 10.0
ACCEPT_PAUSE_S = 0.1
"""After the system had no descriptor or memory for another connection."""
_TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class SystemNetwork:
    """The machine's own sockets, as `storage.ports.Network`."""

    async def connect(self, address: Address, server_key: bytes) -> ByteStream:
        if isinstance(address, UnixAddress):
            return await unix.connect(address.path)
        return await tls.connect(address, server_key)

    async def serve(
        self,
        address: Address,
        signing_key: bytes,
        handler: Handler,
        *,
        task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        if isinstance(address, UnixAddress):
            await self._serve_unix(address, handler, task_status)
        else:
            await self._serve_tls(address, signing_key, handler, task_status)

    async def _serve_unix(
        self, address: UnixAddress, handler: Handler, task_status: trio.TaskStatus[Address]
    ) -> None:
        async def open_stream(connection: socket.socket) -> ByteStream:
            return unix.accepted(connection)

        listener = unix.listen(address.path)
        identity = unix.socket_identity(address.path)
        try:
            task_status.started(address)
            await _serve([listener], open_stream, handler)
        finally:
            unix.unlisten(listener, address.path, identity)

    async def _serve_tls(
        self, address: TlsAddress, signing_key: bytes, handler: Handler, task_status: trio.TaskStatus[Address]
    ) -> None:
        context = tls.server_context(signing_key)

        async def open_stream(connection: socket.socket) -> ByteStream:
            with trio.move_on_after(HANDSHAKE_S_MAX):
                return await tls.accept(connection, context)
            raise Unavailable("the peer does not complete the TLS handshake")

        listeners = await tls.listen(address)
        try:
            task_status.started(TlsAddress(address.host, listeners[0].getsockname()[1]))
            await _serve(listeners, open_stream, handler)
        finally:
            for listener in listeners:
                close_socket(listener)


async def _serve(
    listeners: list[socket.socket],
    open_stream: Callable[[socket.socket], Awaitable[ByteStream]],
    handler: Handler,
) -> None:
    limit = trio.Semaphore(CONNECTIONS_MAX)

    async def run_connection(connection: socket.socket) -> None:
        try:
            stream = await open_stream(connection)
            try:
                await handler(stream)
            finally:
                stream.close()
        except StorageError as error:
            log.info("connection ended: %s", error)
        except Exception:
            log.exception("a connection ended by an error of this program")
        finally:
            connection.close()
            limit.release()

    async def accept_all(listener: socket.socket) -> None:
        while True:
            await limit.acquire()
            nursery.start_soon(run_connection, await _accept(listener))

    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(accept_all, listener)


async def _accept(listener: socket.socket) -> socket.socket:
    while True:
        try:
            return listener.accept()[0]
        except BlockingIOError:
            await wait_readable(listener)
        except OSError as error:
            if error.errno in _TRANSIENT:
                log.warning("cannot accept a connection: %s", error)
                await trio.sleep(ACCEPT_PAUSE_S)
            else:
                # The peer went away between knocking and being let in.
                await trio.lowlevel.checkpoint()
