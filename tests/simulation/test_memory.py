"""Large files through a whole simulated file system: how much memory it takes for their bytes, counted."""

from __future__ import annotations

import gc

import trio

from gridfs.assembly import Parts
from gridfs.meta.rows import ROOT
from tests.simulation.filesystem import FILE, OPTIONS, Client, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.runner import chance

MIB = 1 << 20
FILES, SIZE = 4, 12 * MIB


def test_memory_is_bounded_used_again_and_let_go_of_without_a_search_for_cycles() -> None:
    async def scenario(world: World) -> None:
        client = Client(world, await start_servers(world))
        client.create()
        await client.session(work)

    async def work(parts: Parts) -> None:
        pages = parts.prefetcher.pages
        data = chance(1, "memory").randbytes(MIB)
        files = [parts.files.namespace.make(ROOT, b"%d" % number, FILE, 1, 1).ino for number in range(FILES)]
        most = 0

        async def write(ino: int) -> None:
            for offset in range(0, SIZE, MIB):
                await parts.contents.write(ino, offset, data)
            await parts.writer.stored(ino, parts.log.number)

        async def read(ino: int) -> None:
            nonlocal most
            handle = parts.contents.open(ino)
            for offset in range(0, SIZE, MIB):
                assert await handle.read(offset, MIB, SIZE) == data
                most = max(most, pages.lent_bytes + pages.kept_bytes)
            parts.contents.close(ino, handle)

        gc.disable()
        try:
            for step in (write, read):
                async with trio.open_nursery() as nursery:
                    for ino in files:
                        nursery.start_soon(step, ino)
                await trio.sleep(10)
                assert pages.lent_bytes == 0
                assert pages.kept_bytes <= OPTIONS.memory_bytes
        finally:
            gc.enable()
        assert most <= OPTIONS.memory_bytes * 3 // 2  # sizes are rounded up

    run_world(1, scenario)
