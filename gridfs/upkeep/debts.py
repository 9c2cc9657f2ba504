"""Debts: shares that found no server when their pack was stored are placed once servers are back.

A pack counts as stored with `happy` servers; what it lacks is recorded with it. As soon as a server answers
that could take a share, the pack is mended: k of its shares are read, the others computed, and what is owed
is put, leased under the newest stamp. Then a Commit records the new places.

A crash anywhere leaves the debt or pays it: a share that was put and not recorded is found by the next
attempt, which asks before it sends. One pack at a time, with a rest after each; class REPAIR on the wire, so
everything else goes first.

Atomic between awaits: what a Commit says of a pack is read from the metadata in the same step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import trio

from gridfs.files.log import OperationLog
from gridfs.files.reader import Reader
from gridfs.grid.capacity import Capacity
from gridfs.grid.downloader import Downloader, PackRef
from gridfs.grid.errors import GridError, short
from gridfs.grid.roster import ServerId
from gridfs.grid.uploader import Uploader
from gridfs.meta.operations import Commit, PackRecord
from gridfs.meta.packs import as_record
from gridfs.meta.store import Pack
from storage.errors import Missing, StorageError
from storage.format.share import Geometry
from storage.ports import Offload

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DebtsConfig:
    every_s: float = 1.0
    """How often it is looked whether anything is owed and may be paid."""
    again_s: float = 30.0
    """What could not be paid is tried again after this long, even if no server came back."""
    rest_s_max: float = 1.0
    """After each pack there is a rest for as long as it took, but not for longer than this: a pack that took
    long waited for servers."""
    window: int = 4000
    """Packs that are looked through in one step of the loop."""


@dataclass(slots=True)
class DebtsStatistics:
    """Counters since the start."""

    paid: int = 0
    """Shares placed."""
    packs: int = 0
    """Packs mended."""
    failed: int = 0
    """Attempts that ended with a share still owed."""


class Debts:
    """Pays one mount's debts. `stamp` tells the (epoch, sequence) that leases carry."""

    def __init__(
        self,
        log: OperationLog,
        reader: Reader,
        downloader: Downloader,
        uploader: Uploader,
        capacity: Capacity,
        offload: Offload,
        stamp: Callable[[], tuple[int, int]],
        is_allowed: Callable[[], bool],
        config: DebtsConfig,
    ) -> None:
        """`is_allowed`: whether this mount may write now."""
        self._log = log
        self._reader = reader
        self._downloader = downloader
        self._uploader = uploader
        self._capacity = capacity
        self._offload = offload
        self._stamp = stamp
        self._is_allowed = is_allowed
        self._config = config
        self._ended = False
        self._turn = trio.CancelScope()
        self.statistics = DebtsStatistics()

    def end(self) -> None:
        """Pay nothing more: the file system is being unmounted. What is half done the next mount does."""
        self._ended = True
        self._turn.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pay until `end` is called, or cancelled."""
        task_status.started()
        with self._turn:
            while not self._ended:
                await trio.sleep(self._config.every_s)
                try:
                    await self._pay_all()
                except (StorageError, OSError) as error:  # the local disk: it may go on soon
                    logger.warning("shares that are owed wait: %s", error)

    async def _pay_all(self) -> None:
        while self._is_due:
            seen = self._answering()
            paid = self.statistics.paid
            await self._walk(seen)
            if self.statistics.paid == paid:
                await self._until_somebody_is_back(seen)

    @property
    def _is_due(self) -> bool:
        return self._is_allowed() and self._log.metadata.totals().missing_shares > 0

    def _answering(self) -> dict[ServerId, None]:
        return dict.fromkeys(self._capacity.infos)

    async def _until_somebody_is_back(self, seen: dict[ServerId, None]) -> None:
        with trio.move_on_after(self._config.again_s):
            while all(server in seen for server in self._capacity.infos):
                for server in [server for server in seen if server not in self._capacity.infos]:
                    del seen[server]
                await trio.sleep(self._config.every_s)

    async def _walk(self, answering: dict[ServerId, None]) -> None:
        """Once through all packs that lack shares."""
        metadata, window = self._log.metadata, self._config.window
        after = 0
        while after < metadata.last_pack:
            for ref in metadata.owing(after, after + window):
                begin = trio.current_time()
                if await self._pay(ref, answering):
                    took_s = trio.current_time() - begin
                    await trio.sleep(min(took_s, self._config.rest_s_max))
                if not self._is_due:
                    return
            after += window
            await trio.lowlevel.checkpoint()

    async def _pay(self, ref: int, answering: dict[ServerId, None]) -> bool:
        """Place what one pack lacks, as far as that is possible; returns whether anything was tried."""
        try:
            pack = self._log.metadata.pack(ref)
        except Missing:
            return False
        takers = self._uploader.takers(pack.pack_id, pack.places, answering)
        if not takers or not pack.missing:
            return False
        geometry = Geometry(pack.k, pack.n, pack.stream_length)
        wanted = pack.missing[: len(takers)]
        try:
            shares = await self._downloader.mended(
                PackRef(pack.pack_id, geometry, tuple(pack.places)), wanted, self._offload
            )
            found = await self._uploader.complete(pack.pack_id, geometry, shares, takers, self._stamp())
            if found:
                self._record(ref, found)
        except (GridError, StorageError, OSError) as error:
            logger.info("pack %s lacks shares %s: %s", short(pack.pack_id), list(pack.missing), error)
            found = {}
        self.statistics.paid += len(found)
        self.statistics.packs += bool(found)
        self.statistics.failed += len(found) < len(wanted)
        return True

    def _record(self, ref: int, found: dict[int, ServerId]) -> None:
        """New places, added to what is known of the pack by now."""
        pack = self._log.metadata.pack(ref)
        self._log.record(Commit(packs=[_with_places(pack, found)], extents=[]))
        self._reader.forget_pack(ref)


def _with_places(pack: Pack, found: dict[int, ServerId]) -> PackRecord:
    return msgspec.structs.replace(
        as_record(pack),
        places=[found.get(number, place) for number, place in enumerate(pack.places)],
        missing=[number for number in pack.missing if number not in found],
    )
