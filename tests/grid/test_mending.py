"""Mending a pack: which shares are fetched, who is not believed, who is not waited for."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from gridfs.codec.cipher import SEGMENT_SIZE
from gridfs.grid.downloader import DownloaderConfig
from gridfs.grid.errors import NotEnoughShares
from gridfs.grid.health import HealthConfig
from tests.grid.servers import Grid, Stored, invert, open_grid, plaintext
from tests.simulation.entropy import InlineOffload

ROWS = 3 * 4 * SEGMENT_SIZE + 1000
OFFLOAD = InlineOffload()


async def mended(grid: Grid, stored: Stored, *wanted: int) -> dict[int, bytes]:
    found = await grid.downloader.mended(stored.ref, wanted, OFFLOAD)
    return {number: b"".join(map(bytes, parts)) for number, parts in found.items()}


def right(stored: Stored, *wanted: int) -> dict[int, bytes]:
    return {number: b"".join(map(bytes, stored.sealed.shares[number])) for number in wanted}


@pytest.mark.parametrize("size", [1000, ROWS, 8 << 20])
async def test_the_columns_of_k_shares_are_read_once(size: int) -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(size))
        assert await mended(grid, stored, 4, 5) == right(stored, 4, 5)
        geometry = stored.ref.geometry
        asked = [number for number in range(4) if geometry.data_length(number)]
        shares = sum(geometry.share_size(number) for number in asked)
        assert grid.asked_bytes == shares
        assert grid.requests == 2 * len(asked)


async def test_who_lacks_its_share_or_lies_is_named_and_another_share_taken() -> None:
    async with open_grid(3, 8) as grid:
        stored = await grid.store(plaintext(ROWS))
        await grid.holder(stored, 0).drop(stored.ref.pack_id, 0)
        grid.holder(stored, 1).distort = invert
        grid.holder(stored, 3).dead = True
        liar = grid.holder(stored, 4)
        liar.distort = lambda span, data: invert(span, data) if span.length > 60_000 else data
        assert await mended(grid, stored, 0) == right(stored, 0)
        damaged = grid.downloader.statistics().reads.damaged
        assert set(damaged) == {grid.holder(stored, number).server_id for number in (0, 1, 4)}
        assert liar.server_id in grid.downloader.statistics().demoted


async def test_a_hung_server_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    config = DownloaderConfig(health=HealthConfig(first_s=1.0, bytes_per_s_min=1e9))
    async with open_grid(4, 6, reading=config) as grid:
        stored = await grid.store(plaintext(ROWS))
        grid.holder(stored, 2).hung = True
        assert await mended(grid, stored, 2) == right(stored, 2)
        assert trio.current_time() < 2.1


async def test_fewer_than_k_shares_mend_nothing() -> None:
    async with open_grid(4, 6) as grid:
        stored = await grid.store(plaintext(ROWS))
        for number in (0, 1, 2):
            grid.holder(stored, number).dead = True
        with pytest.raises(NotEnoughShares) as caught:
            await mended(grid, stored, 0)
        assert (caught.value.got, caught.value.k) == (3, 4)
