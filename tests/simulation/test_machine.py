"""Machines over crashes: a toy store is right, and three planted bugs in it are found."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from storage.errors import Unavailable
from storage.ports import ByteStream, Machine, TlsAddress
from tests.simulation.machine import World, run_world
from tests.simulation.platter import DiskFault, MachineDead

SEED_KEY = bytes(32)
KEY = Ed25519PrivateKey.from_private_bytes(SEED_KEY).public_key().public_bytes_raw()
ADDRESS = TlsAddress("server", 1)
SIZE = 1500


class ToyStore:
    """A server that keeps one value of SIZE bytes: each message is a new value, the answer one byte."""

    def __init__(self, bug: str = "") -> None:
        self.bug = bug

    async def __call__(self, machine: Machine, *, task_status: trio.TaskStatus[Any]) -> None:
        async def handle(stream: ByteStream) -> None:
            value = bytearray(SIZE)
            while await stream.receive_into([memoryview(value)]):
                if self.bug == "answer first":
                    await stream.send_all([b"y"])
                await machine.offload.run(self.keep, machine, bytes(value))
                if self.bug != "answer first":
                    await stream.send_all([b"y"])

        await machine.network.serve(ADDRESS, SEED_KEY, handle, task_status=task_status)

    def keep(self, machine: Machine, value: bytes) -> None:
        name = "/value" if self.bug == "overwrite in place" else "/value.new"
        file = machine.disk.open(name, create=True)
        file.write_at([value], 0)
        if self.bug != "no sync":
            file.sync()
        file.close()
        if name != "/value":
            machine.disk.replace(name, "/value")
        if self.bug != "no directory sync":
            machine.disk.sync_directory("/")


async def put(network: Any, value: bytes) -> None:
    stream = await network.connect(ADDRESS, KEY)
    await stream.send_all([value])
    if await stream.receive_into([memoryview(bytearray(1))]) == 0:
        raise Unavailable("closed before the answer")
    stream.close()


def kept(machine: Machine) -> bytes:
    file = machine.disk.open("/value")
    value = bytearray(file.size())
    file.read_into(memoryview(value), 0)
    return bytes(value)


async def crash_point(world: World, at: int, bug: str) -> tuple[bool, bool]:
    """Overwrite a value with power lost at disk operation `at`: (was there one, is the result right)."""
    old, new = b"o" * SIZE, b"n" * SIZE
    server, store = world.add("server"), ToyStore(bug)
    client = world.boot(world.add("client")).network
    await world.start(server, store)
    await put(client, old)
    await trio.sleep(1)
    world.cut_power_at(at, server)
    acknowledged = True
    try:
        await put(client, new)
        await trio.sleep(1)
    except Unavailable:
        acknowledged = False
    was_cut = not server.is_up
    world.crash(server)
    world.cut_power_at(0)
    value = kept(world.boot(server))
    return was_cut, value == new or (value == old and not acknowledged)


def sweep(bug: str, seed: int) -> list[bool]:
    """Every crash point in turn, until a run ends untouched."""
    results: list[bool] = []
    while True:
        was_cut, is_right = run_world(seed, crash_point, len(results) + 1, bug).result
        results.append(is_right)
        if not was_cut:
            return results


@pytest.mark.parametrize("seed", range(4))
def test_the_right_store_survives_power_loss_at_every_disk_operation(seed: int) -> None:
    results = sweep("", seed)
    assert len(results) == 6  # open, write, sync, replace, sync_directory, and none
    assert all(results)


@pytest.mark.parametrize("bug", ["no sync", "no directory sync", "answer first", "overwrite in place"])
def test_planted_bugs_are_found(bug: str) -> None:
    assert not all(is_right for seed in range(8) for is_right in sweep(bug, seed))


def test_a_scenario_with_crashes_gives_the_same_trace_twice() -> None:
    async def scenario(world: World) -> list[bytes]:
        server, store = world.add("server"), ToyStore()
        client = world.boot(world.add("client"))
        values = []
        for turn in range(5):
            await world.start(server, store)
            await put(client.network, client.entropy.token(SIZE))
            if turn % 2:
                world.crash(server)
            else:
                world.kill(server)
            values.append(kept(world.boot(server)))
            world.crash(server)
        return values

    first, second = run_world(3, scenario), run_world(3, scenario)
    assert (first.digest, first.result) == (second.digest, second.result)
    assert run_world(4, scenario).digest != first.digest


def test_clean_up_of_a_dead_program_reaches_neither_disk_nor_peer() -> None:
    async def tidy(machine: Machine, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            machine.disk.open("/farewell", create=True)

    async def scenario(world: World) -> list[str]:
        node = world.add("server")
        await world.start(node, tidy)
        world.crash(node)
        await trio.sleep(1)
        assert "died with 'MachineDead'" in world.trace.last_lines[-1]
        return world.boot(node).disk.names("/")

    assert run_world(1, scenario).result == []


def test_a_living_program_that_fails_fails_the_run() -> None:
    async def broken(machine: Machine, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep(1)
        machine.disk.names("/none")

    async def scenario(world: World) -> None:
        await world.start(world.add("server"), broken)
        await trio.sleep(10)

    with pytest.raises(ExceptionGroup) as caught:
        run_world(1, scenario)
    assert caught.group_contains(FileNotFoundError)


def test_a_crash_while_a_program_starts_is_told_to_who_started_it() -> None:
    async def slow(machine: Machine, *, task_status: trio.TaskStatus[None]) -> None:
        machine.disk.make_directory("/d")
        await trio.sleep_forever()

    async def scenario(world: World) -> None:
        node = world.add("server")
        world.cut_power_at(1)
        with pytest.raises(MachineDead):
            await world.start(node, slow)

    run_world(1, scenario)


def test_peers_of_a_silent_machine_notice_when_it_is_back() -> None:
    async def scenario(world: World) -> float:
        server, store = world.add("server"), ToyStore()
        client = world.boot(world.add("client")).network
        await world.start(server, store)
        stream = await client.connect(ADDRESS, KEY)
        world.crash(server, silently=True)
        await stream.send_all([b"x"])
        with trio.move_on_after(1000):
            await stream.receive_into([memoryview(bytearray(1))])
        with trio.move_on_after(1000):
            await client.connect(ADDRESS, KEY)
        await world.start(server, store)
        with pytest.raises(Unavailable):
            await stream.receive_into([memoryview(bytearray(1))])
        await put(client, bytes(SIZE))
        return trio.current_time()

    outcome = run_world(1, scenario)
    assert 2000 < outcome.result < 2001


def test_each_machine_and_each_boot_has_its_own_chance_and_its_own_clock() -> None:
    async def scenario(world: World) -> list[bytes]:
        tokens = []
        for name in ("a", "b"):
            node = world.add(name)
            tokens.append(world.boot(node).entropy.token(16))
            world.crash(node)
            tokens.append(world.boot(node).entropy.token(16))
        world.nodes["a"].clock.offset_ns = -5
        a, b = (world.nodes[name].clock.now_ns() for name in ("a", "b"))
        assert a == b - 5
        return tokens

    tokens = run_world(1, scenario).result
    assert len({*tokens}) == 4
    assert run_world(1, scenario).result == tokens


def test_planted_disk_faults_reach_the_program() -> None:
    async def scenario(world: World) -> int | None:
        node = world.add("server")
        disk = world.boot(node).disk
        node.platter.faults.append(DiskFault("open", errno.EIO))
        with pytest.raises(OSError, match="Input/output") as caught:
            disk.open("/f", create=True)
        return caught.value.errno

    assert run_world(1, scenario).result == errno.EIO
