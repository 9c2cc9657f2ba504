"""Mending a pack: k of its columns are fetched and certified, and the shares that it lacks built from them.

Header and hash table of a share come first, and say whether its blocks are worth fetching; then its blocks,
each checked with its hash. Who shows something else is blamed, and another share is taken. One pack at a time
costs the memory of its primaries, from the pool of all reads, and as much again while it is coded.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from gridfs.codec.mending import mend
from gridfs.grid.errors import DamagedData, NotEnoughShares
from gridfs.grid.planner import PackRef
from gridfs.grid.requests import Job
from gridfs.grid.supply import Supply, Tools
from storage.client import Span, Traffic
from storage.errors import Corrupt, StorageError
from storage.format.share import HASH_SIZE, ShareHeader, block_ok, verify_table
from storage.ports import Buffer, Offload


class Mending:
    """One pack being mended."""

    def __init__(self, tools: Tools, pack: PackRef) -> None:
        self._pack = pack
        self._tools = tools
        self._supply = Supply(tools, Traffic.REPAIR)
        self._sources = self._supply.sources

    async def run(self, wanted: Collection[int], offload: Offload) -> dict[int, tuple[Buffer, ...]]:
        """The wanted shares, as header, blocks and table. Raises NotEnoughShares, DamagedData."""
        geometry, pack_id = self._pack.geometry, self._pack.pack_id
        columns: dict[int, Buffer] = {n: b"" for n in range(geometry.k) if not geometry.data_length(n)}
        try:
            while len(columns) < geometry.k:
                columns |= await self._columns(self._wave(columns), columns)
            return await offload.run(partial(mend, geometry, pack_id, columns, wanted))
        except Corrupt as error:
            raise DamagedData(pack_id, str(error)) from None
        finally:
            self._supply.close()

    def _wave(self, columns: Collection[int]) -> list[tuple[int, bytes]]:
        """(share, server) of as many further shares as are needed, healthy servers first."""
        geometry = self._pack.geometry
        ranked = []
        for number in geometry.stored_numbers():
            server = self._sources.best(self._pack, number) if number not in columns else None
            if server is not None:
                ranked.append((not self._sources.healthy(server), number, server))
        needed = geometry.k - len(columns)
        if len(ranked) < needed:
            raise NotEnoughShares(self._pack.pack_id, len(columns) + len(ranked), geometry.k)
        return [(number, server) for _, number, server in sorted(ranked)[:needed]]

    async def _columns(
        self, wave: Sequence[tuple[int, bytes]], columns: Collection[int]
    ) -> dict[int, Buffer]:
        """Those of the wave's columns that came and are certified."""
        tables = await self._tables(wave, columns)
        there = [(number, server) for number, server in wave if number in tables]
        geometry, pack_id = self._pack.geometry, self._pack.pack_id
        asked = [
            (server, Span(pack_id, number, geometry.data_offset, geometry.data_length(number)))
            for number, server in there
        ]
        jobs = await self._ask(asked, columns) if asked else []
        good: dict[int, Buffer] = {}
        for (number, server), job in zip(there, jobs, strict=True):
            if not job.is_done or job.failure is not None:
                continue
            if job.got == job.span.length and self._is_certified(tables[number], job.destination):
                good[number] = job.destination
            else:
                reason = "its blocks do not fit their hashes"
                self._supply.blame(self._pack, number, server, reason, lied=True)
        return good

    async def _tables(
        self, wave: Sequence[tuple[int, bytes]], columns: Collection[int]
    ) -> dict[int, memoryview]:
        """The hash tables of the wave's shares, where they are what the pack id certifies."""
        geometry, pack_id = self._pack.geometry, self._pack.pack_id
        asked = []
        for number, server in wave:
            table_size = HASH_SIZE * geometry.block_count(number)
            asked.append((server, Span(pack_id, number, 0, geometry.data_offset)))
            asked.append((server, Span(pack_id, number, geometry.table_offset(number), table_size)))
        jobs = await self._ask(asked, columns)
        tables: dict[int, memoryview] = {}
        for at, (number, server) in enumerate(wave):
            parts = jobs[2 * at : 2 * at + 2]
            if any(not job.is_done or job.failure is not None for job in parts):
                continue
            reason = self._fault(number, parts)
            if reason is None:
                tables[number] = parts[1].destination
            else:
                lied = any(job.got for job in parts)
                self._supply.blame(self._pack, number, server, reason, lied=lied)
        return tables

    def _fault(self, number: int, parts: Sequence[Job]) -> str | None:
        """What is wrong with a share's header and table; None if nothing is."""
        if not any(job.got for job in parts):
            return "it lacks its share"
        if any(job.got < job.span.length for job in parts):
            return "its share is cut short"
        header, table = (job.destination for job in parts)
        try:
            found = ShareHeader.decode(header)
            if found.number != number or found.geometry != self._pack.geometry:
                return "it shows another share"
            verify_table(self._pack.pack_id, found, table)
        except StorageError as error:
            return str(error)
        return None

    def _is_certified(self, table: memoryview, column: memoryview) -> bool:
        size = self._pack.geometry.block_size
        starts = range(0, len(column), size)
        return all(block_ok(table, row, column[start : start + size]) for row, start in enumerate(starts))

    async def _ask(self, asked: Sequence[tuple[bytes, Span]], columns: Collection[int]) -> list[Job]:
        def enough(_: Sequence[Job]) -> bool:
            """Whether one can do without those that let us wait."""
            try:
                return all(self._sources.healthy(server) for _, server in self._wave(columns))
            except NotEnoughShares:
                return False

        return await self._supply.ask(asked, enough)
