"""The journal and the history it leaves: what is on the head servers, and what a reader makes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
import trio

from gridfs.assembly import Parts, head_keys
from gridfs.files.headstate import HeadState, load_head_state
from gridfs.files.history import History
from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.heads import HeadServers
from gridfs.meta.operations import Make, decode
from gridfs.meta.records import HeadBody
from storage.errors import Corrupt
from storage.headlog import HeadRecord
from tests.simulation.filesystem import KEYS, Client, Servers, Shell, start_servers
from tests.simulation.machine import World, run_world

Work = Callable[[World, Servers, Client], Awaitable[None]]


def in_a_world(work: Work) -> None:
    async def scenario(world: World) -> None:
        servers = await start_servers(world)
        client = Client(world, servers)
        client.create()
        await work(world, servers, client)

    run_world(1, scenario)


def reader(parts: Parts, servers: Servers) -> tuple[HeadServers, History]:
    clients: Any = parts.clients
    keys = head_keys(servers.config, KEYS)
    heads = HeadServers(clients, servers.config.head_list, servers.roster, keys.log)
    return heads, History(heads, parts.downloader, keys)


async def bodies(parts: Parts, servers: Servers) -> list[tuple[HeadRecord, HeadBody]]:
    heads, history = reader(parts, servers)
    return [(record, history.body(record)) for record in await heads.records()]


def test_a_fresh_client_has_no_state() -> None:
    async def work(world: World, servers: Servers, client: Client) -> None:
        async def look(parts: Parts) -> HeadState:
            return load_head_state(parts.log.metadata)

        state = await client.session(look)
        assert state is not None
        assert (state.epoch, state.sequence, state.shipped) == (1, 0, 0)
        assert state.mount_id != bytes(16)

    in_a_world(work)


def test_concurrent_fsyncs_share_records() -> None:
    async def work(world: World, servers: Servers, client: Client) -> None:
        async def session(parts: Parts) -> None:
            shell = Shell(parts)
            async with trio.open_nursery() as nursery:
                for index in range(20):
                    shell.mkdir(f"d{index}")
                    nursery.start_soon(shell.fsync, f"d{index}")
            records = await bodies(parts, servers)
            assert len(records) <= 2
            assert records[-1][1].last == 20

        await client.session(session)

    in_a_world(work)


def test_records_are_a_chain_and_the_first_of_an_epoch_stands_for_itself() -> None:
    async def work(world: World, servers: Servers, client: Client) -> None:
        async def session(parts: Parts) -> list[tuple[HeadRecord, HeadBody]]:
            shell = Shell(parts)
            for _ in range(3):
                shell.mkdir(f"d{parts.log.number}")
                await shell.files.sync()
            return await bodies(parts, servers)

        await client.session(session)
        records = await client.session(session)
        assert records is not None
        assert [record.stamp for record, _ in records] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
        for (earlier, _), (later, _) in pairwise(records):
            assert later.previous == earlier.record_hash()
        assert [(body.after, body.last) for _, body in records] == [
            (0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6),
        ]  # fmt: skip
        assert len(records[3][1].operations) == 4

    in_a_world(work)


def test_where_the_head_log_stands_is_saved_once_a_transaction() -> None:
    async def work(world: World, servers: Servers, client: Client) -> None:
        async def session(parts: Parts) -> None:
            shell = Shell(parts)
            await shell.files.sync()
            parts.log.commit()
            saved = load_head_state(parts.log.metadata)
            for index in range(3):
                shell.mkdir(f"d{index}")
                await shell.files.sync()
            assert load_head_state(parts.log.metadata) == saved
            parts.log.commit()
            assert load_head_state(parts.log.metadata) == parts.journal.state
            assert parts.journal.state.sequence == saved.sequence + 3

        await client.session(session)

    in_a_world(work)


def test_operations_behind_any_number_are_read_back() -> None:
    async def work(world: World, servers: Servers, client: Client) -> None:
        async def session(parts: Parts) -> None:
            shell = Shell(parts)
            for turn in range(12):
                for index in range(400):
                    shell.mkdir(f"{turn}.{index}.{'x' * 200}")
                await shell.files.sync()
            await shell.files.drain()
            heads, history = reader(parts, servers)
            newest = (await heads.records())[-1]
            last = history.body(newest).last
            assert parts.journal.base.journals, "nothing was gathered"
            for number in (0, 1, 399, 1000, 3000, last - 1, last):
                tail = await history.behind(newest, number)
                numbers = [found for found, _ in tail.operations]
                assert numbers == list(range(number + 1, last + 1))
                assert tail.base == parts.journal.base
            assert isinstance(decode((await history.behind(newest, 0)).operations[0][1]), Make)

        await client.session(session)

    in_a_world(work)


def test_a_forged_or_missing_record_is_told() -> None:
    async def work(world: World, servers: Servers, client: Client) -> None:
        async def session(parts: Parts) -> None:
            shell = Shell(parts)
            for index in range(3):
                shell.mkdir(f"d{index}")
                await shell.files.sync()
            heads, history = reader(parts, servers)
            first, _, newest = await heads.records()
            forged = HeadRecord(
                newest.epoch, newest.sequence, first.record_hash(), newest.payload, newest.signature,
                newest.mount_id,
            )  # fmt: skip
            with pytest.raises(Corrupt, match="forged"):
                history.body(forged)
            keys = head_keys(servers.config, KEYS)
            clients: Any = parts.clients
            config = servers.config
            empty = HeadServers(clients, config.head_list, servers.roster, bytes(32))
            with pytest.raises(Corrupt, match="lacks the operations before 2"):
                await History(empty, parts.downloader, keys).behind(newest, 0)
            alone = dict(list(clients.items())[:1])
            away = HeadServers(alone, config.head_list, servers.roster, keys.log)
            with pytest.raises(NotEnoughServers, match="1 of the 2 servers"):
                await History(away, parts.downloader, keys).behind(newest, 0)

        await client.session(session)

    in_a_world(work)


def test_a_record_that_too_few_servers_took_is_shipped_again_by_the_next_mount() -> None:
    async def work(world: World, servers: Servers, client: Client) -> None:
        async def session(parts: Parts) -> None:
            shell = Shell(parts)
            shell.mkdir("first")
            await shell.files.sync()
            for node in servers.nodes[:2]:
                world.crash(node)
            shell.mkdir("second")
            with trio.move_on_after(20):
                await shell.files.sync()
            assert parts.journal.up_to == 1

        async def again(parts: Parts) -> None:
            assert parts.journal.up_to == 1, "four of the five servers needed have the second operation"
            await servers.restart(*servers.nodes[:2])
            with trio.fail_after(30):
                await Shell(parts).files.sync()
            records = await bodies(parts, servers)
            assert records[-1][1].last == 2
            assert parts.journal.taken_over is None

        await client.session(session)
        await client.session(again)

    in_a_world(work)
