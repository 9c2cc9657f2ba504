"""One direction of a simulated connection: what code can notice of TCP.

- A sender starts with 10 segments in flight and may double that each round trip, as far as the window.
- Bytes take the link's time to be sent, then half a round trip and a little jitter; never reordered.
- At most `window` bytes are sent and not yet received by the application. Then the sender waits: two
  peers that only send to each other stop for ever, as with full socket buffers.
- Whatever holds a direction back (a clog, a partition) holds back bytes, the end and a refusal alike.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from storage.errors import Unavailable
from tests.simulation.runner import Trace

SEGMENT = 1460
FIRST_FLIGHT = 10 * SEGMENT
CHUNK = 65536
"""Most bytes that travel as one piece in the model."""
JITTER = 0.02
"""Part of the delay that is left to chance."""
NEVER = float("inf")


class Wire:
    """What carries the bytes of a link, one after the other."""

    def __init__(self) -> None:
        self.free_at = 0.0
        self.carried = 0
        """Bytes so far."""

    def __repr__(self) -> str:
        return "Wire()"

    def carry(self, size: int, bytes_per_s: float) -> float:
        """Take on `size` bytes more; returns when the last of them has left."""
        self.carried += size
        self.free_at = max(trio.current_time(), self.free_at) + size / bytes_per_s
        return self.free_at


@dataclass(frozen=True)
class Link:
    """One direction between two machines."""

    round_trip_s: float = 0.01
    bytes_per_s: float = 125e6
    window: int = 1 << 20
    wire: Wire | None = None
    """Shared by all connections over links that have it; None: each connection has one of its own."""


LOCAL = Link(round_trip_s=20e-6, bytes_per_s=4e9, window=1 << 20)
"""Within a machine."""


class Wakeup:
    """Wakes whoever waits now; nobody is woken by the past."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def wake(self) -> None:
        self._event.set()
        self._event = trio.Event()

    async def wait(self, until: float = NEVER) -> None:
        """Until woken or the time `until`, whichever is first."""
        event = self._event
        if until == NEVER:
            await event.wait()
            return
        with trio.move_on_at(until):
            await event.wait()


@dataclass(frozen=True)
class Route:
    """From one machine to another, by name."""

    source: str
    target: str


class Pipe:
    """One direction of one connection. One task sends, one receives."""

    def __init__(
        self,
        route: Route,
        link: Link,
        stream: random.Random,
        trace: Trace,
        passable_at: Callable[[str, str], float],
    ) -> None:
        self.route, self.link = route, link
        self.is_broken = False
        self._stream, self._trace = stream, trace
        self._passable_at = passable_at
        """When something from one machine may arrive at another at the earliest."""
        self._changed = Wakeup()
        self._travelling: deque[tuple[float, memoryview]] = deque()
        """(time of arrival, bytes), in order."""
        self._unread = 0
        self._wire = Wire()
        self._left_at = 0.0
        """When the last byte has left."""
        self._last_arrival = 0.0
        self._end_at = NEVER
        """When the receiver may learn that the sender closed."""
        self._ends_badly = False
        self._refused_at = NEVER
        """When the sender may learn that the receiver closed."""
        self._flight = FIRST_FLIGHT
        self._round_ends_at = 0.0
        self._sent_in_round = 0

    async def send(self, data: memoryview) -> None:
        """Returns when the last byte is on its way, or in a buffer. Unavailable if the connection breaks."""
        position = 0
        while position < len(data):
            room = await self._room()
            piece = data[position : position + min(room, CHUNK)]
            position += len(piece)
            self.send_nowait(piece)
            if len(piece) > SEGMENT:  # a smaller one finds room in the socket's buffer
                await trio.sleep_until(self._left_at)

    def send_nowait(self, piece: memoryview) -> None:
        """Put bytes for which there is room on their way."""
        self._unread += len(piece)
        self._sent_in_round += len(piece)
        self._left_at = (self.link.wire or self._wire).carry(len(piece), self.link.bytes_per_s)
        delay = self.link.round_trip_s / 2 * (1 + JITTER * self._stream.random())
        self._last_arrival = max(self._last_arrival, self._left_at + delay)
        # The caller may use its buffer again as soon as this returns.
        self._travelling.append((self._last_arrival, memoryview(bytes(piece))))
        self._changed.wake()

    def has_room(self, size: int) -> bool:
        """Whether so many bytes, of one segment at most, can be sent just now."""
        if size > SEGMENT or self._end_at < NEVER:
            return False
        try:
            self._check_sender()
        except Unavailable:
            return False
        return size <= self._room_now()

    async def _room(self) -> int:
        """Wait until something may be sent; how many bytes."""
        while True:
            if self._end_at < NEVER:
                raise Unavailable("the stream is closed")
            refused_at = self._check_sender()
            room = self._room_now()
            if room > 0:
                return room
            full = self.link.window == self._unread
            await self._changed.wait(min(refused_at, NEVER if full else self._round_ends_at))

    def _room_now(self) -> int:
        now = trio.current_time()
        if now >= self._round_ends_at:
            if self._sent_in_round >= self._flight:
                self._flight = min(2 * self._flight, self.link.window)
            self._round_ends_at = now + self.link.round_trip_s
            self._sent_in_round = 0
        return min(self.link.window - self._unread, self._flight - self._sent_in_round)

    async def receive(self, buffers: Sequence[memoryview]) -> int:
        """Fill `buffers` in order with what has arrived, at least one byte; 0 at the end."""
        await trio.lowlevel.checkpoint_if_cancelled()
        has_waited = False
        while True:
            self._check()
            if self._refused_at < NEVER:
                raise Unavailable("the stream is closed")
            if self._travelling:
                at = max(self._travelling[0][0], self._passable_at(self.route.source, self.route.target))
                if at <= trio.current_time():
                    count = self._take(buffers)
                    if not has_waited:
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    return count
            else:
                at = max(self._end_at, self._passable_at(self.route.source, self.route.target))
                if at <= trio.current_time():
                    if self._ends_badly:
                        raise Unavailable(f"{self.route.source} broke the connection")
                    return 0
            await self._changed.wait(at)
            has_waited = True

    def _take(self, buffers: Sequence[memoryview]) -> int:
        now, total = trio.current_time(), 0
        for buffer in buffers:
            rest = memoryview(buffer).cast("B")
            while len(rest) and self._travelling and self._travelling[0][0] <= now:
                arrival, data = self._travelling.popleft()
                count = min(len(rest), len(data))
                rest[:count] = data[:count]
                rest = rest[count:]
                total += count
                if count < len(data):
                    self._travelling.appendleft((arrival, data[count:]))
        self._unread -= total
        self._trace.record(self.route.target, "received", self.route.source, total)
        self._changed.wake()
        return total

    def end(self, *, badly: bool = False) -> None:
        """The sender closed: what travels still arrives, then the end, or if `badly` Unavailable."""
        self._ends_badly = badly
        self._end_at = max(self._last_arrival, trio.current_time() + self.link.round_trip_s / 2)
        self._changed.wake()

    def refuse(self) -> None:
        """The receiver closed: a sender that goes on gets Unavailable as soon as it can know."""
        self._refused_at = trio.current_time() + self.link.round_trip_s / 2
        self._travelling.clear()
        self._changed.wake()

    def break_now(self) -> None:
        """Both sides get Unavailable at once."""
        self.is_broken = True
        self._travelling.clear()
        self._changed.wake()

    def look_again(self) -> None:
        """A clog or partition changed."""
        self._changed.wake()

    def _check_sender(self) -> float:
        """Raise if the sender knows that nobody receives; else when it will."""
        self._check()
        at = max(self._refused_at, self._passable_at(self.route.target, self.route.source))
        if self._refused_at < NEVER and at <= trio.current_time():
            raise Unavailable(f"{self.route.target} closed the connection")
        return at if self._refused_at < NEVER else NEVER

    def _check(self) -> None:
        if self.is_broken:
            raise Unavailable(f"the connection from {self.route.source} to {self.route.target} broke")
