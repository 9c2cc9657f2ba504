"""A network to order between a mount and its servers: slow, or cut, without anybody closing a connection.

    with Network() as network:
        path = network.in_front_of(directory, grid, [1, 4])     # a servers file that goes through proxies
        network.slow(1, 1e6)                                    # bytes a second, each way
        network.cut(1, 4); network.heal()

Works for servers on Unix sockets. Runs in a thread of the test.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import trio

from storage.ports import UnixAddress
from storage.wire.url import format_access, parse_access
from tests.processes import LocalGrid

CHUNK = 65536
LOOK_S = 0.02
"""How often a direction that is cut looks whether it was healed."""
START_S_MAX = 10.0


class Line:
    """What lies between the mount and one server."""

    def __init__(self) -> None:
        self.bytes_per_s = float("inf")
        self.is_cut = False


class Network:
    """The proxies of one test."""

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}
        """By the server's number in the grid."""
        self._ways: list[tuple[Line, str, str]] = []
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._listening = threading.Event()

    def in_front_of(self, directory: Path, grid: LocalGrid, numbers: Iterable[int]) -> Path:
        """Start proxies; returns a servers file whose lines of these servers lead to them.

        `directory`: with a short path; only its owner may enter.
        """
        directory.chmod(0o700)
        lines = grid.servers_file.read_text().splitlines()
        for number in numbers:
            access = parse_access(lines[number])
            assert isinstance(access.address, UnixAddress)
            path = str(directory / f"{number}")
            self.lines[number] = Line()
            self._ways.append((self.lines[number], path, access.address.path))
            lines[number] = format_access(replace(access, address=UnixAddress(path)))
        file = directory / "servers"
        file.write_text("".join(f"{line}\n" for line in lines))
        file.chmod(0o600)
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self._thread.start()
        assert self._listening.wait(START_S_MAX)
        return file

    def slow(self, number: int, bytes_per_s: float) -> None:
        self.lines[number].bytes_per_s = bytes_per_s

    def cut(self, *numbers: int) -> None:
        """Nothing goes through any more; connections stay as they are."""
        for number in numbers:
            self.lines[number].is_cut = True

    def heal(self) -> None:
        for line in self.lines.values():
            line.is_cut = False
            line.bytes_per_s = float("inf")

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None and self._token is not None:
            with suppress(trio.RunFinishedError):
                trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
            self._thread.join()

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                for line, path, target in self._ways:
                    await nursery.start(self._listen, line, path, target)
                self._listening.set()

    async def _listen(
        self, line: Line, path: str, target: str, *, task_status: trio.TaskStatus[None]
    ) -> None:
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        with listener:
            await listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(64)
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    near, _ = await listener.accept()
                    nursery.start_soon(self._connection, line, near, target)

    async def _connection(self, line: Line, near: trio.socket.SocketType, target: str) -> None:
        far = trio.socket.socket(trio.socket.AF_UNIX)
        with near, far:
            await self._passable(line)
            try:
                await far.connect(target)
            except OSError:
                return
            async with trio.open_nursery() as nursery:
                for source, sink in ((near, far), (far, near)):
                    nursery.start_soon(self._carry, line, source, sink, nursery.cancel_scope)

    async def _carry(
        self,
        line: Line,
        source: trio.socket.SocketType,
        sink: trio.socket.SocketType,
        connection: trio.CancelScope,
    ) -> None:
        with suppress(OSError):
            while data := await source.recv(CHUNK):
                await self._passable(line)
                await trio.sleep(len(data) / line.bytes_per_s)
                while data:
                    data = data[await sink.send(data) :]
        await self._passable(line)
        connection.cancel()

    async def _passable(self, line: Line) -> None:
        while line.is_cut:  # noqa: ASYNC110 - set from another thread
            await trio.sleep(LOOK_S)
