"""Checkpoints: the metadata themselves go into the grid, so that the journal behind them may be forgotten.

The journal decides when one begins, for its snapshot must hold no operation that waits for data; `run` then
stores the ranges that changed, reads all of it back, and leaves the rest to the journal: to name it in a
record, and to give up what the one before it needed. A checkpoint that fails is forgotten and begun anew
later.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from gridfs.codec.pack import max_plaintext
from gridfs.files.headstate import Base, HeadState
from gridfs.files.log import OperationLog
from gridfs.files.runs import RunIn, only_run, read_runs, store_runs
from gridfs.grid.downloader import Downloader
from gridfs.grid.errors import GridError
from gridfs.grid.uploader import Uploader
from gridfs.meta.checkpoints import Range, Snapshot
from gridfs.meta.operations import KIND_CHECKPOINT, Commit, PackRecord
from gridfs.meta.ranges import KeptPart, encode_root
from storage.errors import Corrupt, Exhausted, StorageError
from storage.ports import Machine

logger = logging.getLogger(__name__)

JOURNAL_PACKS_MAX = 128
"""Journal packs after which a checkpoint is due: each names all the others."""


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    k: int
    n: int
    journal_bytes: int = 16 << 20
    """Bytes of journal packs after which one is due: what a recovery has to read and replay."""
    retry_s: float = 30.0
    """Pause after one that failed."""


@dataclass(frozen=True, slots=True)
class Made:
    """A checkpoint that is stored and was read back."""

    root: PackRecord
    number: int
    """Of the last operation in it."""
    ranges: list[Range]
    """What was written anew ..."""
    parts: list[KeptPart]
    """... and where it lies."""


class Checkpointer:
    """Makes the checkpoints of one mount, one at a time."""

    def __init__(
        self,
        machine: Machine,
        log: OperationLog,
        uploader: Uploader,
        downloader: Downloader,
        state: HeadState,
        config: CheckpointConfig,
    ) -> None:
        self._machine = machine
        self._log = log
        self._uploader = uploader
        self._downloader = downloader
        self._state = state
        self._config = config
        self._snapshot: Snapshot | None = None
        self._begun = trio.Event()
        self._not_before = -1.0
        self.made: Made | None = None
        """What the next record should name; None again when it does."""
        self.count = 0
        """Checkpoints made since the start."""

    @property
    def is_under_way(self) -> bool:
        """Whether one was begun that W head servers have no record of yet."""
        return self._snapshot is not None or self.made is not None

    def is_due(self, base: Base) -> bool:
        """Whether one should begin, the sooner the better."""
        if self.is_under_way or trio.current_time() < self._not_before:
            return False
        return base.journal_bytes >= self._config.journal_bytes or len(base.journals) >= JOURNAL_PACKS_MAX

    def begin(self) -> None:
        """Take the snapshot, at a moment when every operation may be shipped."""
        self._snapshot = self._log.begin_checkpoint()
        self._begun.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store what `begin` began, until cancelled."""
        task_status.started()
        try:
            while True:
                await self._begun.wait()
                self._begun = trio.Event()
                assert self._snapshot is not None
                try:
                    self.made = await self._store(self._snapshot)
                    self.count += 1
                except (GridError, StorageError, OSError) as error:
                    logger.warning("a checkpoint failed and will be made later: %s", error)
                    self._not_before = trio.current_time() + self._config.retry_s
                finally:
                    self._close()
        finally:
            self._close()

    def _close(self) -> None:
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None

    async def _store(self, snapshot: Snapshot) -> Made:
        """Raises what storing and reading packs raise, Corrupt where something reads back wrong."""
        begin = trio.current_time()
        limit = max_plaintext(self._config.k) // 2
        written: list[tuple[KeptPart, PackRecord]] = []
        while parts := await self._machine.offload.run(snapshot.next_parts, limit):
            runs = [part for _, _, part in parts]
            pack, offsets = await self._put(runs)
            places = [RunIn(pack, run, offsets[run], len(data)) for run, data in enumerate(runs)]
            self._compare(runs, await read_runs(self._downloader, places))
            written += [
                (KeptPart(*which, number, pack.pack_id, *place[1:]), pack)
                for (which, number, _), place in zip(parts, places, strict=True)
            ]
        root = encode_root(await self._machine.offload.run(snapshot.root, written))
        if len(root) > max_plaintext(self._config.k):
            raise Exhausted(f"the list of a checkpoint's parts, {len(root)} bytes, fits into no pack")
        pack, _ = await self._put([root])
        self._compare([root], await read_runs(self._downloader, [only_run(pack)]))
        logger.info(
            "checkpoint at operation %d: %d ranges in %d packs, %.1f s",
            snapshot.number,
            len(snapshot.ranges),
            len({pack.pack_id for _, pack in written}),
            trio.current_time() - begin,
        )
        return Made(pack, snapshot.number, snapshot.ranges, [kept for kept, _ in written])

    async def _put(self, runs: list[bytes]) -> tuple[PackRecord, list[int]]:
        config = self._config
        pack, offsets = await store_runs(
            self._machine, self._uploader, runs, (config.k, config.n), self._state.stamp, KIND_CHECKPOINT
        )
        self._log.record(Commit(packs=[pack], extents=[]))
        return pack, offsets

    def _compare(self, stored: list[bytes], found: list[memoryview]) -> None:
        if any(one != other for one, other in zip(stored, found, strict=True)):
            raise Corrupt("a checkpoint reads back with other bytes than were written")
