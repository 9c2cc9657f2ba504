"""One connection of a server: its hello's end, requests come in, answers go out, credits are kept.

The receiver never waits for a send, for the disk or for memory: it queues answers, starts tasks, and refuses
what does not fit. Between awaits the table of requests is whole: a request is in `_active` from its REQUEST
frame until its last frame was handed over or dropped; a put that failed before its body came is in
`_unwanted` instead, until the body has come or was cancelled.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from storage.errors import Refused, StorageError, Unavailable
from storage.format.head import fits, held_signed_bytes
from storage.pages import PagePool
from storage.ports import ByteStream
from storage.putbody import PutBody
from storage.readplan import Loading, ReadPlan
from storage.server.admission import Guest
from storage.server.config import ServerConfig, ServerStatistics
from storage.service import Service
from storage.transport.link import FrameReceiver, FrameSender, Outgoing
from storage.wire import hello
from storage.wire import messages as wire
from storage.wire.frames import Frame, Kind, Traffic

log = logging.getLogger(__name__)

SLACK = 2
"""A peer may exceed its windows of requests and reply bytes this far: it learns that an answer is complete
before we learn that it was sent. The window of put bodies, which costs memory, is exact."""


_DONE = wire.encode_reply(wire.DoneReply())
_WHOLE = wire.encode_reply(wire.ReadReply(None))


class _Active:
    """A request that is not answered yet."""

    __slots__ = (
        "asked",
        "body",
        "body_size",
        "call_off",
        "number",
        "outgoing",
        "scope",
        "traffic",
    )

    def __init__(self, number: int, traffic: Traffic) -> None:
        self.number = number
        self.traffic = traffic
        self.asked = 0
        """Reply bytes asked for."""
        self.body_size = 0
        """Bytes of body credit and memory held."""
        self.body: PutBody | None = None
        """Set while it arrives."""
        self.scope: trio.CancelScope | None = None
        """Set while the request can be called off."""
        self.call_off: Callable[[], bool] | None = None
        """Set while a record waits to be stored."""
        self.outgoing: Outgoing | None = None


class Session:
    """Serves one account over one stream."""

    def __init__(
        self,
        stream: ByteStream,
        receiver: FrameReceiver,
        guest: Guest,
        known: Callable[[], None],
        service: Service,
        config: ServerConfig,
        statistics: ServerStatistics,
        pages: PagePool,
    ) -> None:
        """`known` is called when the guest has completed the hello."""
        self._guest = guest
        self._known = known
        self._proved = trio.Event()
        self._pages = pages
        self._receiver = receiver
        self._account = guest.account
        self._service = service
        self._config = config
        self._statistics = statistics
        self._sender = FrameSender(stream, config.stall_s)
        self._active: dict[int, _Active] = {}
        self._unwanted: dict[int, int] = {}
        self._head_keys: set[bytes] = set()
        """Verifying keys whose signing keys are with the peer."""
        self._newest = 0
        self._was_cold = False
        """Whether the last request may have held the loop up for the disk."""
        self._asked = 0
        self._incoming = 0
        self._body_size = 0
        self._ended_by: StorageError | None = None

    async def run(self) -> None:
        """Until the peer leaves. Raises Unavailable where it is lost, Refused for a broken protocol."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guard, self._sender.run, nursery.cancel_scope)
                nursery.start_soon(self._expect_proof, nursery.cancel_scope)
                await self._guard(lambda: self._receive(nursery), nursery.cancel_scope)
        finally:
            for active in self._active.values():
                self._free_body(active)
                if active.call_off is not None:
                    active.call_off()
        if self._ended_by is not None:
            raise self._ended_by

    async def _guard(self, task: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        """Run one of the two tasks; when it ends, the connection does."""
        try:
            await task()
        except StorageError as error:
            self._ended_by = self._ended_by or error
        scope.cancel()

    async def _expect_proof(self, scope: trio.CancelScope) -> None:
        with trio.move_on_after(self._config.hello_s):
            await self._proved.wait()
        if not self._proved.is_set():
            self._ended_by = self._ended_by or Unavailable("the peer does not complete the hello")
            scope.cancel()

    async def _receive(self, nursery: trio.Nursery) -> None:
        receiver = self._receiver
        with trio.CancelScope() as scope:
            receiver.watch(scope)
            while True:
                receiver.expect(self._incoming > 0)
                frame = await receiver.frame()
                if frame is None:
                    return
                if frame.kind is Kind.DATA:
                    await self._take_data(frame, nursery)
                elif frame.kind is Kind.REQUEST:
                    self._open(frame, await receiver.message(frame.length), nursery)
                    if self._was_cold:
                        # Many that came together must not keep others waiting for all of them.
                        self._was_cold = False
                        await trio.lowlevel.checkpoint()
                elif frame.kind is Kind.CANCEL and not frame.length:
                    self._cancel(frame.request)
                elif frame.kind is Kind.HELLO and frame.length <= hello.HELLO_SIZE_MAX:
                    self._complete_hello(await receiver.message(frame.length))
                else:
                    raise Refused("an unexpected frame")
        raise Unavailable("the peer stopped in the middle of a frame or body")

    def _complete_hello(self, proof: bytes) -> None:
        if self._proved.is_set() or not self._guest.proves(proof):
            raise Refused("a wrong proof, or another one")
        self._proved.set()
        self._known()

    def _open(self, frame: Frame, payload: bytes, nursery: trio.Nursery) -> None:
        """A new request. Raises Refused where the peer breaks the protocol or exceeds its credits."""
        # Numbers rise within a class only: a more urgent request overtakes those still queued.
        if frame.request in self._active:
            raise Refused("a request number that is in use")
        self._newest = max(self._newest, frame.request)
        request = wire.decode_request(payload)
        if not self._proved.is_set() and not wire.changes_nothing(request):
            raise Refused("a change was asked for before the hello was complete")
        if len(self._active) >= SLACK * wire.REQUESTS_WINDOW:
            raise Refused("more requests than its window allows")
        counts = self._statistics.requests
        kind = wire.request_name(request)
        counts[kind] = counts.get(kind, 0) + 1
        active = self._active[frame.request] = _Active(frame.request, frame.traffic)
        if isinstance(request, wire.Put):
            self._open_put(active, request)
            return
        try:
            self._service.check_rights(self._account, request)
        except StorageError as error:
            self._fail(active, error)
            return
        if isinstance(request, wire.Readv):
            self._open_read(active, request, nursery)
        elif isinstance(request, wire.HeadAppend):
            self._append(active, request)
        elif isinstance(request, wire.HeadKey):
            self._show_key(active, request)
        else:
            nursery.start_soon(self._perform, active, request)

    def _open_read(self, active: _Active, request: wire.Readv, nursery: trio.Nursery) -> None:
        """Answer from memory at once, or a few pages from a quick disk; only what waits takes a task."""
        active.asked = wire.read_size(request)
        self._asked += active.asked
        if self._asked > SLACK * wire.REPLY_WINDOW:
            raise Refused("more reply bytes than its window allows")
        plan: ReadPlan | None = None
        try:
            plan = self._service.read(request)
            loading = self._service.prepare(plan)
            self._statistics.cold_reads += plan.is_cold
            self._was_cold = plan.is_cold
            if loading is not None:
                active.scope = trio.CancelScope()
                nursery.start_soon(self._load_and_send, active, active.scope, plan, loading)
            else:
                self._send_plan(active, plan)
        except (StorageError, OSError) as error:
            if plan is not None:
                plan.close()
            self._fail(active, _storage_error(error))

    async def _load_and_send(
        self, active: _Active, scope: trio.CancelScope, plan: ReadPlan, loading: Loading
    ) -> None:
        sent = False
        try:
            with scope:
                await loading()
            active.scope = None
            if scope.cancelled_caught:
                self._end_with(active, wire.CANCELLED)
            else:
                self._send_plan(active, plan)
                sent = True
        except (StorageError, OSError) as error:
            self._fail(active, _storage_error(error))
        finally:
            if not sent:
                plan.close()

    def _send_plan(self, active: _Active, plan: ReadPlan) -> None:
        """Queue the answer; the plan is closed when it was sent."""
        self._statistics.bytes_copied += plan.copied
        self._statistics.bytes_out += plan.size
        reply = _WHOLE if plan.whole else wire.encode_reply(wire.ReadReply(plan.lengths))

        def ended() -> None:
            plan.close()
            self._forget(active)

        active.outgoing = Outgoing(
            active.number, active.traffic, Kind.REPLY, reply, plan.parts, plan.size, ended
        )
        self._sender.send_nowait(active.outgoing)

    def _append(self, active: _Active, request: wire.HeadAppend) -> None:
        """Store a record; no task waits for it."""

        def settled(error: StorageError | None) -> None:
            active.call_off = None
            if error is not None:
                self._fail(active, error)
            else:
                self._finish(active, Kind.REPLY, _DONE)

        try:
            active.call_off = self._service.append(request, self._head_keys, settled)
        except StorageError as error:
            self._fail(active, error)

    def _show_key(self, active: _Active, request: wire.HeadKey) -> None:
        """At once: records that come behind it need not have their signatures checked."""
        key = request.verifying_key
        if len(self._head_keys | {key}) > wire.HEAD_KEYS_MAX:
            self._fail(active, Refused("more head signing keys than one connection may show"))
        elif not fits(key, request.signature, held_signed_bytes(self._guest.connection_name)):
            self._fail(active, Refused("the signature does not fit the key that is shown"))
        else:
            self._head_keys.add(key)
            self._finish(active, Kind.REPLY, _DONE)

    def _open_put(self, active: _Active, request: wire.Put) -> None:
        """Take memory for the body, if it is allowed and there is some."""
        sizes = [share.size for share in request.shares]
        total = sum(sizes)
        if self._body_size + total > wire.PUT_WINDOW:
            raise Refused("more bytes of bodies than its window allows")
        if len(self._unwanted) >= SLACK * wire.REQUESTS_WINDOW:
            raise Refused("more requests than its window allows")
        try:
            self._service.check_rights(self._account, request)
            if self._statistics.put_memory_bytes + total > self._config.put_memory_bytes:
                raise Unavailable("the server is busy: its memory for puts is used up")
        except StorageError as error:
            self._unwanted[active.number] = total
            self._incoming += 1
            self._fail(active, error)
            return
        active.body_size = total
        self._body_size += total
        self._statistics.put_memory_bytes += total
        self._incoming += 1
        active.body = PutBody(request, self._pages)

    async def _take_data(self, frame: Frame, nursery: trio.Nursery) -> None:
        """A piece of a put's body: into its shares, or away."""
        active = self._active.get(frame.request)
        body = active.body if active is not None else None
        if active is None or body is None:
            left = self._unwanted.get(frame.request, 0)
            if not 0 < frame.length <= left:
                raise Refused("a body that was not announced")
            await self._receiver.payload([self._receiver.scratch[: frame.length]], frame.length)
            if left > frame.length:
                self._unwanted[frame.request] = left - frame.length
            else:
                self._drop_unwanted(frame.request)
            return
        if not 0 < frame.length <= body.missing:
            raise Refused("a body longer than announced")
        pieces = body.take(frame.length)
        await self._receiver.payload(list(pieces), frame.length)
        body.arrived(pieces)
        if not body.missing:
            self._incoming -= 1
            active.body = None
            nursery.start_soon(self._put, active, body)

    async def _put(self, active: _Active, body: PutBody) -> None:
        self._statistics.bytes_in += active.body_size
        await self._answer(active, lambda: self._service.put(self._account, body))

    async def _perform(self, active: _Active, request: wire.AnyRequest) -> None:
        await self._answer(active, lambda: self._service.perform(self._account, request))

    async def _answer(self, active: _Active, ask: Callable[[], Awaitable[wire.Reply]]) -> None:
        """Send what the service says, or its error. Nothing that it raises ends the connection."""
        try:
            reply = await ask()
        except (StorageError, OSError) as error:
            self._fail(active, _storage_error(error))
        except Exception:
            log.exception("a request failed by an error of this program")
            self._fail(active, Unavailable("the server failed: its log says why"))
        else:
            self._finish(active, Kind.REPLY, wire.encode_reply(reply))

    def _fail(self, active: _Active, error: StorageError) -> None:
        self._statistics.failures += 1
        self._end_with(active, wire.failure_of(error))

    def _end_with(self, active: _Active, failure: wire.Failure) -> None:
        self._finish(active, Kind.FAIL, wire.encode_failure(failure))

    def _finish(self, active: _Active, kind: Kind, payload: bytes) -> None:
        # Before the peer can see the answer: it may then put again.
        self._free_body(active)
        active.outgoing = Outgoing(
            active.number, active.traffic, kind, payload, ended=lambda: self._forget(active)
        )
        self._sender.send_nowait(active.outgoing)

    def _cancel(self, number: int) -> None:
        """Stop what can be stopped. A put or a record that is being stored is not."""
        if number > self._newest:
            raise Refused("it cancels a request that it never made")
        if number in self._unwanted:
            self._drop_unwanted(number)
            return
        active = self._active.get(number)
        if active is None:
            return
        if active.outgoing is not None:
            if not active.outgoing.is_finished:
                active.outgoing.cut(Kind.FAIL, wire.encode_failure(wire.CANCELLED))
        elif active.body is not None:
            active.body = None
            self._incoming -= 1
            self._end_with(active, wire.CANCELLED)
        elif active.scope is not None:
            active.scope.cancel()

    def _drop_unwanted(self, number: int) -> None:
        del self._unwanted[number]
        self._incoming -= 1

    def _free_body(self, active: _Active) -> None:
        self._body_size -= active.body_size
        self._statistics.put_memory_bytes -= active.body_size
        active.body_size = 0

    def _forget(self, active: _Active) -> None:
        """The last frame of the answer is out, or the connection is at its end."""
        if self._active.pop(active.number, None) is not None:
            self._asked -= active.asked


def _storage_error(error: StorageError | OSError) -> StorageError:
    if isinstance(error, StorageError):
        return error
    log.error("the disk fails: %s", error)
    return Unavailable(f"the server's disk fails ({error.strerror or error})")
