"""One server on a real socket: every request, rights, hostile peers, memory, and what a restart keeps."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from storage.client import Access, SharePut, Span, StorageClient, Traffic
from storage.client.opening import open_connection
from storage.client.records import ClientConfig, ClientStatistics
from storage.errors import Conflict, Corrupt, Refused, Unavailable
from storage.format.head import drop_signed_bytes
from storage.headlog import HeadClaim, HeadRecord, HeadStanding, trim_signed_bytes
from storage.headlog import logs as headlogs
from storage.host import SystemEntropy
from storage.host.threads import ThreadOffload
from storage.pages import PagePool
from storage.ports import Address, Brief, ByteStream
from storage.server import RunningServer, ServerConfig, run_server
from storage.server import composition as server_composition
from storage.transport.link import FrameReceiver
from storage.transport.network import SystemNetwork
from storage.wire import hello
from storage.wire import messages as wire
from storage.wire.frames import Kind, encode_frame
from storage.wire.frames import Traffic as Class
from tests.storage.servers import (
    FILE_SYSTEM,
    STAMP,
    Pack,
    let_in,
    make_pack,
    serving,
    system_machine,
    until,
    using,
)
from tests.storage.test_headlog import Writer


@asynccontextmanager
async def server_and_client(
    directory: Path, config: ServerConfig | None = None
) -> AsyncIterator[tuple[RunningServer, StorageClient]]:
    async with serving(directory, config) as running, using(let_in(directory, running)) as client:
        yield running, client


async def put(client: StorageClient, pack: Pack, *numbers: int) -> list[bool]:
    shares = [pack.put(number) for number in numbers]
    return await client.put(shares, FILE_SYSTEM, STAMP, Traffic.UPLOAD)


async def read(client: StorageClient, *spans: Span) -> list[bytes]:
    buffers = [bytearray(span.length) for span in spans]
    lengths = await client.readv(spans, [memoryview(buffer) for buffer in buffers], Traffic.DEMAND)
    return [bytes(buffer[:length]) for buffer, length in zip(buffers, lengths, strict=True)]


async def test_what_is_put_is_read(tmp_path: Path) -> None:
    small, large = make_pack(length=1000), make_pack(length=3_000_000, seed=9)
    async with server_and_client(tmp_path) as (running, client):
        assert await put(client, small, 0, 2) == [True, True]
        assert await put(client, large, 0, 2) == [True, True]
        assert await put(client, large, 0, 1) == [False, True]
        for pack, number in ((small, 0), (large, 0), (large, 1), (large, 2)):
            share = pack.shares[number]
            assert await read(client, Span(pack.pack_id, number, 0, len(share))) == [share]
        assert running.statistics.put_memory_bytes == 0


async def test_a_vector_keeps_its_order_and_is_short_at_the_end(tmp_path: Path) -> None:
    pack, other = make_pack(length=400_000), make_pack(length=500, seed=3)
    first, second = pack.shares[0], pack.shares[2]
    async with server_and_client(tmp_path) as (_, client):
        await put(client, pack, 0, 2)
        spans = [
            Span(pack.pack_id, 2, 70_000, 1000),
            Span(pack.pack_id, 0, 500, 10),
            Span(pack.pack_id, 0, 510, 100_000),
            Span(other.pack_id, 0, 0, 100),
            Span(pack.pack_id, 2, len(second) - 5, 1000),
            Span(pack.pack_id, 2, len(second) + 5, 1000),
            Span(pack.pack_id, 1, 0, 7),
            Span(pack.pack_id, 0, 0, 3),
        ]
        assert await read(client, *spans) == [
            second[70_000:71_000],
            first[500:510],
            first[510:100_510],
            b"",
            second[-5:],
            b"",
            b"",
            first[:3],
        ]
        assert client.statistics().requests == {"put": 1, "readv": 1}


async def test_many_readers_and_writers_at_once(tmp_path: Path) -> None:
    packs = [make_pack(length=150_000 + 1000 * i, seed=i) for i in range(12)]
    async with server_and_client(tmp_path) as (running, client):

        async def store_and_read(pack: Pack) -> None:
            assert all(await put(client, pack, 0, 1, 2))
            for number, share in enumerate(pack.shares):
                assert await read(client, Span(pack.pack_id, number, 0, len(share))) == [share]

        async with trio.open_nursery() as nursery:
            for pack in packs:
                nursery.start_soon(store_and_read, pack)
        assert client.statistics().pending == 0
        await until(lambda: running.statistics.put_memory_bytes == 0)


async def test_a_share_that_does_not_fit_its_id_is_refused_with_its_vector(tmp_path: Path) -> None:
    good, bad = make_pack(length=300_000), make_pack(length=300_000, seed=1)
    for flip in (100, 100_000, len(bad.shares[0]) - 1):
        spoilt = bytearray(bad.shares[0])
        spoilt[flip] ^= 1
        async with server_and_client(tmp_path) as (_, client):
            shares = [good.put(0), SharePut(bad.pack_id, 0, [spoilt])]
            with pytest.raises(Corrupt):
                await client.put(shares, FILE_SYSTEM, STAMP, Traffic.UPLOAD)
            keys = [(good.pack_id, 0), (bad.pack_id, 0)]
            assert await client.have(keys, FILE_SYSTEM, STAMP) == [False, False]
            # The connection goes on.
            assert client.statistics().connects == 1


async def test_have_leases_and_release_takes_away(tmp_path: Path) -> None:
    pack = make_pack()
    key = (pack.pack_id, 0)
    async with server_and_client(tmp_path) as (_, client):
        await put(client, pack, 0)
        assert await client.have([key, (pack.pack_id, 1)], FILE_SYSTEM, (1, 5)) == [True, False]
        assert await client.release([key], FILE_SYSTEM, (1, 3)) == [False]
        assert (await client.info()).shares == 1
        assert await client.release([key], FILE_SYSTEM, (1, 6)) == [True]
        info = await client.info()
        assert (info.shares, info.share_bytes, info.sync_policy) == (0, 0, "group")
        assert 0 < info.space.free <= info.space.total


async def test_a_share_removed_while_it_is_sent_is_sent_whole(tmp_path: Path) -> None:
    pack = make_pack(k=1, n=1, length=6_000_000)
    share = pack.shares[0]
    async with server_and_client(tmp_path) as (_, client):
        await put(client, pack, 0)
        got: list[bytes] = []

        async def read_all() -> None:
            got.extend(await read(client, Span(pack.pack_id, 0, 0, len(share))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all)
            assert await client.release([(pack.pack_id, 0)], FILE_SYSTEM, (9, 9), Traffic.HEAD) == [True]
        assert got in ([share], [b""])
        assert await read(client, Span(pack.pack_id, 0, 0, 1)) == [b""]


async def test_head_log_over_the_wire(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
    mount = b"mount 0000000001"

    def claim(mount: bytes) -> HeadClaim:
        unsigned = HeadClaim(key.public_key().public_bytes_raw(), bytes(32), 1, mount, bytes(64))
        return replace(unsigned, signature=key.sign(unsigned.signed_bytes()))

    log = claim(mount).log

    def record(sequence: int, previous: bytes, size: int) -> HeadRecord:
        unsigned = HeadRecord(1, sequence, previous, bytes(size), bytes(64), mount)
        signature = key.sign(unsigned.signed_bytes(log))
        return HeadRecord(1, sequence, previous, unsigned.payload, signature, mount)

    async with server_and_client(tmp_path) as (_, client):
        assert await client.head_look(log) is None
        assert await client.head_claim(claim(mount)) == (1, mount, None)
        records = [record(1, bytes(32), 65536)]
        for sequence in range(2, 7):
            records.append(record(sequence, records[-1].record_hash(), 65536))
        for each in records:
            await client.head_append(log, [each])
        await client.head_append(log, [records[-1]])
        assert await client.head_read(log, None, 10**7) == records
        assert await client.head_read(log, (1, 4), 10**7) == records[4:]
        assert len(await client.head_read(log, None, 65536)) == 1
        assert (await client.head_claim(claim(mount)))[2] == records[-1]
        with pytest.raises(Conflict):
            await client.head_claim(claim(b"another mount 01"))
        forged = HeadRecord(1, 7, records[-1].record_hash(), b"x", bytes(64), mount)
        with pytest.raises(Refused):
            await client.head_append(log, [forged])
        await client.head_trim(log, (1, 5), key.sign(trim_signed_bytes(log, (1, 5))))
        assert await client.head_read(log, None, 10**7) == records[4:]
        assert await client.head_look(log) == HeadStanding(1, mount, None, records[-1])
        with pytest.raises(Conflict):
            await client.head_drop(log, 2, key.sign(drop_signed_bytes(log, 2)))
        await client.head_drop(log, 1, key.sign(drop_signed_bytes(log, 1)))
        assert await client.head_look(log) is None


async def test_a_successor_claims_over_the_wire(tmp_path: Path) -> None:
    old, new = Writer(), Writer(generation=1)
    async with server_and_client(tmp_path) as (_, client):
        await client.head_claim(old.claim(1))
        await client.head_append(old.log, [old.record(1, 1)])
        assert (await client.head_claim(new.claim(1)))[2] == old.record(1, 1)
        with pytest.raises(Conflict, match="generation 1"):
            await client.head_claim(old.claim(2))
        standing = await client.head_look(old.log)
        assert standing is not None
        assert standing.succession == new.succession


def forged(record: HeadRecord) -> HeadRecord:
    return replace(record, signature=bytes(64))


def replaced_signature(cut: tuple[bytes, tuple[int, int], bytes]) -> tuple[bytes, tuple[int, int], bytes]:
    return *cut[:2], bytes(64)


async def test_records_of_whoever_has_shown_the_head_key_are_not_checked_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[bytes] = []
    fits = headlogs.fits

    def noted(key: bytes, signature: bytes, message: bytes) -> bool:
        checked.append(signature)
        return fits(key, signature, message)

    monkeypatch.setattr(headlogs, "fits", noted)
    writer, successor = Writer(), Writer(generation=1)
    log = writer.log
    async with serving(tmp_path) as running:
        access = let_in(tmp_path, running)
        async with using(access) as client, using(access) as other:
            client.use_head_key(writer.verifying_key, writer.sign)
            await client.head_claim(writer.claim(1))
            checked.clear()
            await client.head_append(log, [writer.record(1, 1)])
            await client.head_append(log, [writer.record(1, 2)])
            assert checked == []
            assert running.statistics.requests["head_key"] == 1
            # What one connection has shown counts for no other one.
            with pytest.raises(Refused):
                await other.head_append(log, [forged(writer.record(1, 3))])
            # Nor does it count once the log belongs to another key.
            await other.head_claim(successor.claim(1))
            with pytest.raises(Refused):
                await client.head_append(log, [forged(successor.record(1, 1))])
            with pytest.raises(Refused):
                await client.head_trim(*replaced_signature(successor.cut(1, 1)))
        # A new connection shows it anew.
        async with using(access) as client:
            client.use_head_key(successor.verifying_key, successor.sign)
            await client.head_append(log, [successor.record(1, 1)])
            checked.clear()
            await client.head_append(log, [successor.record(1, 2)])
            assert checked == []


async def test_a_head_key_that_was_shown_elsewhere_shows_nothing(tmp_path: Path) -> None:
    """A head server that is shown a key cannot pass for its holder before another server."""
    writer = Writer()
    seen: list[bytes] = []

    def noted(message: bytes) -> bytes:
        seen.append(writer.sign(message))
        return seen[-1]

    async with serving(tmp_path) as running:
        access = let_in(tmp_path, running)
        async with using(access) as client:
            client.use_head_key(writer.verifying_key, noted)
            await client.head_claim(writer.claim(1))
        async with using(access) as thief:
            thief.use_head_key(writer.verifying_key, lambda _: seen[0])
            with pytest.raises(Refused, match="signature"):
                await thief.head_append(writer.log, [forged(writer.record(1, 1))])
            assert thief.statistics().failures == 2, "the key was refused, and so was the record"


async def test_a_connection_may_show_so_many_head_keys(tmp_path: Path) -> None:
    async with server_and_client(tmp_path) as (running, client):
        await client.info()
        for seed in range(1, wire.HEAD_KEYS_MAX + 2):
            writer = Writer(seed)
            for _ in range(2):
                client.use_head_key(writer.verifying_key, writer.sign)
            await client.info()
        assert client.statistics().failures == 2
        assert running.statistics.requests["head_key"] == 2 * (wire.HEAD_KEYS_MAX + 1)


async def test_what_an_account_leases_is_listed_in_order(tmp_path: Path) -> None:
    packs = sorted((make_pack(seed=seed) for seed in range(3)), key=lambda pack: pack.pack_id)
    keys = [(pack.pack_id, number) for pack in packs for number in range(2)]
    async with serving(tmp_path) as running:
        async with using(let_in(tmp_path, running)) as client:
            for pack in packs:
                await put(client, pack, 0, 1)
            assert await client.leased(FILE_SYSTEM, None, 100) == keys
            assert await client.leased(FILE_SYSTEM, None, 4) == keys[:4]
            assert await client.leased(FILE_SYSTEM, keys[3], 4) == keys[4:]
            assert await client.leased(b"another one 0001", None, 100) == []
            await client.release(keys[:3], FILE_SYSTEM, (9, 9))
            assert await client.leased(FILE_SYSTEM, None, 100) == keys[3:]
        async with using(let_in(tmp_path, running)) as stranger:
            assert await stranger.leased(FILE_SYSTEM, None, 100) == []


async def test_a_reading_account_may_only_read(tmp_path: Path) -> None:
    pack = make_pack(length=200_000)
    async with serving(tmp_path) as running:
        async with using(let_in(tmp_path, running)) as writer:
            await put(writer, pack, 0)
        async with using(let_in(tmp_path, running, "read")) as reader:
            with pytest.raises(Refused, match="may not do that"):
                await put(reader, pack, 1)
            for ask in (
                reader.release([(pack.pack_id, 0)], FILE_SYSTEM, (9, 9)),
                reader.head_claim(Writer().claim(1)),
                reader.head_drop(bytes(32), 1, bytes(64)),
                reader.leased(FILE_SYSTEM, None, 10),
                reader.head_trim(bytes(32), (1, 1), bytes(64)),
            ):
                with pytest.raises(Refused, match="may not do that"):
                    await ask
            assert await read(reader, Span(pack.pack_id, 0, 0, 9)) == [pack.shares[0][:9]]
            # It sees what is there, but its have leases nothing.
            assert await reader.have([(pack.pack_id, 0)], FILE_SYSTEM, (7, 7)) == [True]
            assert (await reader.info()).shares == 1
            assert reader.statistics().connects == 1
        async with using(let_in(tmp_path, running)) as writer:
            await writer.release([(pack.pack_id, 0)], FILE_SYSTEM, (2, 2))
            assert (await writer.info()).shares == 1, "another account's lease holds it"
        await until(lambda: running.statistics.put_memory_bytes == 0)


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    small, large = make_pack(length=1000), make_pack(length=3_000_000)
    async with server_and_client(tmp_path) as (running, client):
        await put(client, small, 0)
        await put(client, large, 0)
        first = running.access
    async with serving(tmp_path) as running:
        assert running.access == first
        async with using(let_in(tmp_path, running)) as client:
            for pack in (small, large):
                share = pack.shares[0]
                assert await read(client, Span(pack.pack_id, 0, 0, len(share))) == [share]


async def test_puts_beyond_the_memory_are_told_to_come_back(tmp_path: Path) -> None:
    pack = make_pack(length=400_000)
    async with server_and_client(tmp_path, ServerConfig(put_memory_bytes=100_000)) as (running, client):
        with pytest.raises(Unavailable, match="busy"):
            await put(client, pack, 0)
        # The body that was on its way is skipped, and the connection goes on.
        small = make_pack(length=1000)
        assert await put(client, small, 0) == [True]
        assert client.statistics().connects == 1
        assert running.statistics.put_memory_bytes == 0


class ColdCache:
    """A page cache that holds what was loaded, and nothing else."""

    def __init__(self) -> None:
        self.loaded: list[tuple[int, int]] = []

    def is_resident(self, file: object, offset: int, length: int) -> bool:
        return any(start <= offset and offset + length <= start + size for start, size in self.loaded)

    def load(self, file: object, offset: int, length: int) -> None:
        self.loaded.append((offset, length))


@pytest.mark.parametrize("is_quick", [True, False])
async def test_cold_ranges_are_loaded_before_they_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_quick: bool
) -> None:
    """Small ones at once; large ones the direct way at first, in any order, and then to stay if the disk is
    slow."""
    pack = make_pack(length=1_500_000)
    cache = ColdCache()
    monkeypatch.setattr(server_composition, "SystemPageCache", lambda: cache)
    monkeypatch.setattr(ThreadOffload, "is_brief", lambda _, kind: is_quick or kind is not Brief.LARGE_READ)
    async with server_and_client(tmp_path) as (running, client):
        await put(client, pack, 0)
        share = pack.shares[0]
        assert len(share) > 700_000
        for start, length in [(300_002, 300_000), (1, 300_001), (len(share) - 5, 5)]:
            span = Span(pack.pack_id, 0, start, length)
            assert await read(client, span) == [share[start : start + length]]
        assert cache.loaded == []
        for _ in range(2):
            assert await read(client, Span(pack.pack_id, 0, 0, 400_000)) == [share[:400_000]]
        assert cache.loaded == ([] if is_quick else [(0, 400_000)])
        # The small one, if its page was dropped; what was read the direct way is cold the next time, too.
        assert 3 <= running.statistics.cold_reads - is_quick <= 4


@pytest.mark.parametrize("is_quick", [True, False])
async def test_a_quarter_mib_is_read_in_the_loop_while_the_disk_is_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_quick: bool
) -> None:
    pack = make_pack(length=1_500_000)
    cache = ColdCache()
    threads: list[object] = []
    run = ThreadOffload.run

    async def noted(offload: ThreadOffload, function: Callable[..., object], *args: object) -> object:
        threads.append(function)
        return await run(offload, function, *args)

    monkeypatch.setattr(server_composition, "SystemPageCache", lambda: cache)
    # Nothing is known of larger reads, as long as there are none.
    monkeypatch.setattr(ThreadOffload, "is_brief", lambda _, kind: is_quick or kind is Brief.LARGE_READ)
    takers: set[threading.Thread] = set()
    take = PagePool.take

    def noted_take(pool: PagePool, size: int) -> memoryview:
        takers.add(threading.current_thread())
        return take(pool, size)

    monkeypatch.setattr(PagePool, "take", noted_take)
    async with server_and_client(tmp_path) as (running, client):
        await put(client, pack, 0)
        share = pack.shares[0]
        monkeypatch.setattr(ThreadOffload, "run", noted)
        # Too short for the direct way; the direct way; and what is known comes to stay if the disk is slow.
        for start, length, copied in [
            (7, 200_000, 200_000),
            (300_002, 300_000, 0),
            (300_002, 300_000, 0 if is_quick else 300_000),
        ]:
            before = running.statistics.bytes_copied
            span = Span(pack.pack_id, 0, start, length)
            assert await read(client, span) == [share[start : start + length]]
            assert running.statistics.bytes_copied - before == copied
        assert cache.loaded == []
        assert len(threads) == (0 if is_quick else 3)
        assert takers == {threading.main_thread()}, "the pool is the loop's alone"


# Peers that do not keep to the protocol


class Raw:
    """A peer below the client: it says hello, and then what the test says."""

    def __init__(self, stream: ByteStream, receiver: FrameReceiver) -> None:
        self.stream = stream
        self.receiver = receiver

    async def send(self, kind: int, number: int, payload: bytes = b"", length: int | None = None) -> None:
        size = len(payload) if length is None else length
        header = size.to_bytes(4, "big") + bytes([kind, 1, 0, 0]) + number.to_bytes(8, "big")
        await self.stream.send_all([header, payload])

    async def answer(self) -> tuple[Kind, bytes] | None:
        """The next frame; None where the server closed."""
        try:
            frame = await self.receiver.frame()
            return None if frame is None else (frame.kind, await self.receiver.message(frame.length))
        except Unavailable:
            return None


@asynccontextmanager
async def raw(access: Access, *, proves: bool = True) -> AsyncIterator[Raw]:
    """`proves`: send the last message of the hello, too."""
    stream = await SystemNetwork().connect(access.address, access.server_id)
    try:
        receiver = FrameReceiver(stream, 5)
        assert access.secret is not None
        opening, payload = hello.begin(access.account, access.secret, access.server_id, bytes(32))
        await stream.send_all([encode_frame(len(payload), Kind.HELLO, Class.HEAD, 0), payload])
        frame = await receiver.frame()
        assert frame is not None
        reply = hello.read_answer(opening, await receiver.message(frame.length))
        payload = hello.finish(opening, reply)
        if proves:
            await stream.send_all([encode_frame(len(payload), Kind.HELLO, Class.HEAD, 0), payload])
        yield Raw(stream, receiver)
    finally:
        stream.close()


INFO = wire.encode_request(wire.Info())
PUT = wire.encode_request(wire.Put(FILE_SYSTEM, 1, 1, [wire.PutShare(bytes(32), 0, 1000)]))
BIG_PUT = wire.encode_request(wire.Put(FILE_SYSTEM, 1, 1, [wire.PutShare(bytes(32), 0, 12_000_000)]))
BIG_READ = wire.encode_request(wire.Readv([wire.ShareRead(bytes(32), 0, [0, wire.READV_SIZE_MAX])]))


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([(99, 1, b"")], id="unknown kind"),
        pytest.param([(2, 1, b"", 10**9)], id="oversized frame"),
        pytest.param([(2, 1, b"rubbish")], id="malformed request"),
        pytest.param([(2, 5, INFO), (2, 5, INFO)], id="number used twice"),
        pytest.param([(3, 1, INFO)], id="a reply from a client"),
        pytest.param([(1, 1, INFO)], id="hello again"),
        pytest.param([(4, 1, b"x")], id="a body of nothing"),
        pytest.param([(2, 1, INFO), (4, 1, b"x")], id="a body where none belongs"),
        pytest.param([(2, 1, PUT), (4, 1, b"x" * 1001)], id="a body too long"),
        pytest.param([(2, 1, PUT), (4, 1, b"")], id="an empty piece of body"),
        pytest.param([(5, 9, b"")], id="cancels what never was"),
        pytest.param([(2, 1, INFO), (5, 1, b"x")], id="a cancel with payload"),
        pytest.param([(2, i, BIG_PUT) for i in (1, 2, 3)], id="more bodies than the window"),
        pytest.param([(2, i, PUT) for i in range(1, 600)], id="more requests than the window"),
    ],
)
async def test_whoever_breaks_the_protocol_is_disconnected(tmp_path: Path, frames: list[tuple]) -> None:  # type: ignore[type-arg]
    async with serving(tmp_path) as running:
        access = let_in(tmp_path, running)
        async with raw(access) as peer:
            with trio.fail_after(5):
                for frame in frames:
                    try:
                        await peer.send(*frame)
                    except Unavailable:
                        break
                answers = []
                while (answer := await peer.answer()) is not None:
                    answers.append(answer[0])
            assert set(answers) <= {Kind.REPLY}
        await until(lambda: running.statistics.connections == 0)
        assert running.statistics.put_memory_bytes == 0
        async with using(access) as client:
            assert (await client.info()).shares == 0


async def test_a_body_that_stops_coming_is_not_waited_for(tmp_path: Path) -> None:
    config = ServerConfig(stall_s=0.05)
    async with serving(tmp_path, config) as running, raw(let_in(tmp_path, running)) as peer:
        await peer.send(2, 1, PUT)
        await peer.send(4, 1, b"x" * 999)
        with trio.fail_after(5):
            assert await peer.answer() is None
        await until(lambda: running.statistics.put_memory_bytes == 0)


async def test_a_cancelled_put_gives_its_memory_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, raw(let_in(tmp_path, running)) as peer:
        await peer.send(2, 1, PUT)
        await peer.send(4, 1, b"x" * 500)
        await until(lambda: running.statistics.put_memory_bytes == 1000)
        await peer.send(5, 1)
        assert await peer.answer() == (Kind.FAIL, wire.encode_failure(wire.CANCELLED))
        assert running.statistics.put_memory_bytes == 0
        await peer.send(5, 1)
        await peer.send(2, 2, INFO)
        answer = await peer.answer()
        assert answer is not None
        assert answer[0] is Kind.REPLY


# Strangers


async def _first_answer(address: Address, server_id: bytes, payload: bytes) -> bytes:
    """What a stranger gets to see."""
    stream = await SystemNetwork().connect(address, server_id)
    try:
        # A server that turns strangers away may have closed before anything was sent.
        await stream.send_all([payload])
        buffer = memoryview(bytearray(1000))
        return bytes(buffer[: await stream.receive_into([buffer])])
    except Unavailable:
        return b""
    finally:
        stream.close()


def _opening(access: Access) -> bytes:
    assert access.secret is not None
    payload = hello.begin(access.account, access.secret, access.server_id, bytes(32))[1]
    return encode_frame(len(payload), Kind.HELLO, Class.HEAD, 0) + payload


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(lambda access: b"GET / HTTP/1.0\r\n\r\n", id="http"),
        pytest.param(lambda access: encode_frame(0, Kind.HELLO, Class.HEAD, 0), id="empty hello"),
        pytest.param(lambda access: encode_frame(200_000, Kind.HELLO, Class.HEAD, 0), id="huge hello"),
        pytest.param(lambda access: encode_frame(2, Kind.REQUEST, Class.HEAD, 1) + INFO, id="no hello"),
        pytest.param(
            lambda access: _opening(
                Access(access.server_id, access.address, access.account, b"x" * 32, "full")
            ),
            id="wrong secret",
        ),
        pytest.param(
            lambda access: _opening(
                Access(access.server_id, access.address, b"x" * 16, access.secret, "full")
            ),
            id="unknown account",
        ),
    ],
)
async def test_a_stranger_learns_nothing(tmp_path: Path, message: Callable[[Access], bytes]) -> None:
    async with serving(tmp_path) as running:
        access = let_in(tmp_path, running)
        with trio.fail_after(5):
            assert await _first_answer(access.address, access.server_id, message(access)) == b""
        await until(lambda: running.statistics.turned_away == 1)
        assert running.statistics.connections == 0


async def test_a_repeated_first_message_does_not_get_in(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        access = let_in(tmp_path, running)
        stream = await SystemNetwork().connect(access.address, access.server_id)
        receiver = FrameReceiver(stream, 5)
        await stream.send_all([_opening(access)])
        frame = await receiver.frame()
        assert frame is not None
        await receiver.message(frame.length)
        proof = msgspec.msgpack.encode([bytes(32)])
        await stream.send_all([encode_frame(len(proof), Kind.HELLO, Class.HEAD, 0), proof])
        assert await receiver.frame() is None
        stream.close()
        await until(lambda: running.statistics.turned_away == 1)


async def test_before_the_end_of_the_hello_nothing_is_changed(tmp_path: Path) -> None:
    async with serving(tmp_path, ServerConfig(hello_s=0.2)) as running:
        access = let_in(tmp_path, running)
        async with raw(access, proves=False) as peer:
            await peer.send(2, 1, INFO)
            answer = await peer.answer()
            assert answer is not None
            assert answer[0] is Kind.REPLY
            assert (running.statistics.strangers, running.statistics.connections) == (1, 0)
            await peer.send(2, 2, PUT)
            assert await peer.answer() is None
        await until(lambda: running.statistics.turned_away == 1)
        async with raw(access, proves=False) as peer:
            await peer.send(2, 1, INFO)
            assert await peer.answer() is not None
            assert await peer.answer() is None  # too slow
        await until(lambda: running.statistics.turned_away == 2)
        assert running.statistics.strangers == 0
        async with raw(access) as peer:
            await peer.send(2, 1, PUT)
            await peer.send(4, 1, bytes(1000))
            assert await peer.answer() is not None
            await until(lambda: running.statistics.connections == 1)
        await until(lambda: running.statistics.connections == 0)
        assert running.statistics.turned_away == 2


async def test_silent_strangers_are_few_and_not_for_long(tmp_path: Path) -> None:
    config = ServerConfig(strangers_max=2, hello_s=0.1)
    async with serving(tmp_path, config) as running:
        address = running.access.address
        streams = [await SystemNetwork().connect(address, running.access.server_id) for _ in range(2)]
        await until(lambda: running.statistics.strangers == 2)
        assert await _first_answer(address, running.access.server_id, b"") == b""
        with trio.fail_after(5):
            for stream in streams:
                assert await stream.receive_into([memoryview(bytearray(1))]) == 0
                stream.close()
        await until(lambda: running.statistics.turned_away == 3)


async def test_a_removed_account_cannot_connect_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        access = let_in(tmp_path, running)
        (tmp_path / "server" / "accounts" / access.account.hex()).unlink()
        with pytest.raises(Refused, match="does not accept the account's secret"):
            async with open_connection(
                access, SystemNetwork(), SystemEntropy(), ClientConfig(), ClientStatistics()
            ) as connection:
                await connection.run()


async def test_directories_and_sockets_of_others_are_refused(tmp_path: Path) -> None:
    async def refuse(directory: Path, address: Address) -> None:
        with trio.fail_after(5):
            await run_server(system_machine(), str(directory), address)

    async with serving(tmp_path) as running:
        address = running.access.address
        with pytest.raises(Conflict, match="another server listens"):
            await refuse(tmp_path / "other", address)
    key = tmp_path / "server" / "server.key"
    key.unlink()
    with pytest.raises(Refused, match=r"no server\.key"):
        await refuse(tmp_path / "server", address)
    assert not key.exists()
    key.write_bytes(b"z" * 32)
    with pytest.raises(Refused, match="another server"):
        await refuse(tmp_path / "server", address)
    key.write_bytes(b"z" * 31)
    with pytest.raises(Refused, match="not a server's key"):
        await refuse(tmp_path / "server", address)
