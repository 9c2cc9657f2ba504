"""Frames and the link: every byte, limits, order by class, revocation, and peers that both send."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import Refused, StorageError, Unavailable
from storage.ports import Buffer, File
from storage.transport.link import SEND_TURN_SIZE, SMALL_SIZE_MAX, FrameReceiver, FrameSender, Outgoing
from storage.wire.frames import (
    HEADER_SIZE,
    PAYLOAD_SIZE_MAX,
    REQUEST_NUMBER_MAX,
    Frame,
    Kind,
    Traffic,
    decode_frame,
    encode_frame,
)
from tests.storage.servers import stream_pair, until


def test_golden_header() -> None:
    """The worked bytes of SPEC.md."""
    header = encode_frame(65536, Kind.DATA, Traffic.UPLOAD, 7)
    assert header.hex() == "00010000040200000000000000000007"
    assert decode_frame(header) == Frame(65536, Kind.DATA, Traffic.UPLOAD, 7)


@given(
    st.integers(0, PAYLOAD_SIZE_MAX),
    st.sampled_from(Kind),
    st.sampled_from(Traffic),
    st.integers(0, REQUEST_NUMBER_MAX),
)
def test_header_round_trip(length: int, kind: Kind, traffic: Traffic, request: int) -> None:
    assert decode_frame(encode_frame(length, kind, traffic, request)) == (length, kind, traffic, request)


@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE))
def test_any_bytes_are_a_frame_or_refused(header: bytes) -> None:
    try:
        frame = decode_frame(header)
    except Refused:
        return
    assert encode_frame(*frame) == header


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ("00040001040200000000000000000007", "payload"),
        ("00000000000200000000000000000007", "kind"),
        ("00000000070200000000000000000007", "kind"),
        ("00000000040500000000000000000007", "class"),
        ("00000000040200010000000000000007", "reserved"),
        ("00000000040200008000000000000000", "number"),
    ],
)
def test_each_limit_is_refused(header: str, word: str) -> None:
    with pytest.raises(Refused, match=word):
        decode_frame(bytes.fromhex(header))


async def _collect(receiver: FrameReceiver, count: int) -> list[tuple[Frame, bytes]]:
    frames = []
    for _ in range(count):
        frame = await receiver.frame()
        assert frame is not None
        frames.append((frame, await receiver.message(frame.length)))
    return frames


def _outgoing(number: int, traffic: Traffic, size: int) -> Outgoing:
    return Outgoing(number, traffic, Kind.REQUEST, b"?", [bytes([number]) * size], size)


async def test_an_urgent_message_passes_a_long_one_at_the_next_frame() -> None:
    with stream_pair(16384) as (ours, theirs):
        sender, receiver = FrameSender(ours, 5), FrameReceiver(theirs, 5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.run)
            sender.send_nowait(_outgoing(1, Traffic.UPLOAD, 8 * PAYLOAD_SIZE_MAX))
            assert [frame.request for frame, _ in await _collect(receiver, 2)] == [1, 1]
            sender.send_nowait(_outgoing(2, Traffic.DEMAND, 4096))
            numbers = [frame.request for frame, _ in await _collect(receiver, 9)]
            # At most the one frame that was on its way comes before it.
            assert numbers.index(2) <= 1
            assert numbers.count(2) == 2
            nursery.cancel_scope.cancel()


class Narrow:
    """A stream that takes at once what it is told, and notes all in order."""

    def __init__(self) -> None:
        self.takes: list[int] = []
        self.taken = bytearray()
        self.waited = 0

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        data = b"".join(parts)[: self.takes.pop(0)]
        self.taken += data
        return len(data)

    async def send_all(self, parts: Sequence[Buffer]) -> None:
        await trio.lowlevel.checkpoint()
        self.waited += 1
        self.taken += b"".join(parts)

    async def send_file(self, file: File, offset: int, length: int) -> None:
        raise AssertionError

    async def receive_into(self, buffers: Sequence[memoryview]) -> int:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


async def test_a_small_message_leaves_at_once_and_what_was_not_taken_goes_first() -> None:
    stream = Narrow()
    sender = FrameSender(stream, 5)
    ends: list[int] = []

    def message(number: int, traffic: Traffic, body: bytes) -> Outgoing:
        parts = [body] if body else []
        return Outgoing(number, traffic, Kind.REQUEST, b"?", parts, len(body), lambda: ends.append(number))

    def frames(number: int, traffic: Traffic, body: bytes) -> bytes:
        whole = encode_frame(1, Kind.REQUEST, traffic, number) + b"?"
        for start in range(0, len(body), PAYLOAD_SIZE_MAX):
            piece = body[start : start + PAYLOAD_SIZE_MAX]
            whole += encode_frame(len(piece), Kind.DATA, traffic, number) + piece
        return whole

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.run)
        await trio.testing.wait_all_tasks_blocked()
        stream.takes = [1000, 20]
        sender.send_nowait(message(1, Traffic.UPLOAD, b"abc"))
        assert ends == [1]
        refused = message(2, Traffic.UPLOAD, b"defg")
        sender.send_nowait(refused)
        sender.send_nowait(message(3, Traffic.HEAD, b""))
        assert ends == [1]
        assert not sender.withdraw(refused), "it has begun"
        refused.cut(Kind.CANCEL)
        await trio.testing.wait_all_tasks_blocked()
        assert ends == [1, 3, 2]
        stream.takes = [0]
        sender.send_nowait(message(4, Traffic.HEAD, b""))
        await trio.testing.wait_all_tasks_blocked()
        sender.send_nowait(message(5, Traffic.HEAD, bytes(SMALL_SIZE_MAX + 1)))
        await trio.testing.wait_all_tasks_blocked()
        stream.takes = [2 * SMALL_SIZE_MAX]
        sender.send_nowait(message(6, Traffic.HEAD, bytes(SMALL_SIZE_MAX)))
        assert ends == [1, 3, 2, 4, 5, 6]
        nursery.cancel_scope.cancel()
    assert ends == [1, 3, 2, 4, 5, 6]
    assert stream.waited == 6
    expected = frames(1, Traffic.UPLOAD, b"abc") + frames(2, Traffic.UPLOAD, b"defg")
    expected += frames(3, Traffic.HEAD, b"") + encode_frame(0, Kind.CANCEL, Traffic.UPLOAD, 2)
    expected += frames(4, Traffic.HEAD, b"") + frames(5, Traffic.HEAD, bytes(SMALL_SIZE_MAX + 1))
    expected += frames(6, Traffic.HEAD, bytes(SMALL_SIZE_MAX))
    assert stream.taken == expected


class Wide(Narrow):
    """A stream that takes everything at once, and notes how much."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def send_all(self, parts: Sequence[Buffer]) -> None:
        self.sizes.append(sum(map(len, parts)))


async def test_a_short_tail_goes_with_the_frame_before() -> None:
    """Four blocks are a little more than a frame."""
    stream = Wide()
    sender = FrameSender(stream, 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.run)
        sender.send_nowait(_outgoing(1, Traffic.DEMAND, PAYLOAD_SIZE_MAX + 64))
        sender.send_nowait(_outgoing(2, Traffic.DEMAND, PAYLOAD_SIZE_MAX + 8192))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    first = HEADER_SIZE + 1 + HEADER_SIZE + PAYLOAD_SIZE_MAX
    assert stream.sizes == [first + HEADER_SIZE + 64, first, HEADER_SIZE + 8192]


async def test_others_get_their_turn_while_a_stream_takes_everything() -> None:
    stream = Wide()
    sender = FrameSender(stream, 5)
    sent_before_turn: list[int] = []

    async def other() -> None:
        while True:
            await trio.lowlevel.checkpoint()
            sent_before_turn.append(sum(stream.sizes))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.run)
        nursery.start_soon(other)
        sender.send_nowait(_outgoing(1, Traffic.DEMAND, 64 * PAYLOAD_SIZE_MAX))
        while len(stream.sizes) < 64:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    steps = [after - before for before, after in pairwise(sent_before_turn)]
    assert 0 < max(steps) < 3 * SEND_TURN_SIZE  # one turn before, one after


async def test_urgent_messages_do_not_starve_others_for_ever() -> None:
    with stream_pair() as (ours, theirs):
        sender, receiver = FrameSender(ours, 5), FrameReceiver(theirs, 5)
        for number in range(2, 100):
            sender.send_nowait(_outgoing(number, Traffic.HEAD, 0))
        sender.send_nowait(_outgoing(1, Traffic.REPAIR, 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.run)
            numbers = [frame.request for frame, _ in await _collect(receiver, 99)]
            nursery.cancel_scope.cancel()
        assert numbers.index(1) < 20
        assert sorted(numbers) == list(range(1, 100))


async def test_bodies_of_many_parts_arrive_whole_and_in_order() -> None:
    with stream_pair() as (ours, theirs):
        sender, receiver = FrameSender(ours, 5), FrameReceiver(theirs, 5)
        parts = [bytes([i % 256]) * (i % 700) for i in range(3000)]
        body = b"".join(parts)
        ends: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.run)
            sender.send_nowait(
                Outgoing(1, Traffic.UPLOAD, Kind.REQUEST, b"?", parts, len(body), lambda: ends.append(1))
            )
            got = bytearray()
            assert (await _collect(receiver, 1))[0][1] == b"?"
            while len(got) < len(body):
                frame, payload = (await _collect(receiver, 1))[0]
                assert frame.kind is Kind.DATA
                got += payload
            await until(lambda: ends == [1])
            nursery.cancel_scope.cancel()
        assert got == body


async def test_a_payload_lands_in_its_views_and_the_next_frame_is_not_lost() -> None:
    with stream_pair() as (ours, theirs):
        receiver = FrameReceiver(theirs, 5)
        body = bytes(range(256)) * 40
        await ours.send_all([encode_frame(len(body), Kind.DATA, Traffic.DEMAND, 1), body])
        await ours.send_all([encode_frame(3, Kind.REPLY, Traffic.DEMAND, 2), b"abc"])
        frame = await receiver.frame()
        assert frame is not None
        buffer = memoryview(bytearray(len(body)))
        await receiver.payload([buffer[:1], buffer[1:5000], buffer[5000:]], frame.length)
        assert bytes(buffer) == body
        assert await _collect(receiver, 1) == [(Frame(3, Kind.REPLY, Traffic.DEMAND, 2), b"abc")]
        ours.close()
        assert await receiver.frame() is None


async def test_revoked_views_get_no_byte_more() -> None:
    with stream_pair() as (ours, theirs):
        receiver = FrameReceiver(theirs, 5)
        buffer = bytearray(10_000)
        done = trio.Event()

        async def receive() -> None:
            assert await receiver.frame() is not None
            await receiver.payload([memoryview(buffer)[:4000], memoryview(buffer)[4000:]], 10_000)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await ours.send_all([encode_frame(10_000, Kind.DATA, Traffic.DEMAND, 1), b"x" * 5000])
            await until(lambda: buffer[4999] == ord("x"))
            await trio.testing.wait_all_tasks_blocked()
            # The receive that is waiting in the system holds these very views.
            receiver.revoke()
            buffer[:] = b"." * 10_000
            await ours.send_all([b"y" * 5000, encode_frame(1, Kind.REPLY, Traffic.DEMAND, 2), b"z"])
            await done.wait()
            assert buffer == b"." * 10_000
            assert (await _collect(receiver, 1))[0][1] == b"z"


@pytest.mark.parametrize("sent", [b"\0" * 5, encode_frame(9, Kind.REPLY, Traffic.HEAD, 1) + b"1234"])
async def test_an_end_inside_a_frame_is_an_error(sent: bytes) -> None:
    with stream_pair() as (ours, theirs):
        await ours.send_all([sent])
        ours.close()
        with pytest.raises(Unavailable, match="middle of a frame"):
            await _collect(FrameReceiver(theirs, 5), 1)


async def test_a_peer_that_takes_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    with stream_pair(16384) as (ours, _theirs):
        sender = FrameSender(ours, 60)
        ends: list[int] = []
        size = 4 * PAYLOAD_SIZE_MAX
        sender.send_nowait(
            Outgoing(1, Traffic.UPLOAD, Kind.REQUEST, b"?", [bytes(size)], size, lambda: ends.append(1))
        )
        with pytest.raises(Unavailable, match="takes no more"):
            await sender.run()
        assert ends == [1]
        assert trio.current_time() >= 60


async def test_two_peers_that_send_with_full_buffers_do_not_stop() -> None:
    """The lesson: each side's receiver never waits for its own sender."""
    with stream_pair(8192) as streams:
        size = 6 * 1024 * 1024

        async def receive(receiver: FrameReceiver) -> None:
            total = 0
            while total < size:
                frame = await receiver.frame()
                assert frame is not None
                await receiver.payload([receiver.scratch[: frame.length]], frame.length)
                total += frame.length if frame.kind is Kind.DATA else 0

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                senders = [FrameSender(stream, 5) for stream in streams]
                async with trio.open_nursery() as receivers:
                    for number, (stream, sender) in enumerate(zip(streams, senders, strict=True), 1):
                        nursery.start_soon(sender.run)
                        sender.send_nowait(_outgoing(number, Traffic.UPLOAD, size))
                        receivers.start_soon(receive, FrameReceiver(stream, 5))
                nursery.cancel_scope.cancel()


@given(data=st.binary(max_size=200))
async def test_any_bytes_end_a_receiver_cleanly(data: bytes) -> None:
    with stream_pair() as (ours, theirs):
        await ours.send_all([data])
        ours.close()
        receiver = FrameReceiver(theirs, 5)
        try:
            while (frame := await receiver.frame()) is not None:
                assert len(await receiver.message(frame.length)) == frame.length
        except StorageError:
            pass
        theirs.close()
