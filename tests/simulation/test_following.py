"""A mount that follows what another machine writes: soon, in order, whole, and without a way to write."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.lowlevel

from gridfs.assembly import MountOptions, Parts, follow_filesystem, head_keys
from gridfs.codec.headlist import HeadList
from gridfs.codec.keys import KeyTree, ReadKey, ReadTree
from gridfs.files import checkpointing, journal
from gridfs.grid.errors import NotEnoughServers
from storage.ports import Machine
from tests.simulation.filesystem import (
    DATABASE,
    KEYS,
    OPTIONS,
    SPOOL,
    Client,
    Servers,
    Shell,
    start_servers,
)
from tests.simulation.machine import World, run_world
from tests.simulation.test_filesystem import content

SEEN_S = 3.0
"""What was synced is seen after this long at most."""
TAKEOVER = dataclasses.replace(OPTIONS, takeover=True)


class Reading(Client):
    """A machine that has the read key."""

    reading = ReadTree(KEYS.read_key, KEYS.verifying_key)

    @property
    def local_key(self) -> bytes:
        return self.reading.local_key

    def opened(self, machine: Machine, options: MountOptions = OPTIONS) -> Any:
        config = dataclasses.replace(self.config, first_key=KEYS.verifying_key)
        return follow_filesystem(machine, config, self.servers.roster, self.reading, DATABASE, SPOOL, options)


@dataclasses.dataclass
class Book:
    """What the writer did: by file every content it has had, and since when a newer one is synced."""

    versions: dict[str, list[bytes | None]] = dataclasses.field(default_factory=dict)
    synced: dict[str, list[tuple[float, int]]] = dataclasses.field(default_factory=dict)
    shown: dict[str, int] = dataclasses.field(default_factory=dict)
    looks: int = 0

    def note(self, name: str, data: bytes | None) -> None:
        self.versions.setdefault(name, [None]).append(data)

    def note_synced(self, name: str) -> None:
        self.synced.setdefault(name, []).append((trio.current_time(), len(self.versions[name]) - 1))

    def check(self, name: str, data: bytes | None) -> None:
        """One look of a follower: nothing older than before, nor than what was synced a while ago."""
        known = self.versions.get(name, [None])
        limit = trio.current_time() - SEEN_S
        synced = [index for at, index in self.synced.get(name, []) if at < limit]
        least = max([self.shown.get(name, 0), *synced])
        found = [index for index in range(least, len(known)) if known[index] == data]
        if not found:
            old = [index for index, version in enumerate(known) if version == data]
            what = f"version {old[-1]}" if old else f"{data and len(data)} bytes that are none"
            raise AssertionError(f"{name}: {what}, after {least} of {len(known) - 1} was shown or synced")
        self.shown[name] = found[0]
        self.looks += 1


class Author:
    """Changes files at random, each change synced; every change is one operation, or noted step by step."""

    def __init__(self, parts: Parts, book: Book, seed: int) -> None:
        self.shell = Shell(parts)
        self.book = book
        self.random = random.Random(seed)
        self.count = 0

    def fresh(self, size: int) -> bytes:
        self.count += 1
        return content(size, self.random.getrandbits(48))

    async def change(self) -> None:
        name = f"f{self.random.randrange(8)}"
        await self.random.choice((self.rewrite, self.replace, self.replace, self.append, self.remove))(name)

    async def sync(self, name: str) -> None:
        await self.shell.fsync(name)
        self.book.note_synced(name)

    async def rewrite(self, name: str) -> None:
        """In place, longer than before or as long."""
        before = await self.shell.read(name)
        if before is None:
            self.shell.create(name)
            self.book.note(name, b"")
        data = self.fresh(max(len(before or b""), self.random.choice((1, 500, 9000))))
        self.book.note(name, data)
        await self.shell.write(name, data)
        await self.sync(name)

    async def append(self, name: str) -> None:
        before = await self.shell.read(name)
        if not before or len(before) > 60_000:
            return
        more = self.fresh(700)
        self.book.note(name, before + more)
        await self.shell.write(name, more, len(before))
        await self.sync(name)

    async def replace(self, name: str) -> None:
        """By rename, as editors do."""
        data = self.fresh(self.random.choice((10, 3000, 40_000, 150_000)))
        await self.shell.write("new", data)
        if self.random.random() < 0.5:
            await self.shell.fsync("new")
        self.book.note(name, data)
        self.shell.rename("new", name)
        await self.sync(name)

    async def remove(self, name: str) -> None:
        if self.shell.find(name) is None or self.random.random() < 0.5:
            return
        self.book.note(name, None)
        self.shell.unlink(name)
        await self.shell.files.sync()
        self.book.note_synced(name)


async def look(parts: Parts, book: Book) -> None:
    shell = Shell(parts)
    for name in [f"f{index}" for index in range(8)]:
        ino = shell.find(name)
        try:
            data = None if ino is None else await shell.read_inode(ino)
        except OSError:
            assert shell.find(name) != ino, "only what is no more cannot be read"
            continue
        if shell.find(name) == ino:  # else it was replaced meanwhile, and any part of the old may have come
            book.check(name, data)


async def start(world: World, *, servers: int = 6) -> tuple[Servers, Client, Reading]:
    grid = await start_servers(world, n=servers)
    if servers > 6:
        config = dataclasses.replace(grid.config, n=6, head_servers=grid.config.head_servers[:6])
        grid = dataclasses.replace(grid, config=config)
    writer, reader = Client(world, grid, "writer"), Reading(world, grid, "reader")
    writer.create()
    reader.create()
    async with writer.mounted() as parts:
        Shell(parts).mkdir("folder")
        await parts.files.drain()
    return grid, writer, reader


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journal packs and checkpoints after a few changes."""
    monkeypatch.setattr(journal, "GATHER_BYTES", 60_000)
    monkeypatch.setattr(checkpointing, "JOURNAL_PACKS_MAX", 3)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.usefixtures("often")
def test_changes_are_seen_within_seconds_whole_and_in_order(seed: int) -> None:
    async def scenario(world: World) -> None:
        _, writer, reader = await start(world)
        book = Book()
        async with writer.mounted() as parts, reader.mounted() as following:
            done = trio.Event()

            async def write() -> None:
                author = Author(parts, book, seed)
                for _ in range(300):
                    await author.change()
                    await trio.sleep(author.random.choice((0.0, 0.05, 0.3)))
                done.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                while not done.is_set():
                    await look(following, book)
                    await trio.sleep(0.21)
            await trio.sleep(SEEN_S)
            assert await Shell(following).tree() == await Shell(parts).tree()
            assert following.following is not None
            assert following.following.trouble is None
        assert book.looks > 500
        assert max(map(len, book.versions.values())) > 20

    run_world(seed, scenario)


@pytest.mark.usefixtures("often")
def test_a_follower_that_dies_or_is_cut_off_goes_on_from_where_the_grid_is() -> None:
    """Killed, without power, away for longer than journals are kept: it never shows less than before."""

    async def scenario(world: World) -> None:
        servers, writer, reader = await start(world)
        book = Book()
        async with writer.mounted() as parts:
            author = Author(parts, book, 5)

            async def live(strike: Callable[[Any], None]) -> None:
                async def work(following: Parts) -> None:
                    for _ in range(4):
                        for _ in range(3):
                            await author.change()
                        await trio.sleep(SEEN_S + 0.1)
                        await look(following, book)
                    strike(reader.node)
                    await trio.lowlevel.checkpoint()

                await reader.session(work)

            for turn in range(4):
                await live((world.kill, world.crash)[turn % 2])
                for _ in range((0, 3, 60, 200)[turn]):
                    await author.change()
            async with reader.mounted() as following:
                before = following.log.number
                for node in servers.nodes:
                    world.fabric.partition("reader", node.name)
                    world.fabric.partition(node.name, "reader")
                for _ in range(150):
                    await author.change()
                assert following.log.number == before
                world.fabric.heal()
                healed_at = trio.current_time()
                while following.log.number == before:
                    book.synced.clear()  # nothing is late while it comes back
                    await look(following, book)
                    assert trio.current_time() < healed_at + 30
                await look(following, book)
                assert await Shell(following).tree() == await Shell(parts).tree()

    run_world(7, scenario)


def test_a_follower_follows_to_other_head_servers_and_to_another_writer() -> None:
    async def scenario(world: World) -> None:
        servers, writer, reader = await start(world, servers=8)
        book = Book()
        async with reader.mounted() as following:

            async def work(parts: Parts, change: Callable[[], Awaitable[None]]) -> None:
                author = Author(parts, book, parts.log.number)
                for _ in range(5):
                    await author.change()
                await change()
                for _ in range(5):
                    await author.change()
                await trio.sleep(SEEN_S)
                await look(following, book)
                assert await Shell(following).tree() == await Shell(parts).tree()

            async with writer.mounted() as parts:

                async def other_heads() -> None:
                    listed = tuple(server.server_id for server in servers.roster)[2:]
                    await parts.journal.change_heads(HeadList(listed, 5, 2))
                    for node in servers.nodes[:2]:
                        world.kill(node)

                await work(parts, other_heads)
                assert following.heads.now == parts.heads.now
            second = Client(world, servers, "second")
            second.create()
            async with second.mounted(TAKEOVER) as parts:
                await work(parts, trio.lowlevel.checkpoint)

    run_world(8, scenario)


def test_a_record_that_no_quorum_has_is_not_shown() -> None:
    async def scenario(world: World) -> None:
        servers, writer, reader = await start(world)
        async with writer.mounted(dataclasses.replace(OPTIONS, grid_timeout_s=2.0)) as parts:
            shell = Shell(parts)
            await shell.write("file", b"old")
            await shell.fsync("file")
            async with reader.mounted() as following:
                for node in servers.nodes[:2]:
                    world.fabric.partition("writer", node.name)
                await shell.write("file", b"new")
                with trio.move_on_after(10):
                    await shell.files.sync()
                await trio.sleep(5)
                newest = max(
                    standing.newest.stamp for standing in await following.heads.look() if standing.newest
                )
                shown = parts.journal.state
                assert newest > shown.stamp, "four of the five servers needed have it"
                assert await Shell(following).read("file") == b"old"
                world.fabric.heal()
                await trio.sleep(20)
                assert await Shell(following).read("file") == b"new"

    run_world(9, scenario)


def test_a_follower_cannot_write_even_if_it_tries() -> None:
    async def scenario(world: World) -> None:
        _, writer, reader = await start(world)
        async with writer.mounted() as parts:
            await Shell(parts).write("file", b"1")
            await parts.files.sync()
            async with reader.mounted() as following:
                shell = Shell(following)
                with pytest.raises(OSError, match="Read-only"):
                    await shell.write("file", b"2")
                with pytest.raises(OSError, match="Read-only"):
                    shell.rename("file", "other")
                config = dataclasses.replace(reader.config, first_key=KEYS.verifying_key)
                keys = head_keys(config, reader.reading)
                with pytest.raises(TypeError, match="signs nothing"):
                    keys.claim(99, b"m" * 16)
                forged = head_keys(config, KeyTree(b"f" * 32)).claim(1 << 30, b"m" * 16)
                claim = await following.heads.claim(forged)
                assert claim.promises == 0
                await trio.sleep(1)
            await Shell(parts).write("file", b"3")
            await Shell(parts).fsync("file")

    run_world(10, scenario)


def test_without_a_quorum_nothing_is_mounted() -> None:
    """Data that is in records only would be zeros."""

    async def scenario(world: World) -> None:
        servers, _, reader = await start(world)
        for node in servers.nodes[:2]:
            world.kill(node)
        with pytest.raises(NotEnoughServers, match="4 of the 5 servers"):
            await reader.session(lambda following: Shell(following).tree())

    run_world(11, scenario)


def test_a_read_key_survives_printing() -> None:
    key = ReadKey(ReadTree(bytes(range(32)), b"v" * 32), b"1" * 32, b"r" * 32)
    assert ReadKey.parse(key.text()) == key
    assert "read_key" not in repr(key)
