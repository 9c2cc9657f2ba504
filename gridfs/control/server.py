"""The daemon's side: answers status, sync and yield. Requests come from the same user or root only.

A request is one JSON line {"do": WORD}; the answer is one line, for `sync` preceded by a line of
progress every half second.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import trio

from gridfs.files.filesystem import FileSystem
from gridfs.files.journal import TakenOver
from gridfs.host.home import Home

logger = logging.getLogger(__name__)

LINE_MAX = 4096
PROGRESS_S = 0.5


class ControlServer:
    """Serves one daemon's control socket. `status` gives the whole status as plain values."""

    def __init__(self, home: Home, files: FileSystem, status: Callable[[], dict[str, Any]]) -> None:
        self._home = home
        self._files = files
        self._status = status
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
                await self._answer(connection, json.loads(line).get("do"))
            except (OSError, ValueError, AttributeError):
                return
            except Exception:
                logger.exception("control request failed")

    async def _answer(self, connection: trio.socket.SocketType, word: object) -> None:
        match word:
            case "status":
                await _send(connection, self._status())
            case "sync":
                await self._sync(connection)
            case "yield":
                self.yielded.set()
                await _send(connection, {"ok": True})
            case _:
                await _send(connection, {"error": "unknown request"})

    async def _sync(self, connection: trio.socket.SocketType) -> None:
        async def progress() -> None:
            while True:
                await _send(connection, {"left": self._files.dirty_bytes, "trouble": self._files.trouble()})
                await trio.sleep(PROGRESS_S)

        answer: dict[str, Any] = {"ok": True}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(progress)
            try:
                await self._files.sync()
            except TakenOver as error:
                answer = {"error": str(error)}
            nursery.cancel_scope.cancel()
        await _send(connection, answer)


def _is_ours(connection: trio.socket.SocketType) -> bool:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", raw)
    return uid in (0, os.geteuid())


async def _send(connection: trio.socket.SocketType, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[await connection.send(data) :]
