"""`StorageClient`: one server, its one connection, and the operations of the wire as methods.

Any number of tasks may call at once. The connection is made on the first call; when it cannot be made or is
lost, the client tries again by itself after pauses that grow, each drawn from nothing to the whole, so that
the clients of a server that comes back do not come in step. Calls fail at once with what went wrong last
(Unavailable, or Refused for a wrong key or secret) until an attempt succeeds; but somebody who asks for data
makes the next attempt come soon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import trio

from storage.client.connection import Connection
from storage.client.opening import open_connection
from storage.client.records import ClientConfig, ClientStatistics, ServerInfo, SharePut, Span
from storage.errors import Refused, StorageError, Unavailable
from storage.format.head import held_signed_bytes
from storage.headlog import HeadClaim, HeadRecord, HeadStanding
from storage.ports import Buffer, Entropy, Network, Space
from storage.wire import messages as wire
from storage.wire.frames import Traffic
from storage.wire.heads import entry_of, message_of, record_of, standing_of
from storage.wire.url import Access

Stamp = tuple[int, int]
"""(epoch, sequence) of the record under which a lease is asserted or given up."""

R = TypeVar("R", bound=wire.Reply)


class StorageClient:
    """One server as its clients see it. `run` must be running while anything is called."""

    def __init__(
        self, access: Access, network: Network, entropy: Entropy, config: ClientConfig | None = None
    ) -> None:
        self.access = access
        self._network = network
        self._entropy = entropy
        self._config = config or ClientConfig()
        self._statistics = ClientStatistics()
        self._connection: Connection | None = None
        self._failure: StorageError | None = None
        self._head_key: tuple[bytes, Callable[[bytes], bytes]] | None = None
        self._wanted = trio.Event()
        self._hurried = trio.Event()
        self._changed = trio.Event()

    @property
    def server_id(self) -> bytes:
        return self.access.server_id

    @property
    def state(self) -> str:
        """ "idle" (not asked yet), "connecting", "connected", "unreachable: ..." or "refused: ..."."""
        connection = self._connection
        if connection is not None and connection.is_greeted and not connection.has_failed:
            return "connected"
        failure = self._failure
        if failure is None and connection is not None and not connection.is_greeted:
            failure = connection.failure
        if failure is not None:
            word = "refused" if isinstance(failure, Refused) else "unreachable"
            return f"{word}: {failure}"
        return "connecting" if self._wanted.is_set() else "idle"

    def statistics(self) -> ClientStatistics:
        """The live counters; not a copy."""
        self._statistics.pending = self._connection.pending if self._connection is not None else 0
        return self._statistics

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the connection until cancelled. Starts at once, without waiting for the server."""
        task_status.started()
        attempts = 0
        try:
            while True:
                await self._wanted.wait()
                opened_at = trio.current_time()
                connection: Connection | None = None
                try:
                    async with open_connection(
                        self.access, self._network, self._entropy, self._config, self._statistics
                    ) as connection:
                        opened_at = trio.current_time()
                        if self._failure is None:
                            self._report(connection, None)  # reading need not wait for the hello
                        await connection.run(partial(self._greeted, connection))
                except StorageError as error:
                    failure = error
                lost = connection is not None and connection.is_greeted
                if lost and trio.current_time() - opened_at >= self._config.settled_s:
                    # It worked and was lost: callers wait for one attempt that is made at once.
                    attempts = 0
                    self._report(None, None)
                else:
                    self._report(None, failure)
                    await self._rest(attempts)
                    attempts += 1
        finally:
            self._report(None, Unavailable("the client was stopped"))

    def use_head_key(self, verifying_key: bytes, sign: Callable[[bytes], bytes]) -> None:
        """Show the server, on each connection, that this key's other half is here (`sign` makes its
        signatures): then it does not check the signature of each record."""
        self._head_key = verifying_key, sign
        if self._connection is not None and self._connection.is_greeted:
            self._show_key(self._connection)

    def _greeted(self, connection: Connection) -> None:
        self._show_key(connection)
        self._report(connection, None)

    def _show_key(self, connection: Connection) -> None:
        """Before any record, which leaves behind it. Where it fails, each record's signature is checked."""
        if self._head_key is not None:
            verifying_key, sign = self._head_key
            signature = sign(held_signed_bytes(connection.name))
            payload = wire.encode_request(wire.HeadKey(verifying_key, signature))
            self._ask_nowait(connection, "head_key", wire.DoneReply, payload, Traffic.HEAD, _ignore)

    async def readv(
        self, spans: Sequence[Span], destinations: Sequence[memoryview], traffic: Traffic
    ) -> list[int]:
        """Read all spans with one request, each straight into its destination (writable, of its length).

        Returns the bytes got per span: fewer than asked at the end of a share, 0 without such a share.
        Cancelled or failed, it leaves the destinations half filled but never touches them afterwards.
        Raises Unavailable; Refused for more than READV_SPANS_MAX spans or READV_SIZE_MAX bytes.
        """
        request, size = _read_request(spans, destinations)
        if not spans:
            return []
        reply = await self._ask(wire.ReadReply, request, traffic, destinations=destinations, reply=size)
        return self._lengths(reply, spans)

    def readv_nowait(
        self,
        spans: Sequence[Span],
        destinations: Sequence[memoryview],
        traffic: Traffic,
        settled: Callable[[list[int] | StorageError], None],
    ) -> Callable[[], None] | None:
        """The same without a task that waits: `settled` is told once how it ended. It must not raise.

        Returns what calls it off; see `Connection.ask_nowait`. None, and nothing is done, where that would
        have to wait.
        """
        connection = self._connection
        if connection is None or not spans:
            return None
        request, size = _read_request(spans, destinations)

        def ended(outcome: wire.ReadReply | StorageError) -> None:
            settled(outcome if isinstance(outcome, StorageError) else self._lengths(outcome, spans))

        payload = wire.encode_request(request)
        return self._ask_nowait(
            connection, "readv", wire.ReadReply, payload, traffic, ended, destinations, size
        )

    def _lengths(self, reply: wire.ReadReply, spans: Sequence[Span]) -> list[int]:
        lengths = [span.length for span in spans] if reply.lengths is None else reply.lengths
        self._statistics.bytes_in += sum(lengths)
        return lengths

    async def put(
        self, shares: Sequence[SharePut], file_system: bytes, stamp: Stamp, traffic: Traffic
    ) -> list[bool]:
        """Store shares with one request and lease them; durable by the server's sync policy on return.

        True per share that is new, False where the server had it (then it is leased all the same).
        Idempotent. Raises Unavailable, Corrupt (a share does not fit its pack id), Exhausted (no room) or
        Refused (also for more than SHARES_MAX shares or PUT_SIZE_MAX bytes).
        """
        if not shares:
            return []
        sizes = [sum(memoryview(part).nbytes for part in share.parts) for share in shares]
        entries = [
            wire.PutShare(share.pack_id, share.number, size)
            for share, size in zip(shares, sizes, strict=True)
        ]
        body: list[Buffer] = [part for share in shares for part in share.parts]
        request = wire.Put(file_system, stamp[0], stamp[1], entries)
        reply = await self._ask(wire.FlagsReply, request, traffic, body=body, body_size=sum(sizes))
        self._statistics.bytes_out += sum(sizes)
        return _flags(reply, shares)

    async def have(
        self,
        keys: Sequence[tuple[bytes, int]],
        file_system: bytes,
        stamp: Stamp,
        traffic: Traffic = Traffic.UPLOAD,
    ) -> list[bool]:
        """Which of (pack id, number) the server has; those are leased under the stamp. Idempotent."""
        if not keys:
            return []
        request = wire.Have(file_system, stamp[0], stamp[1], [wire.Key(*key) for key in keys])
        return _flags(await self._ask(wire.FlagsReply, request, traffic), keys)

    async def release(
        self,
        keys: Sequence[tuple[bytes, int]],
        file_system: bytes,
        stamp: Stamp,
        traffic: Traffic = Traffic.UPLOAD,
    ) -> list[bool]:
        """Give up the leases older than the stamp; False where a newer one stays. Idempotent."""
        if not keys:
            return []
        request = wire.Release(file_system, stamp[0], stamp[1], [wire.Key(*key) for key in keys])
        return _flags(await self._ask(wire.FlagsReply, request, traffic), keys)

    async def head_claim(self, claim: HeadClaim) -> tuple[int, bytes, HeadRecord | None]:
        """Ask to be the log's writer; returns (promised epoch, its mount id, newest record).

        Raises Conflict where a higher epoch, or this one to another mount, was promised, or the log belongs
        to a successor of the key; Refused for a key that may not claim. Idempotent.
        """
        reply = await self._ask(wire.ClaimReply, message_of(claim), Traffic.HEAD)
        return reply.epoch, reply.mount_id, None if reply.newest is None else record_of(reply.newest)

    async def head_append(self, log: bytes, records: Sequence[HeadRecord]) -> None:
        """Append signed records, each naming the one before it, all or none; durable on return. Idempotent.

        Raises Conflict, Refused (also for more than HEAD_APPEND_MAX), Exhausted.
        """
        await self._ask(wire.DoneReply, _append(log, records), Traffic.HEAD)

    def head_append_nowait(self, request: bytes, settled: Callable[[StorageError | None], None]) -> bool:
        """The same without a task that waits: `settled` is told once how it ended. It must not raise.

        `request`: what `append_request` gives. False, and nothing is done, where that would have to wait.
        """
        connection = self._connection
        if connection is None:
            return False

        def ended(outcome: wire.DoneReply | StorageError) -> None:
            settled(outcome if isinstance(outcome, StorageError) else None)

        name, reply_type = "head_append", wire.DoneReply
        return self._ask_nowait(connection, name, reply_type, request, Traffic.HEAD, ended) is not None

    async def head_read(self, log: bytes, after: Stamp | None, limit_bytes: int) -> list[HeadRecord]:
        """Records after (epoch, sequence), oldest first, until `limit_bytes` of payload are reached.

        An empty list says that there are none. Longer lists take several requests.
        """
        records: list[HeadRecord] = []
        room = limit_bytes
        while room > 0:
            limit = min(room, wire.HEAD_READ_SIZE_MAX)
            request = wire.HeadRead(log, None if after is None else wire.Position(*after), limit)
            reply = await self._ask(wire.RecordsReply, request, Traffic.HEAD)
            if not reply.records:
                break
            records += map(record_of, reply.records)
            after = (records[-1].epoch, records[-1].sequence)
            size = sum(len(entry.payload) for entry in reply.records)
            if size < limit:
                break  # a server goes on until it reaches the limit
            room -= size
        return records

    async def head_trim(self, log: bytes, before: Stamp, signature: bytes) -> None:
        """Drop records before (epoch, sequence), if the signature allows it. Idempotent."""
        request = wire.HeadTrim(log, wire.Position(*before), signature)
        await self._ask(wire.DoneReply, request, Traffic.HEAD)

    async def head_look(self, log: bytes) -> HeadStanding | None:
        """How the log stands, its newest record with it; None where the server has none of that name."""
        reply = await self._ask(wire.StandingReply, wire.HeadLook(log), Traffic.HEAD)
        return None if reply.standing is None else standing_of(reply.standing)

    async def head_drop(self, log: bytes, epoch: int, signature: bytes) -> None:
        """End the log, if the signature allows it and this epoch is the promised one. Idempotent.

        Raises Conflict, Refused.
        """
        await self._ask(wire.DoneReply, wire.HeadDrop(log, epoch, signature), Traffic.HEAD)

    async def leased(
        self, file_system: bytes, after: tuple[bytes, int] | None, limit: int
    ) -> list[tuple[bytes, int]]:
        """Up to `limit` shares (pack id, number) that this account leases for a file system, ascending.

        They begin behind `after`. `limit` is at most SHARES_MAX.
        """
        request = wire.Leased(file_system, None if after is None else wire.Key(*after), limit)
        reply = await self._ask(wire.KeysReply, request, Traffic.UPLOAD)
        return [(key.pack_id, key.number) for key in reply.keys]

    async def info(self) -> ServerInfo:
        """Version, sync policy and space of the server. Does not make an attempt to connect come sooner."""
        reply = await self._ask(wire.InfoReply, wire.Info(), Traffic.DEMAND, hurries=False)
        space = Space(total=reply.space_total, free=reply.space_free)
        return ServerInfo(reply.version, reply.sync_policy, space, reply.shares, reply.share_bytes)

    async def _ask(
        self,
        reply_type: type[R],
        request: wire.Request,
        traffic: Traffic,
        *,
        body: Sequence[Buffer] = (),
        body_size: int = 0,
        destinations: Sequence[memoryview] = (),
        reply: int = 0,
        hurries: bool = True,
    ) -> R:
        payload = wire.encode_request(request)
        if body_size > wire.PUT_SIZE_MAX:
            raise Refused(f"a request may carry {wire.PUT_SIZE_MAX} bytes, not {body_size}")
        try:
            connection = await self._connected(hurries)
            if not wire.changes_nothing(request):
                await connection.greeted()
            self._count(wire.request_name(request), traffic)
            answer = await connection.ask(payload, traffic, body, body_size, destinations, reply)
            if not isinstance(answer, reply_type):
                error = Unavailable("the server breaks the protocol: it answered another question")
                connection.fail(error)
                raise error
        except StorageError:
            self._statistics.failures += 1
            raise
        except trio.Cancelled:
            self._statistics.cancelled += 1
            raise
        return answer

    def _ask_nowait(
        self,
        connection: Connection,
        name: str,
        reply_type: type[R],
        payload: bytes,
        traffic: Traffic,
        settled: Callable[[R | StorageError], None],
        destinations: Sequence[memoryview] = (),
        reply: int = 0,
    ) -> Callable[[], None] | None:
        """See `Connection.ask_nowait`; counted, and an answer to another question is an error."""

        def ended(outcome: wire.AnyReply | StorageError) -> None:
            if not isinstance(outcome, StorageError | reply_type):
                outcome = Unavailable("the server breaks the protocol: it answered another question")
                connection.fail(outcome)
            if isinstance(outcome, StorageError):
                self._statistics.failures += 1
            settled(outcome)

        abandon = connection.ask_nowait(payload, traffic, ended, destinations, reply)
        if abandon is None:
            return None
        self._count(name, traffic)
        return partial(self._leave, abandon)

    def _leave(self, abandon: Callable[[], None]) -> None:
        self._statistics.cancelled += 1
        abandon()

    def _count(self, kind: str, traffic: Traffic) -> None:
        counters = self._statistics
        counters.requests[kind] = counters.requests.get(kind, 0) + 1
        counters.traffic[traffic] = counters.traffic.get(traffic, 0) + 1

    async def _connected(self, hurries: bool) -> Connection:
        """The connection; waits while a first or an immediate second attempt to connect is under way."""
        self._wanted.set()
        while True:
            connection = self._connection
            if connection is not None and not connection.has_failed:
                return connection
            if self._failure is not None:
                if hurries:
                    self._hurried.set()
                raise type(self._failure)(str(self._failure))
            await self._changed.wait()

    def _report(self, connection: Connection | None, failure: StorageError | None) -> None:
        self._connection = connection
        self._failure = failure
        self._changed.set()
        self._changed = trio.Event()

    async def _rest(self, attempts: int) -> None:
        """The pause after a failed attempt; cut short where somebody waits for the server."""
        config = self._config
        began = trio.current_time()
        longest: float = min(config.retry_s_max, config.retry_s_min * 2.0 ** min(attempts, 30))
        pause = longest * self._chance()
        soonest = min(pause, config.hurry_s_max * self._chance())
        self._hurried = trio.Event()
        with trio.move_on_at(began + pause):
            await self._hurried.wait()
            await trio.sleep_until(began + soonest)

    def _chance(self) -> float:
        """Anything from 0 to 1."""
        return int.from_bytes(self._entropy.token(4)) / 0xFFFFFFFF


def append_request(log: bytes, records: Sequence[HeadRecord]) -> bytes:
    """The request that appends records, the same for all servers. Raises Refused for too many bytes."""
    return wire.encode_request(_append(log, records))


def _ignore(outcome: wire.DoneReply | StorageError) -> None:
    pass


def _append(log: bytes, records: Sequence[HeadRecord]) -> wire.HeadAppend:
    return wire.HeadAppend(log, list(map(entry_of, records)))


def _read_request(spans: Sequence[Span], destinations: Sequence[memoryview]) -> tuple[wire.Readv, int]:
    """Group neighbours of the same share; their order, which is the order of the reply, stays."""
    if len(spans) > wire.READV_SPANS_MAX:
        raise Refused(f"a readv may have {wire.READV_SPANS_MAX} spans, not {len(spans)}")
    reads: list[wire.ShareRead] = []
    size = 0
    last: tuple[bytes, int] | None = None
    ranges: list[int] = []
    for span, destination in zip(spans, destinations, strict=True):
        if destination.nbytes != span.length:
            raise ValueError("a destination must be as long as its span")
        key = (span.pack_id, span.number)
        if key != last:
            ranges = []
            reads.append(wire.ShareRead(span.pack_id, span.number, ranges))
            last = key
        ranges += (span.offset, span.length)
        size += span.length
    if size > wire.READV_SIZE_MAX:
        raise Refused(f"a readv may ask for {wire.READV_SIZE_MAX} bytes, not {size}")
    return wire.Readv(reads), size


def _flags(reply: wire.FlagsReply, asked: Sequence[object]) -> list[bool]:
    if len(reply.flags) != len(asked):
        raise Unavailable("the server breaks the protocol: it answered for other shares")
    return reply.flags
