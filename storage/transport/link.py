"""Sending and receiving frames over one byte stream: the two tasks that both ends of a connection have.

The receiver never waits for a send, and the sender never for a receive, so two peers with full socket
buffers cannot stop each other for ever. What waits to be sent is bounded by the credits of the wire, which
the owner counts. The sender picks the most urgent class anew for every frame.

Between awaits: queues and `Outgoing` are only touched by the loop's tasks, and whoever puts, cuts or ends
one does so without awaiting. Buffers: a view handed to `FrameReceiver.payload` belongs to the receiver
until that returns or `revoke` is called; a part of an `Outgoing` belongs to the sender until `ended`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import trio

from storage.errors import Unavailable
from storage.ports import Buffer, ByteStream
from storage.wire.body import FileRange, Part, part_size, split_part
from storage.wire.frames import (
    HEADER_SIZE,
    PAYLOAD_SIZE_MAX,
    Frame,
    Kind,
    Traffic,
    decode_frame,
    encode_frame,
)

LATE = 16
"""A stall may be noticed so much later: one part in so many of the time allowed."""
STAGE_SIZE = 4096
"""Bytes received beyond the payload wanted: the next header and small payloads come without a call more."""
SMALL_SIZE_MAX = 320 * 1024
"""Body bytes of a message that is sent without waking the sender: a server's part of a MiB at k = 4."""
TAIL_SIZE_MAX = 4096
"""What is left of a body beside whole frames and is no more than this goes out with the frame before."""
SEND_TURN_SIZE = 1 << 20
"""Body bytes sent without waiting after which other tasks get their turn: some 0.3 ms."""
FRAME_COST = 1 << 16
"""Bytes that each frame counts beside its body."""
FRAMES_AHEAD_MAX = 16
"""Frames that more urgent classes may send in a row while a less urgent one waits."""


class FrameReceiver:
    """Receives frames. Used by one task."""

    def __init__(self, stream: ByteStream, stall_s: float) -> None:
        """`stall_s`: the longest wait for more of a frame that has begun."""
        self._stream = stream
        self._stall_s = stall_s
        self._stage = memoryview(bytearray(STAGE_SIZE))
        self._start = 0
        self._end = 0
        self._filling: list[memoryview] = []
        self._revoked = False
        self._scratch: bytearray | None = None
        self._deadline: trio.CancelScope | None = None
        self._is_owed = False
        self._renews_at = float("-inf")
        """Until then progress does not move the deadline: that takes as much CPU as a header. Minus infinity
        while there is none."""

    @property
    def scratch(self) -> memoryview:
        """Room for one payload that nobody wants."""
        if self._scratch is None:
            self._scratch = bytearray(PAYLOAD_SIZE_MAX)
        return memoryview(self._scratch)

    def watch(self, scope: trio.CancelScope) -> None:
        """Have this scope's deadline `stall_s` from the last progress, or a little more, while a frame is
        incomplete."""
        self._deadline = scope

    def expect(self, more: bool) -> None:
        """Say whether the peer owes something now, so that silence between frames counts as a stall, too."""
        self._is_owed = more

    def _watch_for(self, more: bool) -> None:
        """Silence counts as a stall from now on, or does not."""
        if self._deadline is None:
            return
        if more:
            now = trio.current_time()
            if now >= self._renews_at:
                self._renews_at = now + self._stall_s / LATE
                self._deadline.deadline = self._renews_at + self._stall_s
        elif self._renews_at > float("-inf"):
            self._renews_at = float("-inf")
            self._deadline.deadline = float("inf")

    async def frame(self) -> Frame | None:
        """The next header; None where the peer closed between frames. Raises Unavailable, Refused."""
        while self._end - self._start < HEADER_SIZE:
            waiting = self._end - self._start
            self._watch_for(self._is_owed or waiting > 0)
            self._stage[:waiting] = self._stage[self._start : self._end]
            self._start, self._end = 0, waiting
            count = await self._stream.receive_into([self._stage[waiting:]])
            if not count:
                if waiting:
                    raise Unavailable("the peer closed the connection in the middle of a frame")
                return None
            self._end += count
        header = self._stage[self._start : self._start + HEADER_SIZE]
        self._start += HEADER_SIZE
        return decode_frame(header)

    async def message(self, length: int) -> bytes:
        """A small payload as bytes."""
        if length <= self._end - self._start:
            self._start += length
            return bytes(self._stage[self._start - length : self._start])
        buffer = bytearray(length)
        await self.payload([memoryview(buffer)], length)
        return bytes(buffer)

    async def payload(self, views: list[memoryview], length: int) -> None:
        """Fill `views`, `length` bytes together, with the payload. The list is used up."""
        length -= self._unstage(views, length)
        try:
            while length:
                self._watch_for(True)
                self._filling = views
                try:
                    count = await self._stream.receive_into([*views, self._stage])
                except (ValueError, TypeError):
                    # What a released view gives, by the kind of stream.
                    if not self._revoked:
                        raise
                    count = -1
                if self._revoked:
                    self._revoked = False
                    views = self._filling = [self.scratch[:length]]
                if count < 0:
                    continue
                if not count:
                    raise Unavailable("the peer closed the connection in the middle of a frame")
                taken = min(count, length)
                self._start, self._end = 0, count - taken
                length -= taken
                _advance(views, taken)
        finally:
            self._filling = []

    def revoke(self) -> None:
        """Take the views of the payload that is being received away: its rest goes to scratch.

        They are released, so a receive that is already waiting with them cannot write into them either.
        """
        for view in self._filling:
            view.release()
        self._revoked = bool(self._filling)

    def _unstage(self, views: list[memoryview], length: int) -> int:
        """Copy what was received ahead; returns its size."""
        total = min(length, self._end - self._start)
        left = total
        while left:
            count = min(left, len(views[0]))
            views[0][:count] = self._stage[self._start : self._start + count]
            self._start += count
            left -= count
            _advance(views, count)
        return total


class Outgoing:
    """A message on its way out: a first frame, then a body in DATA frames."""

    __slots__ = ("_ended", "_first", "_parts", "queued", "remaining", "request", "started", "traffic")

    def __init__(
        self,
        request: int,
        traffic: Traffic,
        kind: Kind,
        payload: bytes,
        parts: Sequence[Part] = (),
        size: int = 0,
        ended: Callable[[], None] | None = None,
    ) -> None:
        """`size`: bytes of all `parts`. `ended` is called once, when nothing of it is used any more."""
        self.request = request
        self.traffic = traffic
        self.remaining = size
        self.started = False
        self.queued = False
        self._first: tuple[Kind, bytes] | None = (kind, payload)
        self._parts: deque[Part] = deque(parts)
        self._ended = ended

    def cut(self, kind: Kind, payload: bytes = b"") -> None:
        """Drop what is left of the body and send this frame instead, as the last."""
        self._first = (kind, payload)
        self._parts.clear()
        self.remaining = 0

    def first(self) -> tuple[Kind, bytes] | None:
        """The frame that goes before the (rest of the) body, once."""
        first, self._first = self._first, None
        self.started = True
        return first

    @property
    def is_finished(self) -> bool:
        return self._first is None and not self.remaining

    @property
    def is_small(self) -> bool:
        """Whether it goes in a few frames from memory."""
        if not self.remaining:
            return True
        if self.remaining > SMALL_SIZE_MAX:
            return False
        return not any(isinstance(part, FileRange) for part in self._parts)

    def take(self, length: int) -> list[Part]:
        """The next `length` bytes of the body."""
        taken: list[Part] = []
        self.remaining -= length
        while length:
            part = self._parts.popleft()
            size = part_size(part)
            if size > length:
                part, rest = split_part(part, length)
                self._parts.appendleft(rest)
                size = length
            length -= size
            taken.append(part)
        return taken

    def end(self) -> None:
        if self._ended is not None:
            self._ended()
            self._ended = None


class FrameSender:
    """Sends messages, frame by frame, the most urgent class first; within a class one after the other."""

    def __init__(self, stream: ByteStream, stall_s: float) -> None:
        """`stall_s`: the longest time that one frame may take."""
        self._stream = stream
        self._stall_s = stall_s
        self._queues: tuple[deque[Outgoing], ...] = tuple(deque() for _ in Traffic)
        self._ahead = 0
        self._wake = trio.Event()
        self._is_idle = False
        """Whether the task waits for something to send, and so nothing is being sent."""
        self._rest: list[memoryview] = []
        """What the stream did not take of the message `_resting`: to be sent before all else."""
        self._resting: Outgoing | None = None
        self._closed = False

    def send_nowait(self, outgoing: Outgoing) -> None:
        """Send a small message at once where nothing else is under way, else queue it.

        Bounded by the caller, who counts credits. `ended` may be called before this returns.
        """
        if self._closed:
            outgoing.end()
            return
        if self._is_idle and outgoing.is_small:
            parts = _parts_now(outgoing)
            size = sum(map(len, parts))
            sent = self._stream.send_nowait(parts)
            if sent >= size:
                outgoing.end()
                return
            self._rest = [memoryview(part).cast("B") for part in parts]
            _advance(self._rest, sent)
            self._resting = outgoing
        self._is_idle = False
        outgoing.queued = True
        self._queues[outgoing.traffic].append(outgoing)
        self._wake.set()

    def withdraw(self, outgoing: Outgoing) -> bool:
        """Take a message back if nothing of it was sent yet."""
        if outgoing.started or not outgoing.queued:
            return False
        self._queues[outgoing.traffic].remove(outgoing)
        outgoing.queued = False
        outgoing.end()
        return True

    async def run(self) -> None:
        """Send until cancelled. Raises Unavailable where the peer is gone or takes nothing any more."""
        turn = 0
        try:
            while True:
                outgoing = self._resting or self._pick()
                if outgoing is None:
                    turn = 0
                    self._wake = trio.Event()
                    self._is_idle = True
                    await self._wake.wait()
                    continue
                with trio.move_on_after(self._stall_s) as scope:
                    if self._resting is not None:
                        self._resting = None
                        await self._stream.send_all(self._rest)
                        self._rest = []
                    else:
                        turn += await self._send_frame(outgoing)
                if scope.cancelled_caught:
                    raise Unavailable("the peer takes no more bytes")
                if outgoing.is_finished:
                    queue = self._queues[outgoing.traffic]
                    assert queue[0] is outgoing
                    queue.popleft()
                    outgoing.queued = False
                    outgoing.end()
                if turn >= SEND_TURN_SIZE and any(self._queues):
                    # A peer that reads as fast as we send must not keep the other tasks from running.
                    turn = 0
                    await trio.lowlevel.checkpoint()
        finally:
            self._closed, self._is_idle = True, False
            for queue in self._queues:
                while queue:
                    outgoing = queue.popleft()
                    outgoing.queued = False  # its caller may be cancelled in this very turn, and withdraw it
                    outgoing.end()

    def _pick(self) -> Outgoing | None:
        waiting = [queue for queue in self._queues if queue]
        if not waiting:
            return None
        if len(waiting) == 1 or self._ahead >= FRAMES_AHEAD_MAX:
            self._ahead = 0
            return waiting[-1][0]
        self._ahead += 1
        return waiting[0][0]

    async def _send_frame(self, outgoing: Outgoing) -> int:
        """The first frame, if it is still to come, and one DATA frame. Returns what that counts in a turn."""
        size = 0
        buffers: list[Buffer] = []
        first = outgoing.first()
        if first is not None:
            kind, payload = first
            buffers += (encode_frame(len(payload), kind, outgoing.traffic, outgoing.request), payload)
        while outgoing.remaining:
            length = min(outgoing.remaining, PAYLOAD_SIZE_MAX)
            size += length
            buffers.append(encode_frame(length, Kind.DATA, outgoing.traffic, outgoing.request))
            for part in outgoing.take(length):
                if isinstance(part, FileRange):
                    if buffers:
                        await self._stream.send_all(buffers)
                        buffers = []
                    await self._stream.send_file(*part)
                else:
                    buffers.append(part)
            if not buffers or outgoing.remaining > TAIL_SIZE_MAX:
                break
        if buffers:
            await self._stream.send_all(buffers)
        return FRAME_COST + size


def _parts_now(outgoing: Outgoing) -> list[Buffer]:
    """All of a small message: its first frame, and its body in DATA frames."""
    first = outgoing.first()
    assert first is not None
    kind, payload = first
    parts: list[Buffer] = [encode_frame(len(payload), kind, outgoing.traffic, outgoing.request), payload]
    while outgoing.remaining:
        size = min(outgoing.remaining, PAYLOAD_SIZE_MAX)
        parts.append(encode_frame(size, Kind.DATA, outgoing.traffic, outgoing.request))
        for part in outgoing.take(size):
            assert not isinstance(part, FileRange)
            parts.append(part)
    return parts


def _advance(views: list[memoryview], count: int) -> None:
    """Drop the first `count` bytes of the views."""
    done = 0
    while done < len(views) and count >= len(views[done]):
        count -= len(views[done])
        done += 1
    del views[:done]
    if count:
        views[0] = views[0][count:]
