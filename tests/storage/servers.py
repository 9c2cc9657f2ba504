"""Servers and packs for the tests of the wire: real streams, one process, nothing left behind."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from storage.client import Access, ClientConfig, SharePut, StorageClient
from storage.errors import Unavailable
from storage.format.geometry import Geometry
from storage.format.share import build_shares
from storage.host import OsDisk, SystemClock, SystemEntropy, ThreadOffload
from storage.identity import create_account
from storage.ports import Address, ByteStream, Handler, Machine, UnixAddress
from storage.server import RunningServer, ServerConfig, run_server
from storage.transport.network import SystemNetwork
from storage.transport.unix import PlainStream

FILE_SYSTEM = b"file system 0001"
STAMP = (1, 1)


class Memory(bytearray):
    """Tells when it is gone."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True)
class Pack:
    pack_id: bytes
    geometry: Geometry
    shares: list[bytes]

    def put(self, number: int) -> SharePut:
        return SharePut(self.pack_id, number, [self.shares[number]])


def make_pack(k: int = 2, n: int = 3, length: int = 100_000, seed: int = 0) -> Pack:
    """A valid pack whose data is a pattern (parity is not checked by servers, so it is a pattern, too)."""
    geometry = Geometry(k, n, length)
    columns = [bytes((seed + number + i) % 251 for i in range(251)) for number in range(n)]
    sized = [(column * (geometry.data_length(0) // 251 + 1))[: geometry.data_length(0)] for column in columns]
    built = build_shares(geometry, sized)
    shares = [
        built.headers[number] + sized[number][: geometry.data_length(number)] + built.tables[number]
        for number in range(n)
    ]
    return Pack(built.pack_id, geometry, shares)


def system_machine() -> Machine:
    return Machine(OsDisk(), SystemNetwork(), SystemEntropy(), SystemClock(), ThreadOffload())


@asynccontextmanager
async def serving(
    directory: Path, config: ServerConfig | None = None, address: Address | None = None
) -> AsyncIterator[RunningServer]:
    """A server in this process, on a real socket."""
    address = address or UnixAddress(str(directory / "run" / "s"))
    async with trio.open_nursery() as nursery:
        running: RunningServer = await nursery.start(
            run_server, system_machine(), str(directory / "server"), address, config
        )
        yield running
        nursery.cancel_scope.cancel()


def let_in(directory: Path, running: RunningServer, rights: str = "full") -> Access:
    """An account of a server made by `serving`."""
    account = create_account(OsDisk(), SystemEntropy(), str(directory / "server"), rights)
    return Access(
        running.access.server_id, running.access.address, account.name, account.secret, account.rights
    )


@asynccontextmanager
async def using(
    access: Access, network: object = None, config: ClientConfig | None = None
) -> AsyncIterator[StorageClient]:
    """A running client."""
    client = StorageClient(access, network or SystemNetwork(), SystemEntropy(), config)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        yield client
        nursery.cancel_scope.cancel()


def open_pair(buffer_size: int | None = None) -> tuple[PlainStream, PlainStream]:
    """Two connected streams, with small kernel buffers if asked. The caller closes them."""
    ends = socket.socketpair()
    if buffer_size is not None:
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
    return PlainStream(ends[0]), PlainStream(ends[1])


@contextmanager
def stream_pair(buffer_size: int | None = None) -> Iterator[tuple[PlainStream, PlainStream]]:
    """Two connected streams, closed at the end."""
    ours, theirs = open_pair(buffer_size)
    with contextlib.closing(ours), contextlib.closing(theirs):
        yield ours, theirs


class PairNetwork:
    """Connects every client to a handler in the same process."""

    def __init__(self, nursery: trio.Nursery, handler: Handler) -> None:
        self._nursery = nursery
        self._handler = handler
        self.connects = 0

    async def connect(self, address: Address, server_key: bytes) -> ByteStream:
        await trio.lowlevel.checkpoint()
        self.connects += 1
        ours, theirs = open_pair()
        self._nursery.start_soon(self._run, theirs)
        return ours

    async def serve(self, *args: object, **kwargs: object) -> None:
        raise AssertionError("clients only")

    async def _run(self, stream: PlainStream) -> None:
        with contextlib.closing(stream), contextlib.suppress(Unavailable):
            await self._handler(stream)


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until the condition holds; a test that hangs is a failure."""
    with trio.fail_after(5):
        while not condition():
            await trio.lowlevel.checkpoint()
