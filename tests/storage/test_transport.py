"""The real streams: Unix sockets and TLS, who may connect, and what becomes of strangers."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from storage.errors import Conflict, Refused, Unavailable
from storage.host import OsDisk
from storage.ports import Address, ByteStream, TlsAddress, UnixAddress
from storage.transport import residency, unix
from storage.transport.network import SystemNetwork
from storage.transport.residency import SystemPageCache
from tests.storage.servers import open_pair

SEED = b"k" * 32
SERVER_ID = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()


async def echo(stream: ByteStream) -> None:
    buffer = memoryview(bytearray(65536))
    while count := await stream.receive_into([buffer]):
        await stream.send_all([buffer[:count]])


@asynccontextmanager
async def listening(
    address: Address, handler: Callable[[ByteStream], object] = echo
) -> AsyncIterator[Address]:
    async with trio.open_nursery() as nursery:
        network = SystemNetwork()
        yield await nursery.start(network.serve, address, SEED, handler)
        nursery.cancel_scope.cancel()


async def receive(stream: ByteStream, size: int) -> bytes:
    buffer = memoryview(bytearray(size))
    got = 0
    while got < size:
        count = await stream.receive_into([buffer[got : got + 10], buffer[got + 10 :]])
        assert count
        got += count
    return bytes(buffer)


@pytest.fixture(params=["unix", "tls"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    if request.param == "unix":
        return UnixAddress(str(tmp_path / "run" / "s"))
    return TlsAddress("127.0.0.1", 0)


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(bytes(range(256)) * 8192)
    return path


async def test_bytes_come_back_as_they_were_sent(address: Address) -> None:
    parts = [bytes([i % 256]) * (i % 50) for i in range(2000)] + [b"", b"z" * 3_000_000]
    body = b"".join(parts)
    async with listening(address) as found:
        stream = await SystemNetwork().connect(found, SERVER_ID)
        with contextlib.closing(stream), trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, parts)
                assert await receive(stream, len(body)) == body


async def test_a_server_sends_a_megabyte_without_waiting(tmp_path: Path) -> None:
    """A socket that was accepted has the system's small buffers, whatever its listener has."""
    if int(Path("/proc/sys/net/core/wmem_max").read_text()) < unix.ACCEPTED_SIZE:
        pytest.skip("the system allows no buffer of that size")
    taken: list[int] = []
    ended = trio.Event()

    async def send(stream: ByteStream) -> None:
        taken.append(stream.send_nowait([bytes(unix.ACCEPTED_SIZE)]))
        ended.set()
        await trio.sleep_forever()

    async with listening(UnixAddress(str(tmp_path / "run" / "s")), send) as found:
        with contextlib.closing(await SystemNetwork().connect(found, SERVER_ID)), trio.fail_after(10):
            await ended.wait()
    assert taken == [unix.ACCEPTED_SIZE]


async def test_a_file_is_sent_as_it_is(address: Address, big_file: Path) -> None:
    file = OsDisk().open(str(big_file), writable=False)

    async def send(stream: ByteStream) -> None:
        await stream.send_file(file, 1000, 2_000_000)

    async with listening(address, send) as found:
        stream = await SystemNetwork().connect(found, SERVER_ID)
        with contextlib.closing(stream):
            assert await receive(stream, 2_000_000) == big_file.read_bytes()[1000:2_001_000]
            assert await stream.receive_into([memoryview(bytearray(1))]) == 0
    file.close()


async def test_a_file_that_became_shorter_ends_the_connection(big_file: Path) -> None:
    file = OsDisk().open(str(big_file), writable=False)
    ours, theirs = open_pair()
    with (
        contextlib.closing(ours),
        contextlib.closing(theirs),
        contextlib.closing(file),
        pytest.raises(Unavailable, match="shorter"),
    ):
        await ours.send_file(file, big_file.stat().st_size - 10, 11)


async def test_close_wakes_a_receiver(address: Address) -> None:
    async with listening(address) as found:
        stream = await SystemNetwork().connect(found, SERVER_ID)

        async def wait() -> None:
            with pytest.raises(Unavailable):
                await stream.receive_into([memoryview(bytearray(1))])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            stream.close()
            stream.close()
        with pytest.raises(Unavailable):
            await stream.send_all([b"x"])


async def test_a_cancelled_receive_takes_nothing(address: Address) -> None:
    async with listening(address) as found:
        stream = await SystemNetwork().connect(found, SERVER_ID)
        with contextlib.closing(stream):
            await stream.send_all([b"abc"])
            with trio.CancelScope() as scope:
                scope.cancel()
                await stream.receive_into([memoryview(bytearray(3))])
            assert scope.cancelled_caught
            assert await receive(stream, 3) == b"abc"


async def test_an_error_in_a_handler_ends_its_connection_only(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    async def fail_once(stream: ByteStream) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("planted")
        await echo(stream)

    async with listening(address, fail_once) as found:
        for expected in (0, 1):
            stream = await SystemNetwork().connect(found, SERVER_ID)
            with contextlib.closing(stream):
                with contextlib.suppress(Unavailable):
                    await stream.send_all([b"x"])
                try:
                    count = await stream.receive_into([memoryview(bytearray(1))])
                except Unavailable:
                    count = 0
                assert count == expected
    assert "planted" in caplog.text


async def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no server listens on unix:"):
        await SystemNetwork().connect(UnixAddress(str(tmp_path / "none")), SERVER_ID)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match=r"no server listens on 127\.0\.0\.1"):
            await SystemNetwork().connect(TlsAddress("127.0.0.1", unused.getsockname()[1]), SERVER_ID)


# Unix sockets


@pytest.fixture
def closing_listeners() -> Iterator[list[socket.socket]]:
    listeners: list[socket.socket] = []
    yield listeners
    for listener in listeners:
        listener.close()


def test_the_directory_is_made_private(tmp_path: Path, closing_listeners: list[socket.socket]) -> None:
    closing_listeners.append(unix.listen(str(tmp_path / "run" / "s")))
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "run" / "s").stat().st_mode & 0o777 == 0o600


def test_an_open_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(Refused, match="open to others"):
        unix.listen(str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_a_dead_servers_socket_is_replaced(tmp_path: Path, closing_listeners: list[socket.socket]) -> None:
    path = str(tmp_path / "s")
    unix.listen(path).close()
    assert os.path.exists(path)
    closing_listeners.append(unix.listen(path))


def test_a_living_servers_socket_is_not(tmp_path: Path, closing_listeners: list[socket.socket]) -> None:
    path = str(tmp_path / "s")
    closing_listeners.append(unix.listen(path))
    with pytest.raises(Conflict, match="another server listens"):
        unix.listen(path)


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(Refused, match="not a socket"):
        unix.listen(str(tmp_path / "s"))
    assert (tmp_path / "s").read_text() == "precious"


async def test_the_socket_file_goes_with_the_server(tmp_path: Path) -> None:
    address = UnixAddress(str(tmp_path / "s"))
    async with listening(address):
        assert os.path.exists(address.path)
    assert not os.path.exists(address.path)


async def test_paths_longer_than_a_socket_address_work(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100)
    async with listening(UnixAddress(str(directory / "s"))) as found:
        stream = await SystemNetwork().connect(found, SERVER_ID)
        with contextlib.closing(stream):
            await stream.send_all([b"abc"])
            assert await receive(stream, 3) == b"abc"


def test_another_users_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = socket.socketpair()
    with ends[0], ends[1]:
        unix.check_peer(ends[0])
        found = unix._CREDENTIALS.pack(1, os.geteuid() + 1, 1)
        stranger = type("Stranger", (), {"getsockopt": lambda *_: found})()
        with pytest.raises(Refused, match="another user"):
            unix.check_peer(stranger)
        root = type("Root", (), {"getsockopt": lambda *_: unix._CREDENTIALS.pack(1, 0, 0)})()
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        unix.check_peer(root)


# TLS


async def test_another_key_is_a_wrong_pin() -> None:
    async with listening(TlsAddress("localhost", 0)) as found:
        with pytest.raises(Refused, match=f"wrong pin: the server's key begins with {SERVER_ID.hex()[:16]}"):
            await SystemNetwork().connect(found, b"x" * 32)


async def test_only_tls_1_3_is_spoken(caplog: pytest.LogCaptureFixture) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with listening(TlsAddress("127.0.0.1", 0)) as found:
        assert isinstance(found, TlsAddress)
        stream = trio.SSLStream(await trio.open_tcp_stream(found.host, found.port), old)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
        # Whoever speaks no TLS at all gets nothing but TLS's own alert, and the server goes on.
        plain = await trio.open_tcp_stream(found.host, found.port)
        await plain.send_all(b"GET / HTTP/1.0\r\n\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            assert b"gridfs" not in await plain.receive_some(1000)
        await plain.aclose()
        (await SystemNetwork().connect(found, SERVER_ID)).close()


async def test_a_peer_that_is_silent_in_the_handshake_is_let_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with listening(TlsAddress("127.0.0.1", 0)) as found:
        assert isinstance(found, TlsAddress)
        plain = socket.create_connection((found.host, found.port))
        with plain:
            plain.setblocking(False)
            with trio.fail_after(60):
                await trio.lowlevel.wait_readable(plain)
            assert plain.recv(100) == b""


# The page cache


def test_what_was_loaded_is_resident(big_file: Path) -> None:
    file = OsDisk().open(str(big_file), writable=False)
    with contextlib.closing(file):
        cache = SystemPageCache()
        cache.load(file, 10, 2_000_000)
        assert cache.is_resident(file, 10, 2_000_000)
        assert cache.is_resident(file, 10, 1)


@pytest.mark.parametrize(("missing", "resident"), [(0, True), (1, False)])
def test_the_kernel_is_asked_for_every_page(
    big_file: Path, monkeypatch: pytest.MonkeyPatch, missing: int, resident: bool
) -> None:
    page = mmap.PAGESIZE
    file = OsDisk().open(str(big_file), writable=False)
    with contextlib.closing(file):
        SystemPageCache().load(file, 0, 4 * page)
        assert residency.cached_pages(file.descriptor or 0, page - 1, page + 2) in (3, None)
        monkeypatch.setattr(residency, "cached_pages", lambda *_: 3 - missing)
        assert SystemPageCache().is_resident(file, page - 1, page + 2) is resident


def test_a_page_that_is_on_the_disk_only_is_seen(big_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "cached_pages", lambda *_: None)
    file = OsDisk().open(str(big_file), writable=False)
    missing = 1_500_000

    def preadv(descriptor: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        if offset >= missing:
            raise BlockingIOError
        return 1

    monkeypatch.setattr(os, "preadv", preadv)
    with contextlib.closing(file):
        cache = SystemPageCache()
        assert cache.is_resident(file, 0, missing)
        assert not cache.is_resident(file, 0, missing + 1)
        assert not cache.is_resident(file, missing, 1)


def test_a_file_system_without_nowait_counts_as_resident(
    big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "cached_pages", lambda *_: None)

    def preadv(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "preadv", preadv)
    file = OsDisk().open(str(big_file), writable=False)
    with contextlib.closing(file):
        assert SystemPageCache().is_resident(file, 0, 100)
