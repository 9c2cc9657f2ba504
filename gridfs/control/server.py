"""The daemon's side: answers status, sync, yield, clone, heads and inode. Requests come from the same user
or root only.

A request is one JSON line {"do": WORD, ...}; the answer is one line, for `sync` preceded by a line of
progress every half second. After the answer to `clone` the daemon waits for the end of the connection:
until then the caller makes the clone's name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from gridfs.files.claiming import TakenOver
from gridfs.files.filesystem import FileSystem
from gridfs.grid.errors import NotEnoughServers
from gridfs.host.home import Home
from storage.errors import StorageError

logger = logging.getLogger(__name__)

LINE_MAX = 4096
PROGRESS_S = 0.5


class ControlServer:
    """Serves one daemon's control socket. `status` gives the whole status as plain values."""

    def __init__(
        self,
        home: Home,
        files: FileSystem,
        status: Callable[[], dict[str, Any]],
        change_heads: Callable[[list[str], list[str]], Awaitable[None]],
    ) -> None:
        """`change_heads`: servers to add, servers to remove, as a person names them."""
        self._home = home
        self._files = files
        self._status = status
        self._change_heads = change_heads
        self.yielded = trio.Event()
        """Set when a new mount asks this daemon, already unmounted, to leave the rest to it."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled."""
        listener = trio.socket.socket(socket.AF_UNIX)
        with listener, self._home.control_address() as address:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)
            await listener.bind(address)
            os.chmod(address, 0o600)
            listener.listen(16)
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    connection, _ = await listener.accept()
                    nursery.start_soon(self._serve, connection)

    async def _serve(self, connection: trio.socket.SocketType) -> None:
        with connection:
            try:
                if not _is_ours(connection):
                    return
                line = b""
                while not line.endswith(b"\n") and len(line) < LINE_MAX:
                    data = await connection.recv(LINE_MAX)
                    if not data:
                        return
                    line += data
                await self._answer(connection, json.loads(line))
            except (OSError, ValueError, AttributeError, KeyError, TypeError):
                return
            except Exception:
                logger.exception("control request failed")

    async def _answer(self, connection: trio.socket.SocketType, request: dict[str, Any]) -> None:
        match request.get("do"):
            case "status":
                await _send(connection, self._status())
            case "sync":
                await self._sync(connection, unmounting=bool(request.get("unmounting")))
            case "yield":
                self.yielded.set()
                await _send(connection, {"ok": True})
            case "clone":
                await self._clone(connection, request)
            case "heads":
                await self._heads(connection, list(request["add"]), list(request["remove"]))
            case "inode":
                inode = self._files.namespace.inode(int(request["ino"]))
                await _send(connection, {"read_only": bool(inode.read_only)})
            case _:
                await _send(connection, {"error": "unknown request"})

    async def _clone(self, connection: trio.socket.SocketType, request: dict[str, Any]) -> None:
        name = bytes.fromhex(request["name"])
        try:
            self._files.require_writable()
            prepared = self._files.trees.prepared(
                int(request["source"]),
                int(request["parent"]),
                name,
                _peer(connection)[0],
                read_only=bool(request["read_only"]),
            )
            async with prepared:
                await _send(connection, {"ok": True})
                await connection.recv(1)
        except (OSError, StorageError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            await _send(connection, {"error": reason})

    async def _heads(self, connection: trio.socket.SocketType, add: list[str], remove: list[str]) -> None:
        answer: dict[str, Any] = {"ok": True}
        try:
            await self._change_heads(add, remove)
        except NotEnoughServers as error:
            answer = {"error": f"nothing was changed: {error}", "unreachable": True}
        except (TakenOver, StorageError, OSError) as error:
            answer = {"error": str(error)}
        await _send(connection, answer)

    async def _sync(self, connection: trio.socket.SocketType, *, unmounting: bool) -> None:
        async def progress() -> None:
            while True:
                await _send(connection, {"left": self._files.dirty_bytes, "trouble": self._files.trouble()})
                await trio.sleep(PROGRESS_S)

        answer: dict[str, Any] = {"ok": True}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(progress)
            try:
                await self._files.sync(unmounting=unmounting)
            except TakenOver as error:
                answer = {"error": str(error), "taken_over": True}
            except OSError as error:
                answer = {"error": error.strerror or str(error)}
            nursery.cancel_scope.cancel()
        await _send(connection, answer)


def _peer(connection: trio.socket.SocketType) -> tuple[int, int]:
    """(process, user) at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("3i", raw)
    return pid, uid


def _is_ours(connection: trio.socket.SocketType) -> bool:
    return _peer(connection)[1] in (0, os.geteuid())


async def _send(connection: trio.socket.SocketType, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[await connection.send(data) :]
