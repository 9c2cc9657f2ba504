"""The simulated network: machines, listeners, connections, and faults between them.

`Fabric` is the network of one world; `SimNetwork` is one machine's `ports.Network` on it. A connection
is two pipes (see `pipe`). `clog` holds one direction back until a time, `partition` until `heal`;
connections live on, as TCP's do for a quarter of an hour. `reset` breaks them at once. A machine that is
silent lost power: its peers learn it when it is back.

Not modelled: loss (a clog is a retransmission), sendfile, and TLS, but for its pinned key and its round
trip. A Unix address belongs to its machine and has nearly no delay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from storage.errors import Refused, Unavailable
from storage.ports import Address, Buffer, File, Handler, TlsAddress
from tests.simulation.pipe import CHUNK, NEVER, Link, Pipe, Route, Wakeup
from tests.simulation.runner import Trace, chance

LOCAL = Link(round_trip_s=20e-6, bytes_per_s=4e9)
"""Within a machine."""


class SimStream:
    """`ports.ByteStream`: one end of a connection, which tells `before_message` of each message."""

    def __init__(self, outgoing: Pipe, incoming: Pipe, before_message: Callable[[str, str], None]) -> None:
        self.outgoing, self.incoming = outgoing, incoming
        self._before_message = before_message
        self._closed = False

    async def receive_into(self, buffers: Sequence[memoryview]) -> int:
        self._check()
        count = await self.incoming.receive(buffers)
        if count:
            self._before_message(self.outgoing.route.source, "receive")
        self._check()
        return count

    async def send_all(self, parts: Sequence[Buffer]) -> None:
        await trio.lowlevel.checkpoint()
        self._before_message(self.outgoing.route.source, "send")
        for part in parts:
            self._check()
            await self.outgoing.send(memoryview(part).cast("B"))
        self._check()

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        data = b"".join(parts)
        if self._closed or not self.outgoing.has_room(len(data)):
            return 0
        self._before_message(self.outgoing.route.source, "send")
        if self._closed or not self.outgoing.has_room(len(data)):
            return 0
        self.outgoing.send_nowait(memoryview(data))
        return len(data)

    async def send_file(self, file: File, offset: int, length: int) -> None:
        buffer = bytearray(min(length, CHUNK))
        end = offset + length
        while offset < end:
            got = file.read_into(memoryview(buffer)[: min(CHUNK, end - offset)], offset)
            if got == 0:
                raise Unavailable("the file ended before what was to be sent of it")
            await self.send_all([memoryview(buffer)[:got]])
            offset += got

    def close(self, *, badly: bool = False) -> None:
        """What was sent arrives, and then the end; a peer that goes on sending gets an error."""
        if not self._closed:
            self._closed = True
            self.outgoing.end(badly=badly)
            self.incoming.refuse()

    def reset(self) -> None:
        self.outgoing.break_now()
        self.incoming.break_now()

    @property
    def is_over(self) -> bool:
        return self._closed or self.incoming.is_broken

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("the stream is closed")


@dataclass(frozen=True)
class _Listener:
    node: str
    key: bytes
    """The server's public key."""
    handler: Handler
    nursery: trio.Nursery


def _nothing(node: str, what: str) -> None:
    """The default for `Fabric.before_message`."""


class Fabric:
    """The network of one world: links, listeners, connections and faults."""

    def __init__(self, seed: int, trace: Trace, link: Link) -> None:
        self.trace = trace
        self.link = link
        """Between machines, unless `links` has one for (source, target)."""
        self.links: dict[tuple[str, str], Link] = {}
        self.listeners: dict[tuple[str, Address], _Listener] = {}
        self.connections = 0
        self.before_message: Callable[[str, str], None] = _nothing
        """Called with (node, "send" or "receive") before a message leaves a machine, and when one has come
        but nobody there has seen it yet; may crash the machine, and then it does neither."""
        self._seed = seed
        self._streams: dict[str, list[SimStream]] = {}
        self._silent: dict[str, bool] = {}
        self._open_at: dict[tuple[str, str], float] = {}
        self._changed = Wakeup()

    def clog(self, source: str, target: str, until: float) -> None:
        """Hold back everything from `source` to `target` until that time; infinity is a partition."""
        self.trace.record(source, "clog", target, until)
        self._open_at[source, target] = until
        self._poke()

    def partition(self, source: str, target: str) -> None:
        """Nothing from `source` reaches `target`, until `heal`; the way back stays as it is."""
        self.clog(source, target, NEVER)

    def unclog(self, source: str, target: str) -> None:
        """Take away what holds this direction back."""
        self._open_at.pop((source, target), None)
        self._poke()

    def set_link(self, source: str, target: str, link: Link | None) -> None:
        """From now on this direction is so, on connections that are there too; None: as all others."""
        self.trace.record(source, "link", target, link)
        self.links.pop((source, target), None)
        if link is not None:
            self.links[source, target] = link
        for stream in self._streams.get(source, ()):
            if stream.outgoing.route.target == target:
                stream.outgoing.link = link or self.link

    def heal(self) -> None:
        """Take away all clogs and partitions."""
        self._open_at.clear()
        self._poke()

    def reset(self, node: str) -> None:
        """Break all connections of a machine."""
        self.trace.record(node, "reset")
        for stream in self._streams.pop(node, []):
            stream.reset()

    def die(self, node: str) -> None:
        """A machine is down: nobody listens there; what it sent still arrives, then its peers notice."""
        self.listeners = {key: value for key, value in self.listeners.items() if value.node != node}
        if node not in self._silent:
            for stream in self._streams.pop(node, []):
                stream.close(badly=True)

    def silence(self, node: str) -> None:
        """A machine loses power or its cable: its peers notice nothing until it boots again."""
        self._silent[node] = True

    def wake(self, node: str) -> None:
        """A machine boots: what it does not know any more it refuses."""
        if self._silent.pop(node, False):
            self.reset(node)
            self._changed.wake()

    def open_at(self, source: str, target: str) -> float:
        """When bytes of this direction may arrive at the earliest."""
        silent = self._silent.get(source) or self._silent.get(target)
        return NEVER if silent else self._open_at.get((source, target), 0.0)

    def link_between(self, source: str, target: str) -> Link:
        return LOCAL if source == target else self.links.get((source, target), self.link)

    async def passage(self, source: str, target: str) -> None:
        """Let one packet travel: half a round trip, and whatever holds it back."""
        await trio.sleep(self.link_between(source, target).round_trip_s / 2)
        while (at := self.open_at(source, target)) > trio.current_time():
            await self._changed.wait(at)

    def connect(self, client: str, server: str) -> tuple[SimStream, SimStream]:
        """The two ends of a new connection."""
        self.connections += 1
        name = f"{client}>{server}#{self.connections}"
        there, back = (
            Pipe(
                Route(source, target),
                self.link_between(source, target),
                chance(self._seed, "pipe", name, source),
                self.trace,
                self.open_at,
            )
            for source, target in ((client, server), (server, client))
        )
        ends = (
            SimStream(there, back, self._before_message),
            SimStream(back, there, self._before_message),
        )
        for node, end in ((client, ends[0]), (server, ends[1])):
            kept = [end for end in self._streams.get(node, []) if not end.is_over]
            self._streams[node] = [*kept, end]
        return ends

    def _before_message(self, node: str, what: str) -> None:
        self.before_message(node, what)

    def _poke(self) -> None:
        self._changed.wake()
        for streams in self._streams.values():
            for stream in streams:
                stream.incoming.look_again()
                stream.outgoing.look_again()


class SimNetwork:
    """`ports.Network` of the machine `node`. A TLS address names a machine as its host."""

    def __init__(self, fabric: Fabric, node: str, is_alive: Callable[[], bool]) -> None:
        self._fabric, self._node, self._is_alive = fabric, node, is_alive
        self._next_port = 40000

    async def connect(self, address: Address, server_key: bytes) -> SimStream:
        server = address.host if isinstance(address, TlsAddress) else self._node
        # SYN and its answer; TLS 1.3 takes one round trip more.
        for _ in range(2 if isinstance(address, TlsAddress) else 1):
            await self._fabric.passage(self._node, server)
            await self._fabric.passage(server, self._node)
        if not self._is_alive():
            raise Unavailable("this machine is down")
        listener = self._fabric.listeners.get((server, address))
        if listener is None:
            raise Unavailable(f"nobody listens on {address}")
        if isinstance(address, TlsAddress) and listener.key != server_key:
            raise Refused(f"another server answers on {address}: its key is not the pinned one")
        near, far = self._fabric.connect(self._node, server)
        self._fabric.trace.record(self._node, "connect", server)
        listener.nursery.start_soon(self._handle, listener.handler, far)
        return near

    async def serve(
        self,
        address: Address,
        signing_key: bytes,
        handler: Handler,
        *,
        task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        if isinstance(address, TlsAddress):
            port = address.port
            if port == 0:
                port, self._next_port = self._next_port, self._next_port + 1
            address = TlsAddress(self._node, port)
        key = Ed25519PrivateKey.from_private_bytes(signing_key).public_key().public_bytes_raw()
        if (self._node, address) in self._fabric.listeners:
            raise Unavailable(f"somebody listens on {address} already")
        async with trio.open_nursery() as nursery:
            listener = _Listener(self._node, key, handler, nursery)
            self._fabric.listeners[self._node, address] = listener
            try:
                task_status.started(address)
                await trio.sleep_forever()
            finally:
                # After a crash and a new boot the place may be another's.
                if self._fabric.listeners.get((self._node, address)) is listener:
                    del self._fabric.listeners[self._node, address]

    async def _handle(self, handler: Handler, stream: SimStream) -> None:
        """One connection: its failure is its own, and at the end the stream is closed."""
        try:
            await handler(stream)
        except Exception as error:
            self._fabric.trace.record(self._node, "handler failed", type(error).__name__)
        finally:
            stream.close()
