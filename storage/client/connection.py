"""One connection of a client: the end of its hello, requests under way, their credits and their answers.

Two tasks, a receiver and a sender (`storage.transport.link`), and the callers of `ask`. Between awaits the
table of requests is whole: a request is in it from the moment it is queued until its last frame has come,
also when its caller is gone, because only then the server gives its credits back.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence

import trio

from storage.client.credit import Credit
from storage.client.greeting import Greeting
from storage.client.records import QUEUE_FACTOR, ClientConfig, ClientStatistics
from storage.errors import Refused, StorageError, Unavailable
from storage.ports import Buffer, ByteStream
from storage.transport.link import FrameReceiver, FrameSender, Outgoing
from storage.wire import messages as wire
from storage.wire.frames import Frame, Kind, Traffic

UNATTENDED_MAX = 8
"""Requests under way for which nobody waits: more would only pile up before a server that is late."""
REASON_S_MAX = 1.0
"""How long a connection that cannot be written to any more is read for the reason."""


class _Pending:
    """A request under way."""

    __slots__ = (
        "asked",
        "body_size",
        "destinations",
        "error",
        "index",
        "outgoing",
        "position",
        "progress",
        "remaining",
        "reply",
        "settled",
        "silence_s",
        "tell",
        "wanted",
    )

    def __init__(
        self,
        destinations: Sequence[memoryview],
        asked: int,
        body_size: int,
        silence_s: float,
        tell: Callable[[], None],
    ) -> None:
        self.destinations = destinations
        """Where the answer's body goes; the caller's, so only touched while `wanted`."""
        self.asked = asked
        """Reply credit held."""
        self.body_size = body_size
        """Body credit held."""
        self.silence_s = silence_s
        """The longest that it may be silent."""
        self.tell = tell
        """Called once, when it is settled."""
        self.settled = False
        self.error: StorageError | None = None
        self.reply: wire.AnyReply | None = None
        self.outgoing: Outgoing | None = None
        self.progress = math.inf
        """When its silence began; not before all of it was sent."""
        self.remaining = 0
        """Bytes of the answer's body still to come."""
        self.index = 0
        self.position = 0
        self.wanted = True

    def settle(self) -> None:
        """It has its reply or its error, or its caller left and nothing more comes."""
        if not self.settled:
            self.settled = True
            self.destinations = ()
            tell, self.tell = self.tell, _nothing  # it may refer to this, and would keep the memory
            tell()

    def take(self, length: int, scratch: memoryview) -> list[memoryview]:
        """Views of the next `length` bytes of the destinations, each a new one that may be released."""
        self.remaining -= length
        if not self.wanted:
            return [scratch[:length]]
        views = []
        while length:
            destination = self.destinations[self.index]
            view = destination[self.position : self.position + length]
            if view:
                views.append(view)
                length -= len(view)
            self.position += len(view)
            if self.position == len(destination):
                self.index += 1
                self.position = 0
        return views


class Connection:
    """An open connection. Until its hello is complete only requests that change nothing may be asked."""

    def __init__(
        self,
        stream: ByteStream,
        receiver: FrameReceiver,
        config: ClientConfig,
        greeting: Greeting,
        statistics: ClientStatistics,
    ) -> None:
        self._greeting = greeting
        self._statistics = statistics
        self._greeted = trio.Event()
        """The hello is complete, or the connection has failed."""
        self._was_greeted = False
        self._stream = stream
        self._receiver = receiver
        self._config = config
        self._sender = FrameSender(stream, config.stall_s)
        self._pending: dict[int, _Pending] = {}
        self._number = 0
        self._receiving = 0
        self._unattended = 0
        """Requests under way for which nobody waits."""
        self._heard = trio.current_time()
        self._requests = Credit(wire.REQUESTS_WINDOW)
        self._bodies = Credit(wire.PUT_WINDOW)
        self._replies = Credit(wire.REPLY_WINDOW)
        self._failure: StorageError | None = None
        self._failed = trio.Event()

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    @property
    def failure(self) -> StorageError | None:
        """Why it has failed."""
        return self._failure

    @property
    def pending(self) -> int:
        """Requests whose last frame has not come."""
        return len(self._pending)

    @property
    def is_greeted(self) -> bool:
        """Whether the hello was completed."""
        return self._was_greeted

    @property
    def name(self) -> bytes:
        """See `hello.connection_name`; empty before the hello is complete."""
        return self._greeting.connection_name

    async def greeted(self) -> None:
        """Wait for the end of the hello. Raises what the connection failed with before."""
        await self._greeted.wait()
        if self._failure is not None:
            raise type(self._failure)(str(self._failure))

    async def run(self, greeted: Callable[[], None] = lambda: None) -> None:
        """Send and receive until it fails, then raise why: Unavailable, or Refused for a wrong pin, secret or
        version. `greeted` is called when the hello is complete."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guard, lambda: self._receive(greeted))
                nursery.start_soon(self._guard, self._send)
                nursery.start_soon(self._watch)
                await self._failed.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.fail(Unavailable("the client was stopped"))
        assert self._failure is not None
        raise self._failure

    async def _send(self) -> None:
        try:
            await self._sender.run()
        except StorageError:
            if not self._was_greeted:
                # A server that lets nobody in says why, and closes: the receiver still has to read that.
                with trio.move_on_after(REASON_S_MAX):
                    await self._failed.wait()
            raise

    def fail(self, error: StorageError) -> None:
        """End the connection: every caller gets this error. Idempotent, the first error counts."""
        if self._failure is not None:
            return
        self._failure = error
        self._failed.set()
        self._greeted.set()
        self._stream.close()
        for credit in (self._requests, self._bodies, self._replies):
            credit.close(error)
        self._receiver.revoke()
        for pending in self._pending.values():
            pending.wanted = False
            pending.error = error
            pending.settle()
        self._pending.clear()

    async def ask(
        self,
        payload: bytes,
        traffic: Traffic,
        body: Sequence[Buffer],
        body_size: int,
        destinations: Sequence[memoryview],
        asked: int,
    ) -> wire.AnyReply:
        """Send one request and wait for its answer; the answer's body lands in the destinations.

        Raises what the server answers, and Unavailable. However it ends, neither the destinations nor, but
        for the frame that is just being sent, the body are touched afterwards.
        """
        # Once it is queued the sender may be quicker than the cancellation.
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._take_credit(traffic, body_size, asked)
        done = trio.Event()
        pending = _Pending(destinations, asked, body_size, self._config.progress_s[traffic], done.set)
        number = self._begin(pending, payload, traffic, body)
        try:
            await done.wait()
        except BaseException:
            self._abandon(number, pending)
            raise
        if pending.error is not None:
            # A copy: one failure of the connection is raised to all its callers.
            raise type(pending.error)(str(pending.error))
        assert pending.reply is not None
        return pending.reply

    def ask_nowait(
        self,
        payload: bytes,
        traffic: Traffic,
        settled: Callable[[wire.AnyReply | StorageError], None],
        destinations: Sequence[memoryview] = (),
        asked: int = 0,
    ) -> Callable[[], None] | None:
        """Ask what has no body, though no task waits: `settled` is told the end, and must not raise. The body
        of the answer, of `asked` bytes at most, lands in the destinations.

        Returns what calls it off: then `settled` is told nothing, and the destinations are not touched
        afterwards. None, and nothing is done, where it would have to wait, or where so many questions whose
        answers have no body are under way, for which nobody waits, that the server seems to hang.
        """
        is_unattended, is_called_off = not asked, False
        if self._failure is not None or not self._was_greeted:
            return None
        if is_unattended and self._unattended >= UNATTENDED_MAX:
            return None
        if not self._requests.acquire_nowait(1, traffic):
            return None
        if asked and not self._replies.acquire_nowait(asked, traffic):
            self._requests.release(1)
            return None

        def tell() -> None:
            self._unattended -= is_unattended
            if not is_called_off:
                outcome = pending.error or pending.reply
                assert outcome is not None
                settled(outcome)

        def call_off() -> None:
            nonlocal is_called_off
            is_called_off = True
            self._abandon(number, pending)

        self._unattended += is_unattended
        pending = _Pending(destinations, asked, 0, self._config.progress_s[traffic], tell)
        number = self._begin(pending, payload, traffic, ())
        return call_off

    async def _take_credit(self, traffic: Traffic, body_size: int, asked: int) -> None:
        await self._requests.acquire(1, traffic)
        taken: list[tuple[Credit, int]] = [(self._requests, 1)]
        try:
            for credit, amount in ((self._bodies, body_size), (self._replies, asked)):
                await credit.acquire(amount, traffic)
                taken.append((credit, amount))
        except BaseException:
            for credit, amount in taken:
                credit.release(amount)
            raise

    def _begin(self, pending: _Pending, payload: bytes, traffic: Traffic, body: Sequence[Buffer]) -> int:
        """Give the request, whose credits are taken, its number and send or queue it."""

        def sent() -> None:
            pending.progress = trio.current_time()

        self._number += 1
        number = self._number
        pending.outgoing = Outgoing(number, traffic, Kind.REQUEST, payload, body, pending.body_size, sent)
        self._pending[number] = pending
        self._sender.send_nowait(pending.outgoing)
        return number

    async def _watch(self) -> None:
        """Give up requests that are silent for too long. One task for all: a deadline for each costs more."""
        while True:
            now = trio.current_time()
            look_at = now + min(self._config.progress_s)
            for number, pending in list(self._pending.items()):
                if not pending.wanted:
                    continue
                deadline = self._deadline(pending, now)
                if deadline <= now:
                    self._give_up(number, pending, now)
                else:
                    look_at = min(look_at, deadline)
            await trio.sleep_until(look_at)

    def _deadline(self, pending: _Pending, now: float) -> float:
        """When the request has been silent for too long; while it is being sent, a time to look again."""
        limit = pending.silence_s
        if pending.progress == math.inf:
            return now + limit
        return min(max(pending.progress, self._heard) + limit, pending.progress + QUEUE_FACTOR * limit)

    def _give_up(self, number: int, pending: _Pending, now: float) -> None:
        """End a request that is silent for too long. If nothing else came either, the server hangs."""
        error = Unavailable("the server does not answer")
        if self._heard + pending.silence_s <= now:
            self.fail(error)
        else:
            pending.error = error
            self._abandon(number, pending)
            pending.settle()

    def _abandon(self, number: int, pending: _Pending) -> None:
        """The caller leaves: keep off its buffers, tell the server, the last frame comes without it."""
        if self._pending.get(number) is not pending or not pending.wanted:
            return
        pending.wanted = False
        pending.destinations = ()
        if self._receiving == number:
            self._receiver.revoke()
        outgoing = pending.outgoing
        assert outgoing is not None
        if self._sender.withdraw(outgoing):
            self._end(number, pending)
        elif outgoing.queued:
            outgoing.cut(Kind.CANCEL)
        elif pending.asked:  # nothing else that was sent whole can be called off
            self._sender.send_nowait(Outgoing(number, outgoing.traffic, Kind.CANCEL, b""))

    def _end(self, number: int, pending: _Pending) -> None:
        """The last frame came, or none ever will: the credits are free."""
        if self._pending.pop(number, None) is None:
            return  # the connection failed meanwhile, and told everybody
        self._requests.release(1)
        if pending.body_size:
            self._bodies.release(pending.body_size)
        if pending.asked:
            self._replies.release(pending.asked)
        pending.settle()

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run one of the two tasks; what ends it ends the connection."""
        try:
            await task()
        except Refused as error:
            # Malformed bytes are the server's fault, not the caller's.
            self.fail(Unavailable(f"the server breaks the protocol: {error}"))
        except StorageError as error:
            self.fail(error)

    async def _greet(self) -> bool:
        """Take the server's part of the hello, and end it."""
        try:
            with trio.fail_after(self._config.connect_s):
                length = self._greeting.expect(await self._receiver.frame())
                proof = self._greeting.answered(await self._receiver.message(length))
        except trio.TooSlowError:
            self.fail(Unavailable(f"{self._greeting.peer} does not complete the hello"))
        except StorageError as error:
            self.fail(error)
        if self._failure is not None:
            return False
        self._sender.send_nowait(Outgoing(0, Traffic.HEAD, Kind.HELLO, proof))
        self._statistics.connects += 1
        self._heard = trio.current_time()
        self._was_greeted = True
        self._greeted.set()
        return True

    async def _receive(self, greeted: Callable[[], None]) -> None:
        receiver = self._receiver
        if not await self._greet():
            return
        greeted()
        with trio.CancelScope() as scope:
            receiver.watch(scope)
            while True:
                frame = await receiver.frame()
                if frame is None:
                    raise Unavailable("the server closed the connection")
                await self._take(frame)
        raise Unavailable("the server stopped in the middle of a frame")

    async def _take(self, frame: Frame) -> None:
        pending = self._pending.get(frame.request)
        if pending is None:
            raise Unavailable("the server breaks the protocol: an answer to nothing")
        if frame.kind is Kind.DATA:
            if not 0 < frame.length <= pending.remaining:
                raise Unavailable("the server breaks the protocol: more bytes than announced")
            views = pending.take(frame.length, self._receiver.scratch)
            self._receiving = frame.request
            await self._receiver.payload(views, frame.length)
            self._receiving = 0
        elif frame.kind is Kind.REPLY and pending.reply is None:
            pending.reply = wire.decode_reply(await self._receiver.message(frame.length))
            _plan_body(pending)
        elif frame.kind is Kind.FAIL:
            failure = wire.decode_failure(await self._receiver.message(frame.length))
            pending.error = wire.error_of(failure)
            pending.remaining = 0
        else:
            raise Unavailable("the server breaks the protocol: an unexpected frame")
        self._heard = trio.current_time()
        if not pending.remaining:
            self._finish(frame.request, pending)
        elif pending.progress < math.inf:
            pending.progress = self._heard

    def _finish(self, number: int, pending: _Pending) -> None:
        outgoing = pending.outgoing
        if outgoing is not None and not outgoing.is_finished:
            # Refused before its body was through: the rest need not go.
            if pending.error is None:
                raise Unavailable("the server breaks the protocol: an answer before the question's end")
            outgoing.cut(Kind.CANCEL)
        self._end(number, pending)


def _nothing() -> None:
    pass


def _plan_body(pending: _Pending) -> None:
    """Lay the announced body out over the destinations. Raises Unavailable where it does not fit them."""
    reply = pending.reply
    if not isinstance(reply, wire.ReadReply):
        if pending.asked:
            raise Unavailable("the server breaks the protocol: not the answer of a readv")
        return
    if reply.lengths is None:
        pending.remaining = pending.asked
        return
    if pending.wanted:
        if len(reply.lengths) != len(pending.destinations) or any(
            length > len(destination)
            for length, destination in zip(reply.lengths, pending.destinations, strict=True)
        ):
            raise Unavailable("the server breaks the protocol: an answer longer than asked")
        pending.destinations = [
            destination[:length]
            for length, destination in zip(reply.lengths, pending.destinations, strict=True)
        ]
    pending.remaining = sum(reply.lengths)
    if pending.remaining > pending.asked:
        raise Unavailable("the server breaks the protocol: an answer longer than asked")
