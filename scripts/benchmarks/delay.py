"""A distance between a mount and its servers: a process that carries bytes between Unix sockets, later.

    with far_away(place, grid, round_trip_s=0.1) as servers_file: ...      # the grid's, seen from far away

Each direction of each connection is delayed by half a round trip and otherwise as quick as the machine; bytes
under way are bounded, so a sender notices when nobody receives. The process is

    python -m scripts.benchmarks.delay SECONDS NEAR FAR [NEAR FAR ...]

which says that it listens and goes on until it is ended.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import trio

from scripts.benchmarks.child import LISTENING, child
from scripts.benchmarks.place import Place
from storage.ports import UnixAddress
from storage.wire.url import format_access, parse_access
from tests.processes import LocalGrid

CHUNK = 256 * 1024
CHUNKS_MAX = 128
"""Pieces under way in one direction of one connection; then the sender waits."""
BUFFER_SIZE = 4 << 20
"""Of the sockets, as the servers and clients have them."""


@contextlib.contextmanager
def far_away(place: Place, grid: LocalGrid, round_trip_s: float) -> Iterator[Path]:
    """A servers file whose servers are a round trip away."""
    directory = place.directory / f"d{round(round_trip_s * 1000)}"
    directory.mkdir(mode=0o700)
    lines, ways = [], []
    for number, line in enumerate(grid.servers_file.read_text().splitlines()):
        access = parse_access(line)
        assert isinstance(access.address, UnixAddress), "a distance is for Unix sockets"
        near = str(directory / str(number))
        ways += [near, access.address.path]
        lines.append(format_access(replace(access, address=UnixAddress(near))))
    file = directory / "servers"
    file.write_text("".join(f"{line}\n" for line in lines))
    with child("delay", str(round_trip_s / 2), *ways):
        yield file


# ---- the process ------------------------------------------------------------------------------------


async def serve(delay_s: float, ways: list[tuple[str, str]]) -> None:
    async with trio.open_nursery() as nursery:
        for near, far in ways:
            await nursery.start(listen, delay_s, near, far)
        print(LISTENING, flush=True)


async def listen(delay_s: float, near: str, far: str, *, task_status: trio.TaskStatus[None]) -> None:
    listener = _socket()
    with listener:
        await listener.bind(near)
        os.chmod(near, 0o600)
        listener.listen(64)
        task_status.started()
        async with trio.open_nursery() as nursery:
            while True:
                accepted, _ = await listener.accept()
                nursery.start_soon(connection, delay_s, accepted, far)


async def connection(delay_s: float, near: trio.socket.SocketType, path: str) -> None:
    far = _socket()
    with near, far:
        await trio.sleep(2 * delay_s)  # the first packet and its answer
        try:
            await far.connect(path)
        except OSError:
            return
        async with trio.open_nursery() as nursery:
            for source, sink in ((near, far), (far, near)):
                send, receive = trio.open_memory_channel[tuple[float, bytes]](CHUNKS_MAX)
                nursery.start_soon(take, delay_s, source, send)
                nursery.start_soon(give, receive, sink, nursery.cancel_scope)


async def take(
    delay_s: float, source: trio.socket.SocketType, send: trio.MemorySendChannel[tuple[float, bytes]]
) -> None:
    with send, contextlib.suppress(OSError):
        while data := await source.recv(CHUNK):
            await send.send((trio.current_time() + delay_s, data))


async def give(
    receive: trio.MemoryReceiveChannel[tuple[float, bytes]],
    sink: trio.socket.SocketType,
    whole: trio.CancelScope,
) -> None:
    with contextlib.suppress(OSError):
        async for arrival, data in receive:
            await trio.sleep_until(arrival)
            view = memoryview(data)
            while view:
                view = view[await sink.send(view) :]
    whole.cancel()


def _socket() -> trio.socket.SocketType:
    made = trio.socket.socket(trio.socket.AF_UNIX)
    for option in (trio.socket.SO_SNDBUF, trio.socket.SO_RCVBUF):
        made.setsockopt(trio.socket.SOL_SOCKET, option, BUFFER_SIZE)
    return made


def main() -> None:
    delay_s, *paths = sys.argv[1:]
    trio.run(serve, float(delay_s), list(zip(paths[::2], paths[1::2], strict=True)))


if __name__ == "__main__":
    main()
