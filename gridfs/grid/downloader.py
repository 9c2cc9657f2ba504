"""The downloader: reads sealed segments from the grid and opens each at its final place.

A read goes in rounds: plan (pure), fetch everything at once, open. Whatever failed on the way only
changes what the next plan may use, so every kind of trouble takes the same road: a dead server, a share
that is missing, one that is cut short. A segment that does not open leads to an audit of its row, which
names the liars and decodes from good blocks. Before a read is given up, every server has been asked. A server
that lets a read wait past its own usual time is overtaken (`supply`, `hedging`).

Sealed bytes live in borrowed buffers: one for each round of a read, returned when the read ends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from gridfs.grid.buffers import BufferPool
from gridfs.grid.health import HealthBook, HealthConfig
from gridfs.grid.hedging import HedgeConfig, HedgeStatistics, Hedging
from gridfs.grid.mending import Mending
from gridfs.grid.neighbours import Neighbours
from gridfs.grid.planner import PackRef
from gridfs.grid.ports import GridServer
from gridfs.grid.reading import Reading, SegmentRead
from gridfs.grid.requests import Requests, RequestStatistics
from gridfs.grid.roster import Roster, ServerId
from gridfs.grid.supply import ReadStatistics, Tools
from storage.client import READV_SIZE_MAX, READV_SPANS_MAX, Traffic
from storage.pages import PagePool
from storage.ports import Buffer, Offload

KEPT_BYTES = 8 << 20
"""Memory that reads keep for the next ones where nobody shares it with them."""

__all__ = ["Downloader", "DownloaderConfig", "DownloaderStatistics", "PackRef", "SegmentRead"]


@dataclass(frozen=True, slots=True)
class DownloaderConfig:
    lent_bytes: int = 24 << 20
    """Sealed bytes in memory, all reads together; further reads wait."""
    neighbour_bytes: int = 8 << 20
    """Sealed blocks kept because small segments in them are likely wanted next."""
    spans_max: int = READV_SPANS_MAX
    """Spans in one request."""
    bytes_max: int = READV_SIZE_MAX
    """Bytes that one request may ask for."""
    health: HealthConfig = field(default_factory=HealthConfig)
    hedging: HedgeConfig = field(default_factory=HedgeConfig)


@dataclass(frozen=True, slots=True)
class DownloaderStatistics:
    """The live counters, and gauges of this moment."""

    requests: RequestStatistics
    reads: ReadStatistics
    hedging: HedgeStatistics
    demoted: tuple[ServerId, ...]
    """Servers that are not asked first now."""
    lent_bytes: int
    """Sealed bytes in memory."""


class Downloader:
    """Reads segments. `run` must be running while `read` is called, by any number of tasks."""

    def __init__(
        self,
        clients: Mapping[ServerId, GridServer],
        roster: Roster,
        config: DownloaderConfig | None = None,
        pages: PagePool | None = None,
    ) -> None:
        """`pages`: the memory of all who move much data; without it the reads have their own."""
        config = config or DownloaderConfig()
        health = HealthBook(config.health)
        self._tools = Tools(
            requests=Requests(clients, health, config.spans_max, config.bytes_max),
            pool=BufferPool(pages or PagePool(KEPT_BYTES), config.lent_bytes),
            health=health,
            hedging=Hedging(config.hedging),
            roster=roster,
            neighbours=Neighbours(config.neighbour_bytes),
            statistics=ReadStatistics(),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send what reads want, until cancelled; open reads then fail with NotEnoughShares."""
        await self._tools.requests.run(task_status=task_status)

    async def read(self, segments: Sequence[SegmentRead], traffic: Traffic = Traffic.DEMAND) -> None:
        """Read and open all segments, each into its `out`. A checkpoint.

        All that concurrent calls want in one turn of the loop is one request per server and class. Raises
        NotEnoughShares where fewer than k shares of a pack can be had from any server, DamagedData where
        certified bytes do not open, ValueError for a segment outside its pack; `out`s are undefined then.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        await Reading(self._tools, segments, traffic).run()

    async def mended(
        self, pack: PackRef, wanted: Collection[int], offload: Offload
    ) -> dict[int, tuple[Buffer, ...]]:
        """Shares that a pack lacks, built anew: number -> header, blocks and table. A checkpoint.

        Raises NotEnoughShares where fewer than k shares answer at their places, DamagedData where certified
        shares do not give the pack.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await Mending(self._tools, pack).run(wanted, offload)

    def statistics(self) -> DownloaderStatistics:
        """The live counters, and gauges of this moment."""
        tools = self._tools
        demoted = tools.health.demoted(trio.current_time())
        return DownloaderStatistics(
            requests=tools.requests.statistics,
            reads=tools.statistics,
            hedging=tools.hedging.statistics(),
            demoted=tuple(server.server_id for server in tools.roster if server.server_id in demoted),
            lent_bytes=tools.pool.lent_bytes,
        )
