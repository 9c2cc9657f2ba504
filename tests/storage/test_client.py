"""The client: what callers see of servers that are dead, slow, wrong or strange, and of cancelled calls."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from storage.client import Access, ClientConfig, SharePut, Span, StorageClient, Traffic
from storage.client.credit import Credit
from storage.errors import Exhausted, Refused, StorageError, Unavailable
from storage.host import SystemEntropy
from storage.identity import Identity
from storage.ports import ByteStream, TlsAddress, UnixAddress
from storage.transport.link import FrameReceiver
from storage.wire import hello
from storage.wire import messages as wire
from storage.wire.frames import PAYLOAD_SIZE_MAX, Frame, Kind, encode_frame
from storage.wire.frames import Traffic as Class
from tests.storage.servers import (
    FILE_SYSTEM,
    STAMP,
    Memory,
    PairNetwork,
    let_in,
    make_pack,
    serving,
    until,
    using,
)

IDENTITY = Identity(
    b"k" * 32, bytes.fromhex("8320a51977d8c38ca8a4927c670df5821e449761945e15e9efb26a1509d230ea")
)
ACCESS = Access(IDENTITY.server_id, UnixAddress("/scripted"), b"a" * 16, b"s" * 32, "full")
PACK = bytes(32)


class Peer:
    """The server's end of a connection, in the hands of a test."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.receiver = FrameReceiver(stream, 60)
        self._early: list[tuple[Frame, bytes]] = []
        """Requests that came before the end of the hello."""

    async def greet(self) -> None:
        frame = await self.receiver.frame()
        assert frame is not None
        message = hello.read_hello(await self.receiver.message(frame.length))
        assert message is not None
        assert hello.knows_secret(message, b"s" * 32)
        nonce = b"n" * 32
        signature = IDENTITY.sign(hello.signed_bytes(message.account, message.nonce, nonce))
        _, payload = hello.answer(message, b"s" * 32, IDENTITY.server_id, nonce, signature, "full")
        await self.send(Kind.HELLO, 0, payload)
        while (early := await self._receive())[0].kind is not Kind.HELLO:
            self._early.append(early)

    async def send(self, kind: Kind, number: int, payload: bytes) -> None:
        await self.stream.send_all([encode_frame(len(payload), kind, Class.DEMAND, number), payload])

    async def reply(self, number: int, reply: wire.Reply) -> None:
        await self.send(Kind.REPLY, number, wire.encode_reply(reply))

    async def next(self) -> tuple[Frame, bytes]:
        return self._early.pop(0) if self._early else await self._receive()

    async def _receive(self) -> tuple[Frame, bytes]:
        frame = await self.receiver.frame()
        if frame is None:
            raise Unavailable("the client left")
        return frame, await self.receiver.message(frame.length)


Script = Callable[[Peer], Awaitable[None]]


def scripted(nursery: trio.Nursery, script: Script) -> PairNetwork:
    """A network on which every connection, after a proper hello, goes as the script says."""

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream)
        await peer.greet()
        await script(peer)

    return PairNetwork(nursery, handle)


async def hang(peer: Peer) -> None:
    await trio.sleep_forever()


async def read_one(client: StorageClient, buffer: bytearray, traffic: Traffic = Traffic.DEMAND) -> list[int]:
    return await client.readv([Span(PACK, 0, 0, len(buffer))], [memoryview(buffer)], traffic)


async def read_at_once(client: StorageClient, buffer: bytearray) -> list[int]:
    """The same without a task of the client's; cancelled, it is called off."""
    if client.state != "connected":
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.info()  # makes it connect, and is not sent
        await until(lambda: client.state == "connected")
    outcomes: list[list[int] | StorageError] = []
    settled = trio.Event()

    def settle(outcome: list[int] | StorageError) -> None:
        outcomes.append(outcome)
        settled.set()

    spans, destinations = [Span(PACK, 0, 0, len(buffer))], [memoryview(buffer)]
    call_off = client.readv_nowait(spans, destinations, Traffic.DEMAND, settle)
    assert call_off is not None
    try:
        await settled.wait()
    except trio.Cancelled:
        call_off()
        await trio.testing.wait_all_tasks_blocked()
        assert not outcomes, "it was called off"
        raise
    (outcome,) = outcomes
    if isinstance(outcome, StorageError):
        raise outcome
    return outcome


Read = Callable[[StorageClient, bytearray], Awaitable[list[int]]]
either_way = pytest.mark.parametrize("read", [read_one, read_at_once])


@either_way
async def test_a_cancelled_read_writes_no_byte_afterwards(read: Read) -> None:
    """Cancelled in the middle of its answer: the rest goes to scratch, the connection goes on."""
    half, full = trio.Event(), trio.Event()
    seen: list[Kind] = []
    size = 2 * PAYLOAD_SIZE_MAX

    async def script(peer: Peer) -> None:
        number = (await peer.next())[0].request
        await peer.reply(number, wire.ReadReply(None))
        await peer.stream.send_all([encode_frame(PAYLOAD_SIZE_MAX, Kind.DATA, Class.DEMAND, number)])
        await peer.stream.send_all([b"x" * 1000])
        await half.wait()
        await peer.stream.send_all([b"y" * (PAYLOAD_SIZE_MAX - 1000)])
        await peer.send(Kind.DATA, number, b"z" * PAYLOAD_SIZE_MAX)
        seen.append((await peer.next())[0].kind)
        number = (await peer.next())[0].request
        await peer.reply(number, wire.ReadReply([3]))
        await peer.send(Kind.DATA, number, b"end")
        await full.wait()

    async with trio.open_nursery() as nursery:
        async with using(ACCESS, scripted(nursery, script)) as client:
            buffer = bytearray(size)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as readers:
                    readers.start_soon(read, client, buffer)
                    await until(lambda: buffer[999] == ord("x"))
                    cancelled = client.statistics().cancelled
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            buffer[:] = b"." * size
            half.set()
            later = bytearray(10)
            assert await read(client, later) == [3]
            assert later[:3] == b"end"
            assert buffer == b"." * size
            assert seen == [Kind.CANCEL]
            assert client.statistics().pending == 0
            assert client.statistics().cancelled == cancelled + 1
            full.set()
        nursery.cancel_scope.cancel()


@either_way
async def test_what_was_read_is_free_once_its_reader_lets_go(read: Read) -> None:
    """Buffers are lent, and back when nothing refers to them: not only when a cycle is looked for."""

    async def script(peer: Peer) -> None:
        number = (await peer.next())[0].request
        await peer.reply(number, wire.ReadReply(None))
        await peer.send(Kind.DATA, number, bytes(10))
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        async with using(ACCESS, scripted(nursery, script)) as client:
            buffer = Memory(10)
            gone = weakref.ref(buffer)
            gc.disable()
            try:
                assert await read(client, buffer) == [10]
                await trio.testing.wait_all_tasks_blocked()
                del buffer
                assert gone() is None
            finally:
                gc.enable()
        nursery.cancel_scope.cancel()


async def test_a_read_cancelled_before_it_was_sent_never_is() -> None:
    seen: list[int] = []

    async def script(peer: Peer) -> None:
        while True:
            frame, _ = await peer.next()
            seen.append(frame.request)
            await peer.reply(frame.request, wire.InfoReply("1", "group", 1, 1, 0, 0))

    async with trio.open_nursery() as nursery:
        async with using(ACCESS, scripted(nursery, script)) as client:
            await client.info()
            with trio.CancelScope() as scope:
                scope.cancel()
                await read_one(client, bytearray(10))
            await client.info()
            assert len(seen) == 2
            assert client.statistics().pending == 0
        nursery.cancel_scope.cancel()


async def test_a_cancelled_put_stops_sending(tmp_path: Path) -> None:
    frames: list[tuple[Kind, int]] = []
    go = trio.Event()

    async def script(peer: Peer) -> None:
        await go.wait()
        while True:
            frame, _ = await peer.next()
            frames.append((frame.kind, frame.length))
            if frame.kind is Kind.CANCEL:
                await peer.send(Kind.FAIL, frame.request, wire.encode_failure(wire.CANCELLED))

    share = SharePut(PACK, 0, [bytes(8_000_000)] * 2)
    async with trio.open_nursery() as nursery:
        async with using(ACCESS, scripted(nursery, script)) as client:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as writers:
                    writers.start_soon(client.put, [share], FILE_SYSTEM, STAMP, Traffic.UPLOAD)
                    await until(lambda: client.state == "connected")
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            go.set()
            await until(lambda: (Kind.CANCEL, 0) in frames)
            assert sum(length for kind, length in frames if kind is Kind.DATA) < 16_000_000
            await until(lambda: client.statistics().pending == 0)
        nursery.cancel_scope.cancel()


async def test_a_refused_put_does_not_send_its_whole_body() -> None:
    frames: list[Kind] = []
    refused = trio.Event()

    async def script(peer: Peer) -> None:
        frame, _ = await peer.next()
        failure = wire.failure_of(Exhausted("no room"))
        await peer.send(Kind.FAIL, frame.request, wire.encode_failure(failure))
        await refused.wait()
        while True:
            frames.append((await peer.next())[0].kind)

    share = SharePut(PACK, 0, [bytes(8_000_000)] * 2)
    async with trio.open_nursery() as nursery:
        async with using(ACCESS, scripted(nursery, script)) as client:
            with pytest.raises(Exhausted, match="no room"):
                await client.put([share], FILE_SYSTEM, STAMP, Traffic.UPLOAD)
            refused.set()
            await until(lambda: Kind.CANCEL in frames)
            assert frames.index(Kind.CANCEL) < 16_000_000 // PAYLOAD_SIZE_MAX
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([(Kind.REPLY, wire.encode_reply(wire.ReadReply([11])))], id="longer than asked"),
        pytest.param([(Kind.REPLY, wire.encode_reply(wire.ReadReply([1, 1])))], id="for more spans"),
        pytest.param([(Kind.REPLY, wire.encode_reply(wire.DoneReply()))], id="another question"),
        pytest.param([(Kind.REPLY, b"rubbish")], id="malformed"),
        pytest.param([(Kind.DATA, b"x")], id="a body before its reply"),
        pytest.param([(Kind.REQUEST, b"x")], id="a request"),
        pytest.param([(Kind.REPLY, wire.encode_reply(wire.ReadReply(None)))] * 2, id="two replies"),
        pytest.param(
            [(Kind.REPLY, wire.encode_reply(wire.ReadReply([3]))), (Kind.DATA, b"four")], id="too much body"
        ),
    ],
)
@either_way
async def test_a_server_that_breaks_the_protocol_is_unavailable(
    answer: list[tuple[Kind, bytes]], read: Read
) -> None:
    async def script(peer: Peer) -> None:
        number = (await peer.next())[0].request
        for kind, payload in answer:
            await peer.send(kind, number, payload)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        async with using(ACCESS, scripted(nursery, script)) as client:
            buffer = bytearray(10)
            with pytest.raises(Unavailable, match="breaks the protocol"):
                await read(client, buffer)
            await until(lambda: client.state.startswith("unreachable: the server breaks the protocol"))
        nursery.cancel_scope.cancel()


@either_way
async def test_a_hung_server_costs_one_deadline(autojump_clock: trio.testing.MockClock, read: Read) -> None:
    async with trio.open_nursery() as nursery:
        network = scripted(nursery, hang)
        async with using(ACCESS, network) as client:
            start = trio.current_time()
            with pytest.raises(Unavailable, match="does not answer"):
                await read(client, bytearray(10))
            assert trio.current_time() - start == pytest.approx(10, abs=0.1)
        nursery.cancel_scope.cancel()


@either_way
async def test_one_hung_request_does_not_end_the_others(
    autojump_clock: trio.testing.MockClock, read: Read
) -> None:
    async def script(peer: Peer) -> None:
        while True:
            frame, payload = await peer.next()
            if frame.kind is Kind.REQUEST and isinstance(wire.decode_request(payload), wire.Info):
                await peer.reply(frame.request, wire.InfoReply("1", "group", 1, 1, 0, 0))

    async with trio.open_nursery() as nursery:
        network = scripted(nursery, script)
        async with using(ACCESS, network) as client:

            async def chat() -> None:
                while True:
                    await trio.sleep(1)
                    await client.info()

            async with trio.open_nursery() as chatting:
                chatting.start_soon(chat)
                start = trio.current_time()
                with pytest.raises(Unavailable, match="does not answer"):
                    await read(client, bytearray(10))
                assert trio.current_time() - start == pytest.approx(60, abs=1)
                assert client.state == "connected"
                assert network.connects == 1
                chatting.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


async def test_a_slow_answer_that_goes_on_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async def script(peer: Peer) -> None:
        number = (await peer.next())[0].request
        await peer.reply(number, wire.ReadReply(None))
        for _ in range(10):
            await trio.sleep(8)
            await peer.send(Kind.DATA, number, b"x")
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        async with using(ACCESS, scripted(nursery, script)) as client:
            assert await read_one(client, bytearray(10)) == [10]
            assert trio.current_time() >= 80
        nursery.cancel_scope.cancel()


class Broken:
    """A network on which nobody answers, until somebody does."""

    def __init__(self, working: PairNetwork) -> None:
        self.working = working
        self.is_broken = True
        self.attempts: list[float] = []

    async def connect(self, address: object, server_key: bytes) -> ByteStream:
        self.attempts.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.is_broken:
            raise Unavailable("nobody answers")
        return await self.working.connect(address, server_key)  # type: ignore[arg-type]


async def info_forever(peer: Peer) -> None:
    while True:
        frame, _ = await peer.next()
        await peer.reply(frame.request, wire.InfoReply("1", "group", 1, 1, 0, 0))


async def test_a_dead_server_fails_fast_and_is_found_again(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Broken(scripted(nursery, info_forever))
        async with using(ACCESS, network) as client:
            assert client.state == "idle"
            assert network.attempts == []
            with pytest.raises(Unavailable, match="nobody answers"):
                await client.info()
            start = trio.current_time()
            with pytest.raises(Unavailable, match="nobody answers"):
                await client.info()
            assert trio.current_time() == start
            assert client.state == "unreachable: nobody answers"
            await trio.sleep(300)
            pauses = [b - a for a, b in zip(network.attempts, network.attempts[1:], strict=False)]
            assert all(pause <= min(10, 0.1 * 2**attempt) for attempt, pause in enumerate(pauses))
            assert max(pauses) > 2, "they grow"
            network.is_broken = False
            await trio.sleep(11)
            assert client.state == "connected"
            assert (await client.info()).version == "1"
        nursery.cancel_scope.cancel()


def spread(pauses: list[float], longest: float) -> bool:
    """Whether pauses lie everywhere between nothing and the longest, and not beyond."""
    parts = [sum(part / 4 <= pause / longest <= (part + 1) / 4 for pause in pauses) for part in range(4)]
    return max(pauses) <= longest and min(parts) >= len(pauses) / 12


async def pauses_of(broken_s: float, demand_every_s: float | None) -> list[float]:
    """Pauses between the attempts on a server that does not answer for so long, once they are at their
    longest; with somebody who asks for data that often, or with nobody."""
    async with trio.open_nursery() as nursery:
        network = Broken(scripted(nursery, info_forever))
        async with using(ACCESS, network) as client:

            async def demand(every_s: float) -> None:
                while True:
                    with pytest.raises(Unavailable, match="nobody answers"):
                        await read_one(client, bytearray(10))
                    await trio.sleep(every_s)

            with pytest.raises(Unavailable):
                await client.info()
            if demand_every_s is not None:
                nursery.start_soon(demand, demand_every_s)
            await trio.sleep(broken_s)
            nursery.cancel_scope.cancel()
    return [b - a for a, b in zip(network.attempts, network.attempts[1:], strict=False)][12:]


async def test_pauses_are_drawn_from_nothing_to_the_longest(autojump_clock: trio.testing.MockClock) -> None:
    pauses = await pauses_of(2000, None)
    assert len(pauses) > 150
    assert spread(pauses, 10)


@pytest.mark.parametrize("every_s", [0.01, 0.3])
async def test_who_asks_makes_an_attempt_come_soon_and_many_who_ask_no_stampede(
    autojump_clock: trio.testing.MockClock, every_s: float
) -> None:
    pauses = await pauses_of(200, every_s)
    assert max(pauses) <= 1.0
    assert every_s > 0.1 or spread(pauses, 1.0)
    assert len(pauses) < 200 * 4


async def test_who_asks_only_how_it_is_does_not_hurry(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        network = Broken(scripted(nursery, info_forever))
        async with using(ACCESS, network) as client:
            for _ in range(3000):
                with pytest.raises(Unavailable):
                    await client.info()
                await trio.sleep(0.1)
            assert len(network.attempts) < 120
        nursery.cancel_scope.cancel()


async def test_a_server_that_is_back_is_there_a_second_after_it_is_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        network = Broken(scripted(nursery, info_forever))
        async with using(ACCESS, network) as client:
            with pytest.raises(Unavailable):
                await client.info()
            for _ in range(20):
                await trio.sleep(97)
                network.is_broken = False
                with contextlib.suppress(Unavailable):
                    await client.have([(bytes(32), 0)], bytes(16), (1, 1))
                await trio.sleep(1.01)
                assert client.state == "connected"
                network.is_broken = True
                assert client._connection is not None
                client._connection.fail(Unavailable("cut"))
        nursery.cancel_scope.cancel()


async def test_a_lost_connection_is_made_again_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async def script(peer: Peer) -> None:
        frame, _ = await peer.next()
        await peer.reply(frame.request, wire.InfoReply("1", "group", 1, 1, 0, 0))
        await trio.sleep(5)

    async with trio.open_nursery() as nursery:
        network = scripted(nursery, script)
        async with using(ACCESS, network) as client:
            for expected in (1, 2, 3):
                await client.info()
                assert network.connects == expected
                await trio.sleep(5.5)
        nursery.cancel_scope.cancel()


async def test_a_server_that_hangs_up_at_once_is_not_hammered(autojump_clock: trio.testing.MockClock) -> None:
    async def script(peer: Peer) -> None:
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        network = scripted(nursery, script)
        async with using(ACCESS, network) as client:
            with pytest.raises(Unavailable):
                await client.info()
            await trio.sleep(100)
            assert network.connects < 50
        nursery.cancel_scope.cancel()


@either_way
async def test_a_stopped_client_tells_its_callers(read: Read) -> None:
    async with trio.open_nursery() as nursery:
        async with using(ACCESS, scripted(nursery, hang)) as client:
            results: list[str] = []

            async def ask() -> None:
                try:
                    await read(client, bytearray(10))
                except Unavailable as error:
                    results.append(str(error))

            nursery.start_soon(ask)
            await until(lambda: client.statistics().pending == 1)
        await until(lambda: results == ["the client was stopped"])
        with pytest.raises(Unavailable, match="stopped"):
            await client.info()
        nursery.cancel_scope.cancel()


async def test_reads_wait_for_reply_credit_and_urgent_ones_go_first() -> None:
    numbers: list[tuple[int, int]] = []
    first, others = trio.Event(), trio.Event()

    async def script(peer: Peer) -> None:
        while True:
            frame, payload = await peer.next()
            request = wire.decode_request(payload)
            assert isinstance(request, wire.Readv)
            numbers.append((frame.request, wire.read_size(request)))
            nursery.start_soon(answer, peer, frame.request, others if len(numbers) > 1 else first)

    async def answer(peer: Peer, number: int, go: trio.Event) -> None:
        await go.wait()
        await peer.reply(number, wire.ReadReply([0]))

    big = bytearray(wire.READV_SIZE_MAX)
    async with trio.open_nursery() as nursery:
        async with using(ACCESS, scripted(nursery, script)) as client:
            async with trio.open_nursery() as readers:
                for _ in range(3):
                    readers.start_soon(read_one, client, big, Traffic.PREFETCH)
                await until(lambda: len(numbers) == 2)
                readers.start_soon(read_one, client, bytearray(7), Traffic.DEMAND)
                await trio.testing.wait_all_tasks_blocked()
                assert len(numbers) == 2, "the window is full"
                first.set()
                await until(lambda: len(numbers) == 3)
                others.set()
            assert [size for _, size in numbers[2:]] == [7, len(big)]
        nursery.cancel_scope.cancel()


async def test_too_large_requests_are_refused_to_the_caller() -> None:
    client = StorageClient(ACCESS, PairNetwork.__new__(PairNetwork), SystemEntropy())
    spans = [Span(PACK, 0, 0, 1)] * (wire.READV_SPANS_MAX + 1)
    with pytest.raises(Refused, match="spans"):
        await client.readv(spans, [memoryview(bytearray(1))] * len(spans), Traffic.DEMAND)
    with pytest.raises(Refused, match="bytes"):
        await read_one(client, bytearray(wire.READV_SIZE_MAX + 1))
    shares = [SharePut(PACK, 0, [bytes(wire.SHARE_SIZE_MAX)])] * 3
    with pytest.raises(Refused, match="may carry"):
        await client.put(shares, FILE_SYSTEM, STAMP, Traffic.UPLOAD)
    with pytest.raises(ValueError, match="as long as its span"):
        await client.readv([Span(PACK, 0, 0, 2)], [memoryview(bytearray(1))], Traffic.DEMAND)
    assert await client.readv([], [], Traffic.DEMAND) == []
    assert await client.put([], FILE_SYSTEM, STAMP, Traffic.UPLOAD) == []
    assert await client.have([], FILE_SYSTEM, STAMP) == []


@pytest.mark.parametrize("transport", ["unix", "tls"])
async def test_a_wrong_secret_and_a_wrong_pin_are_told_apart(tmp_path: Path, transport: str) -> None:
    address = UnixAddress(str(tmp_path / "run" / "s")) if transport == "unix" else TlsAddress("127.0.0.1", 0)
    async with serving(tmp_path, address=address) as running:
        good = let_in(tmp_path, running)
        wrong_secret = Access(good.server_id, good.address, good.account, b"x" * 32, "full")
        wrong_pin = Access(b"x" * 32, good.address, good.account, good.secret, "full")
        for access, words in (
            (wrong_secret, "does not accept the account's secret"),
            (wrong_pin, "wrong pin"),
            (good.public(), "has no secret"),
        ):
            async with using(access) as client:
                with pytest.raises(Refused, match=words):
                    await client.info()
                assert client.state.startswith("refused: ")
                assert words in client.state
        async with using(good) as client:
            pack = make_pack(length=500_000)
            assert await client.put([pack.put(0)], FILE_SYSTEM, STAMP, Traffic.UPLOAD) == [True]
            buffer = bytearray(len(pack.shares[0]))
            spans = [Span(pack.pack_id, 0, 0, len(buffer))]
            assert await client.readv(spans, [memoryview(buffer)], Traffic.DEMAND) == [len(buffer)]
            assert buffer == pack.shares[0]


async def test_a_server_without_its_key_is_a_wrong_pin() -> None:
    """Somebody who learned the account's secret, but not the server's key."""

    async def handle(stream: ByteStream) -> None:
        peer = Peer(stream)
        _, payload = await peer.next()
        message = hello.read_hello(payload)
        assert message is not None
        _, answer = hello.answer(message, b"s" * 32, IDENTITY.server_id, b"n" * 32, bytes(64), "full")
        await peer.send(Kind.HELLO, 0, answer)
        await peer.receiver.frame()

    async with trio.open_nursery() as nursery:
        async with using(ACCESS, PairNetwork(nursery, handle)) as client:
            with pytest.raises(Refused, match="wrong pin: the server does not hold the key"):
                await client.info()
        nursery.cancel_scope.cancel()


async def test_a_server_silent_in_the_hello_is_unavailable(autojump_clock: trio.testing.MockClock) -> None:
    async def handle(stream: ByteStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        async with using(ACCESS, PairNetwork(nursery, handle), ClientConfig(connect_s=3)) as client:
            with pytest.raises(Unavailable, match="does not complete the hello"):
                await client.info()
            assert trio.current_time() < 4
        nursery.cancel_scope.cancel()


async def test_credit_is_fair() -> None:
    credit = Credit(10)
    await credit.acquire(8, Traffic.UPLOAD)
    order: list[str] = []

    async def want(name: str, amount: int, traffic: Traffic) -> None:
        await credit.acquire(amount, traffic)
        order.append(name)

    async with trio.open_nursery() as nursery:
        for name, amount, traffic in (
            ("large", 9, Traffic.UPLOAD),
            ("small", 2, Traffic.UPLOAD),
            ("urgent", 2, Traffic.DEMAND),
        ):
            nursery.start_soon(want, name, amount, traffic)
            await trio.testing.wait_all_tasks_blocked()
        assert order == ["urgent"], "it fits, and small does not overtake large"
        credit.release(8)
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["urgent"]
        credit.release(2)
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["urgent", "large"]
        credit.release(9)
    assert order == ["urgent", "large", "small"]
    assert credit.free == 8


async def test_credit_is_not_lost_with_those_who_leave() -> None:
    credit = Credit(10)
    await credit.acquire(10, Traffic.DEMAND)
    for _ in range(3):
        with trio.move_on_after(0):
            await credit.acquire(5, Traffic.DEMAND)
    credit.release(10)
    assert credit.free == 10
    credit.close(Unavailable("over"))
    with pytest.raises(Unavailable, match="over"):
        await credit.acquire(1, Traffic.DEMAND)
