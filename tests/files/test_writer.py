"""Write-behind on a simulated grid: what is frozen when, how runs share packs, what a commit leaves."""

from __future__ import annotations

import trio

from gridfs.assembly import Parts
from gridfs.files.freezing import FreezeConfig
from tests.simulation.filesystem import Client, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.runner import chance

IDLE_S, AGE_S = FreezeConfig(1).idle_s, FreezeConfig(1).age_s_max


def mounted(work: object, seed: int = 1) -> None:
    async def scenario(world: World) -> None:
        client = Client(world, await start_servers(world))
        client.create()
        await client.session(work)  # type: ignore[arg-type]

    run_world(seed, scenario)


def noise(size: int, mark: int = 0) -> bytes:
    return chance(mark, "noise").randbytes(size)


def test_an_idle_file_is_stored_by_itself() -> None:
    async def work(parts: Parts) -> None:
        shell = Shell(parts)
        await shell.write("file", noise(5000))
        await trio.sleep(IDLE_S / 2)
        assert parts.dirty.bytes == 5000
        await trio.sleep(AGE_S)
        assert parts.dirty.bytes == 0
        assert parts.writer.packs_stored == 1
        assert await shell.read("file") == noise(5000)

    mounted(work)


def test_a_file_that_is_never_idle_is_stored_by_age() -> None:
    async def work(parts: Parts) -> None:
        shell = Shell(parts)
        for turn in range(int(4 * AGE_S / IDLE_S)):
            await shell.write("file", b"line %d\n" % turn, 10 * turn)
            await trio.sleep(IDLE_S / 2)
        assert parts.writer.packs_stored >= 1
        assert parts.writer.packs_stored < 4 * AGE_S / IDLE_S / 4, "one pack an age, not one a write"

    mounted(work)


def test_small_files_share_a_pack_and_large_ones_have_their_own() -> None:
    async def work(parts: Parts) -> None:
        shell = Shell(parts)
        for index in range(50):
            await shell.write(f"small{index}", noise(300, index))
        await shell.write("large", noise(2 << 20))
        await shell.files.drain()
        assert parts.writer.packs_stored <= 3
        assert parts.log.metadata.check() == []
        for index in range(50):
            assert await shell.read(f"small{index}") == noise(300, index)

    mounted(work)


def test_what_is_cut_while_it_is_on_its_way_does_not_come_back() -> None:
    async def work(parts: Parts) -> None:
        shell = Shell(parts)
        for turn in range(6):
            ino = await shell.write("file", noise(100_000, turn))
            parts.writer.want(ino, parts.log.number)
            await trio.sleep(0.003 * turn)  # somewhere between freeze and commit
            shell.truncate("file", 50_000)
            shell.truncate("file", 100_000)
            await shell.write("file", b"tail", 99_996)
            await shell.fsync("file")
            assert await shell.read("file") == noise(100_000, turn)[:50_000] + bytes(49_996) + b"tail"
        assert parts.log.metadata.check() == []

    mounted(work)


def test_what_is_removed_while_it_is_on_its_way_leaves_nothing_but_garbage() -> None:
    async def work(parts: Parts) -> None:
        shell = Shell(parts)
        for turn in range(4):
            ino = await shell.write("file", noise(100_000, turn))
            parts.writer.want(ino, parts.log.number)
            await trio.sleep(0.004 * turn)
            shell.unlink("file")
            await shell.files.sync()
        await shell.files.drain()
        assert (parts.dirty.bytes, parts.writer.sealed_bytes, parts.writer.flights) == (0, 0, 0)
        assert parts.log.metadata.totals().live_bytes == 0
        assert parts.log.metadata.check() == []

    mounted(work)


def test_commits_keep_the_order_of_their_freeze_whichever_upload_is_faster() -> None:
    """The large first version arrives after the small second one."""

    async def work(parts: Parts) -> None:
        shell = Shell(parts)
        first, second = noise(3 << 20, 1), noise(1000, 2)
        ino = await shell.write("file", first)
        parts.writer.want(ino, parts.log.number)
        await trio.sleep(0.001)
        await shell.write("file", second, 1 << 20)
        await shell.fsync("file")
        await shell.files.drain()
        expected = first[: 1 << 20] + second + first[(1 << 20) + 1000 :]
        assert await shell.read("file") == expected
        assert parts.log.metadata.check() == []

    mounted(work)
