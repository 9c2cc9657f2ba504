"""One read of many segments, from the first plan to the last opened segment. See `downloader`.

State of a read: which wants are left, and its `Supply`: what bytes are here, who may still be asked. It is
changed only between awaits, and every round either finishes a want or takes a source away, so a read ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from gridfs.codec.cipher import TAG_SIZE, open_into
from gridfs.codec.erasure import rebuild
from gridfs.grid import audit, placement
from gridfs.grid.errors import DamagedData, NotEnoughShares
from gridfs.grid.planner import Fetch, PackRef, Plan, Step, Want, plan_reads
from gridfs.grid.requests import Job
from gridfs.grid.supply import Supply, Tools
from storage.client import Span, Traffic
from storage.errors import Corrupt
from storage.ports import Buffer

FAIR_BYTES = 1 << 20
"""Bytes that are decoded and opened before other tasks get their turn: some 0.1 ms."""


@dataclass(slots=True)
class SegmentRead:
    """One segment to be read."""

    pack: PackRef
    key: bytes = field(repr=False)
    """Key of its run."""
    ordinal: int
    """Its number in its run."""
    offset: int
    """Stream offset of the sealed segment."""
    length: int
    """Bytes of plaintext."""
    out: memoryview
    """Where the plaintext goes: writable, exactly `length` bytes. Undefined if the read fails."""

    def want(self) -> Want:
        """Where the sealed segment lies. ValueError if that is not inside one block of the pack."""
        geometry = self.pack.geometry
        block, inside = divmod(self.offset, geometry.block_size)
        sealed = self.length + TAG_SIZE
        fits = 0 <= self.offset <= geometry.stream_length - sealed and inside + sealed <= geometry.block_size
        if not fits or self.length < 1 or len(self.out) != self.length:
            raise ValueError(f"segment {self.offset}+{self.length} does not lie in one block of its pack")
        row, number = divmod(block, geometry.k)
        start = row * geometry.block_size + inside
        return Want(self.pack, number, start, start + sealed)


class Reading:
    """One call of `Downloader.read`."""

    def __init__(self, tools: Tools, segments: Sequence[SegmentRead], traffic: Traffic) -> None:
        self._tools = tools
        self._segments = segments
        self._wants = [segment.want() for segment in segments]
        self._supply = Supply(tools, traffic)
        self._sources = self._supply.sources
        self._held = self._supply.held
        for want in self._wants:
            if (piece := tools.neighbours.find(want)) is not None:
                self._held.add(want.pack.pack_id, want.number, piece)
        self._located: set[bytes] = set()
        self._opened_bytes = 0

    async def run(self) -> None:
        """Read all segments. Raises NotEnoughShares or DamagedData."""
        try:
            await self._rounds()
        finally:
            self._supply.close()

    async def _rounds(self) -> None:
        left = list(range(len(self._wants)))
        while left:
            wants = [(index, self._wants[index]) for index in left]
            plan = plan_reads(wants, self._sources, self._held)
            if plan.lacking:
                await self._locate(plan.lacking)
                continue
            fetches = self._widened(plan)
            self._count_ways_around(plan, wants)
            steps = await self._supply.fetch(fetches, wants)
            left = await self._carry_out(plan.steps if steps is None else steps)

    # ---- what to ask

    def _widened(self, plan: Plan) -> list[Fetch]:
        """What to ask: for a small segment the whole of its block, where its neighbours are likely wanted.

        Not for what is rebuilt: that would be k blocks.
        """
        plain = {self._wants[step.wants[0]][1:] for step in plan.steps if not step.helpers}
        fetches = []
        for fetch in plan.fetches:
            if fetch.end - fetch.start < fetch.pack.geometry.block_size and fetch[1:4] in plain:
                want = Want(*fetch[:4])
                wide = self._tools.neighbours.widened(want)
                if wide is not want:
                    fetch = Fetch(*wide, fetch.server)
                    self._supply.wide.add((fetch.pack.pack_id, fetch.number, fetch.start))
            fetches.append(fetch)
        return fetches

    def _count_ways_around(self, plan: Plan, wants: Sequence[tuple[int, Want]]) -> None:
        ranges = sum(len(step.wants) for step in plan.steps if step.helpers)
        if ranges:
            asked = sum(fetch.end - fetch.start for fetch in plan.fetches)
            wanted = sum(want.end - want.start for _, want in wants)
            self._tools.hedging.went_around(ranges, max(0, asked - wanted))

    async def _locate(self, lacking: Mapping[bytes, tuple[PackRef, int]]) -> None:
        """Ask every server which shares of these packs it has. Raises NotEnoughShares the second time."""
        for pack, available in lacking.values():
            if pack.pack_id in self._located:
                raise NotEnoughShares(
                    pack.pack_id,
                    available,
                    pack.geometry.k,
                    self._reasons(pack.pack_id),
                    silent=self._sources.silent,
                )
        self._tools.statistics.lookups += len(lacking)
        self._located.update(lacking)
        asked = []
        for pack, _ in lacking.values():
            numbers = pack.geometry.stored_numbers()
            for server in placement.order(pack.pack_id, self._tools.roster):
                if self._sources.alive(server):
                    asked += [(server, Span(pack.pack_id, number, 0, 1)) for number in numbers]

        def enough(jobs: Sequence[Job]) -> bool:
            for job in jobs:
                if job.is_done and job.failure is None and job.got:
                    self._sources.found(job.span.pack_id, job.span.number, job.server)
            return all(self._sources.available(pack) >= pack.geometry.k for pack, _ in lacking.values())

        if asked:
            enough(await self._supply.ask(asked, enough))

    def _reasons(self, pack_id: bytes) -> list[str]:
        name = self._tools.roster.name
        return [f"{name(server)}: {reason}" for server, reason in self._sources.reasons(pack_id)]

    # ---- opening

    async def _carry_out(self, steps: Sequence[Step]) -> list[int]:
        """Open what is here; returns the wants that need another round."""
        left: list[int] = []
        doubtful: list[tuple[int, tuple[int, ...]]] = []
        for step in steps:
            sealed = self._rebuilt(step) if step.helpers else self._plain(step)
            for index in step.wants:
                if index not in sealed:
                    left.append(index)
                elif not self._opens(index, sealed[index]):
                    doubtful.append((index, step.helpers or (self._wants[index].number,)))
            if self._opened_bytes >= FAIR_BYTES:
                self._opened_bytes = 0
                await trio.lowlevel.checkpoint()
        if doubtful:
            # One audit names the liars; without them, the others may well open in the next round.
            (index, shown), *others = doubtful
            await self._audit(index, shown)
            left += [index for index, _ in others]
        return left

    def _plain(self, step: Step) -> dict[int, Buffer]:
        (index,) = step.wants
        want = self._wants[index]
        view = self._held.view(want.pack.pack_id, want.number, want.start, want.end)
        return {} if view is None else {index: view}

    def _rebuilt(self, step: Step) -> dict[int, Buffer]:
        """The bytes of a step's wants from the same range of its helpers; empty if one of those failed."""
        wants = [self._wants[index] for index in step.wants]
        pack, _, start, end = wants[0]
        geometry = pack.geometry
        have: dict[int, Buffer] = {}
        for number in step.helpers:
            stop = min(end, geometry.data_length(number))
            view = self._held.view(pack.pack_id, number, start, stop) if start < stop else memoryview(b"")
            if view is None:
                return {}
            have[number] = audit.padded(view, end - start)
        rebuilt = rebuild(geometry.k, geometry.n, [want.number for want in wants], have)
        self._tools.statistics.reconstructed += len(wants)
        self._opened_bytes += geometry.k * (end - start)
        return {index: rebuilt[want.number] for index, want in zip(step.wants, wants, strict=True)}

    def _opens(self, index: int, sealed: Buffer) -> bool:
        segment = self._segments[index]
        try:
            open_into(segment.key, segment.ordinal, sealed, segment.out)
        except Corrupt:
            return False
        self._opened_bytes += segment.length
        self._tools.statistics.segments += 1
        return True

    # ---- the audit

    async def _audit(self, index: int, shown: Sequence[int]) -> None:
        """Open a segment from blocks that the pack id certifies, and name those that it does not.

        shown: the shares that its wrong bytes came from. Raises NotEnoughShares, DamagedData.
        """
        pack, number, start, end = self._wants[index]
        row, inside = divmod(start, pack.geometry.block_size)
        self._tools.statistics.audits += 1
        for other in shown:
            self._tools.neighbours.drop(pack.pack_id, other)
        good = audit.known_zeros(pack, row)
        wave = [other for other in shown if other not in good]
        while number not in good and len(good) < pack.geometry.k:
            if not wave:
                await self._locate({pack.pack_id: (pack, self._sources.available(pack))})
            else:
                good.update(await self._certified(pack, row, wave))
            wave = self._next_wave(pack, row, good)
        block = good[number] if number in good else audit.rebuild_block(pack, number, row, good)
        sealed = memoryview(block)[inside : inside + end - start]
        if not self._opens(index, sealed):
            raise DamagedData(
                pack.pack_id,
                "a segment does not open although its block is certified: its key or place is wrong",
            )

    def _next_wave(self, pack: PackRef, row: int, good: Mapping[int, Buffer]) -> list[int]:
        """Further shares to look at, as many as are needed, healthy ones first; empty if too few are left."""
        others = [n for n in range(pack.geometry.n) if n not in good]
        ranked = []
        for number in others:
            server = self._sources.best(pack, number)
            if server is not None:
                ranked.append((not self._sources.healthy(server), number))
        needed = pack.geometry.k - len(good)
        wave = [number for _, number in sorted(ranked)[:needed]]
        return wave if len(wave) == needed else []

    async def _certified(self, pack: PackRef, row: int, numbers: Sequence[int]) -> dict[int, Buffer]:
        """Fetch a row's blocks of these shares and keep those that are certified; the others are blamed."""
        asked = []
        for number in numbers:
            server = self._sources.best(pack, number)
            if server is not None:
                asked += [(server, number, span) for span in audit.exhibit_spans(pack, number, row)]

        def enough(_: Sequence[Job]) -> bool:
            wave = self._next_wave(pack, row, {})
            return bool(wave) and all(self._is_healthy(pack, number) for number in wave)

        jobs = await self._supply.ask([(server, span) for server, _, span in asked], enough) if asked else []
        good: dict[int, Buffer] = {}
        for at in range(0, len(jobs), audit.EXHIBIT_PARTS):
            server, number, _ = asked[at]
            parts = jobs[at : at + audit.EXHIBIT_PARTS]
            if any(not job.is_done or job.failure is not None for job in parts):
                continue
            exhibit = audit.Exhibit(*(job.destination for job in parts))
            got = [job.got for job in parts]
            reason = audit.judge(pack, number, row, exhibit, got)
            if reason is None:
                good[number] = exhibit.block
            else:
                self._supply.blame(pack, number, server, reason, lied=any(got))
        return good

    def _is_healthy(self, pack: PackRef, number: int) -> bool:
        server = self._sources.best(pack, number)
        return server is not None and self._sources.healthy(server)
