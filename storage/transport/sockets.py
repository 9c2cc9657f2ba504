"""What the streams over sockets share: waiting, closing, and the copying way to send a file."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator

import trio

from storage.errors import Unavailable
from storage.ports import File

TURN_SIZE = 512 * 1024
"""Bytes received without waiting after which others get their turn: some 0.2 ms."""
COPY_SIZE = 256 * 1024
"""Bytes of a file that are copied at a time where sendfile cannot be used."""


async def wait_readable(sock: socket.socket) -> None:
    """Raises Unavailable where the socket is or gets closed here."""
    try:
        await trio.lowlevel.wait_readable(sock)
    except (trio.ClosedResourceError, OSError, ValueError) as error:
        raise Unavailable("the connection is closed") from error


async def wait_writable(sock: socket.socket) -> None:
    """Raises Unavailable where the socket is or gets closed here."""
    try:
        await trio.lowlevel.wait_writable(sock)
    except (trio.ClosedResourceError, OSError, ValueError) as error:
        raise Unavailable("the connection is closed") from error


def close_socket(sock: socket.socket) -> None:
    """Close, and wake the tasks that wait for it. Idempotent."""
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
        sock.close()


def lost(error: OSError) -> Unavailable:
    """What a failed call on a connected socket means."""
    if error.errno == errno.EBADF:
        return Unavailable("the connection is closed")
    return Unavailable(f"the connection was lost: {os.strerror(error.errno) if error.errno else error}")


async def read_pieces(file: File, offset: int, length: int) -> AsyncIterator[memoryview]:
    """The range of a file in pieces, all in one buffer. Raises Unavailable where it is short."""
    buffer = memoryview(bytearray(min(length, COPY_SIZE)))
    while length:
        piece = buffer[: min(length, COPY_SIZE)]
        if file.read_into(piece, offset) < len(piece):
            raise Unavailable("a file became shorter while it was sent")
        yield piece
        offset += len(piece)
        length -= len(piece)
