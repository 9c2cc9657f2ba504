"""The simulated network: time on the wire, backpressure, faults, and addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from storage.errors import Refused, Unavailable
from storage.ports import ByteStream, Network, TlsAddress, UnixAddress
from tests.simulation.machine import World, run_world
from tests.simulation.pipe import FIRST_FLIGHT, Link

SEED_KEY = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(SEED_KEY).public_key().public_bytes_raw()
ADDRESS = TlsAddress("server", 7)
RTT = 0.1
LINK = Link(round_trip_s=RTT, bytes_per_s=1e9, window=1 << 18)


async def receive(stream: ByteStream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        buffer = bytearray(count - len(data))
        got = await stream.receive_into([memoryview(buffer)])
        if got == 0:
            break
        data += buffer[:got]
    return bytes(data)


async def echo(stream: ByteStream) -> None:
    buffer = bytearray(65536)
    while got := await stream.receive_into([memoryview(buffer)]):
        await stream.send_all([memoryview(buffer)[:got]])


async def hang(stream: ByteStream) -> None:
    await trio.sleep_forever()


async def connected(
    world: World, handler: Callable[[ByteStream], Awaitable[None]] = echo
) -> tuple[ByteStream, Network]:
    async def program(machine: object, *, task_status: trio.TaskStatus[object]) -> None:
        network: Network = machine.network  # type: ignore[attr-defined]
        await network.serve(ADDRESS, SEED_KEY, handler, task_status=task_status)

    await world.start(world.add("server"), program)
    network = world.boot(world.add("client")).network
    return await network.connect(ADDRESS, KEY), network


def run(scenario: Callable[[World], Awaitable[object]], link: Link = LINK) -> object:
    return run_world(1, scenario, link=link).result


def test_bytes_arrive_in_order_spread_over_buffers() -> None:
    async def scenario(world: World) -> None:
        stream, _ = await connected(world)
        data = bytes(range(256)) * 2000

        async def send() -> None:
            await stream.send_all([data[:1000], memoryview(data)[1000:], b""])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await receive(stream, len(data)) == data
        await stream.send_all([b"abcdef"])
        first, second = bytearray(2), bytearray(10)
        assert await stream.receive_into([memoryview(first), memoryview(second)]) == 6
        assert (bytes(first), bytes(second[:4])) == (b"ab", b"cdef")

    run(scenario)


def test_a_message_and_its_answer_take_a_round_trip() -> None:
    async def scenario(world: World) -> float:
        stream, _ = await connected(world)
        assert trio.current_time() == pytest.approx(2 * RTT)
        await stream.send_all([b"x"])
        await receive(stream, 1)
        return trio.current_time() - 2 * RTT

    assert run(scenario) == pytest.approx(RTT, rel=0.03)


@pytest.mark.parametrize("flights", [1, 3, 7])
def test_a_new_connection_starts_slowly(flights: int) -> None:
    """1 + 2 + 4... first flights go out in as many round trips."""

    async def scenario(world: World) -> float:
        stream, _ = await connected(world, hang)
        begin = trio.current_time()
        await stream.send_all([bytes(FIRST_FLIGHT * flights)])
        return (trio.current_time() - begin) / RTT

    assert run(scenario) == pytest.approx({1: 0, 3: 1, 7: 2}[flights], abs=0.05)


def test_bandwidth_is_shared_by_nobody_and_limits() -> None:
    async def scenario(world: World) -> float:
        stream, _ = await connected(world, hang)
        begin = trio.current_time()
        await stream.send_all([bytes(100_000)])
        return trio.current_time() - begin

    assert run(scenario, Link(round_trip_s=0.001, bytes_per_s=1e5)) == pytest.approx(1.0, rel=0.02)


def test_who_does_not_receive_holds_up_the_sender() -> None:
    async def scenario(world: World) -> int:
        stream, _ = await connected(world, hang)
        sent = 0
        with trio.move_on_after(60):
            while True:
                await stream.send_all([bytes(1000)])
                sent += 1000
        return sent

    sent = run(scenario)
    assert isinstance(sent, int)
    assert LINK.window - 1000 <= sent <= LINK.window


def test_two_that_only_send_to_each_other_stop_for_ever() -> None:
    async def flood(stream: ByteStream) -> None:
        await stream.send_all([bytes(2 * LINK.window)])

    async def scenario(world: World) -> bool:
        stream, _ = await connected(world, flood)
        with trio.move_on_after(3600) as deadline:
            await flood(stream)
        return deadline.cancelled_caught

    assert run(scenario) is True


def test_a_closed_stream_delivers_what_was_sent_then_the_end() -> None:
    async def farewell(stream: ByteStream) -> None:
        await stream.send_all([b"good", b"bye"])
        stream.close()
        stream.close()

    async def scenario(world: World) -> bytes:
        stream, _ = await connected(world, farewell)
        data = await receive(stream, 100)
        with pytest.raises(Unavailable):
            await stream.send_all([b"anybody?"])
        return data

    assert run(scenario) == b"goodbye"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_both_tasks_of_a_stream_are_woken(how: str) -> None:
    async def scenario(world: World) -> list[str]:
        stream, _ = await connected(world, hang)
        woken = []

        async def wait(name: str, call: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(Unavailable):
                await call()
            woken.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "receiver", lambda: stream.receive_into([memoryview(bytearray(1))]))
            nursery.start_soon(wait, "sender", lambda: stream.send_all([bytes(2 * LINK.window)]))
            await trio.sleep(10)
            assert not woken
            if how == "close":
                stream.close()
            else:
                world.fabric.reset("server")
        return sorted(woken)

    assert run(scenario) == ["receiver", "sender"]


def test_a_clog_delays_one_direction_and_loses_nothing() -> None:
    async def scenario(world: World) -> float:
        stream, _ = await connected(world)
        world.fabric.clog("server", "client", trio.current_time() + 5)
        begin = trio.current_time()
        await stream.send_all([b"x"])
        assert await receive(stream, 1) == b"x"
        return trio.current_time() - begin

    assert run(scenario) == pytest.approx(5)


def test_a_partition_is_one_way_and_ends_when_healed() -> None:
    async def scenario(world: World) -> list[bytes]:
        heard = []

        async def listen(stream: ByteStream) -> None:
            while data := await receive(stream, 1):
                heard.append(data)
                await stream.send_all([data.upper()])

        stream, network = await connected(world, listen)
        world.fabric.partition("server", "client")
        await stream.send_all([b"x"])
        with trio.move_on_after(100):
            await receive(stream, 1)
            heard.append(b"too early")
        with trio.move_on_after(100):
            await network.connect(ADDRESS, KEY)
            heard.append(b"connected through a partition")
        world.fabric.heal()
        heard.append(await receive(stream, 1))
        return heard

    assert run(scenario) == [b"x", b"X"]


def test_a_handlers_failure_ends_its_connection_only() -> None:
    async def fragile(stream: ByteStream) -> None:
        data = await receive(stream, 1)
        if data == b"!":
            raise ValueError("planted")
        await stream.send_all([data])

    async def scenario(world: World) -> bytes:
        first, network = await connected(world, fragile)
        second = await network.connect(ADDRESS, KEY)
        await first.send_all([b"!"])
        assert await receive(first, 1) == b""
        await second.send_all([b"?"])
        return await receive(second, 1)

    assert run(scenario) == b"?"


def test_who_is_not_there_is_unavailable_and_a_wrong_key_is_refused() -> None:
    async def scenario(world: World) -> None:
        _, network = await connected(world)
        with pytest.raises(Unavailable):
            await network.connect(TlsAddress("server", 8), KEY)
        with pytest.raises(Unavailable):
            await network.connect(UnixAddress("/run/s"), KEY)
        with pytest.raises(Refused):
            await network.connect(ADDRESS, bytes(32))

    run(scenario)


def test_a_unix_address_belongs_to_its_machine() -> None:
    async def scenario(world: World) -> bytes:
        machine = world.boot(world.add("alone"))
        address = UnixAddress("/run/s")
        async with trio.open_nursery() as nursery:
            await nursery.start(machine.network.serve, address, SEED_KEY, echo)
            stream = await machine.network.connect(address, KEY)
            await stream.send_all([b"near"])
            data = await receive(stream, 4)
            other = world.boot(world.add("other"))
            with pytest.raises(Unavailable):
                await other.network.connect(address, KEY)
            nursery.cancel_scope.cancel()
        return data

    assert run(scenario) == b"near"


def test_port_0_is_replaced() -> None:
    async def scenario(world: World) -> list[object]:
        machine = world.boot(world.add("server"))
        async with trio.open_nursery() as nursery:
            asked = TlsAddress("server", 0)
            got = [await nursery.start(machine.network.serve, asked, SEED_KEY, echo) for _ in range(2)]
            await machine.network.connect(got[1], KEY)
            nursery.cancel_scope.cancel()
        return got

    assert run(scenario) == [TlsAddress("server", 40000), TlsAddress("server", 40001)]


def test_a_file_is_sent_and_a_short_one_noticed() -> None:
    async def scenario(world: World) -> bytes:
        machine = world.boot(world.add("reader"))
        file = machine.disk.open("/f", create=True)
        content = bytes(range(256)) * 1000
        file.write_at([content], 0)
        stream, _ = await connected(world)

        async def send() -> None:
            await stream.send_file(file, 100, 200_000)
            with pytest.raises(Unavailable, match="ended before"):
                await stream.send_file(file, len(content) - 1, 2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await receive(stream, 200_000) == content[100:200_100]
            return await receive(stream, 1)

    assert run(scenario) == b"\xff"
