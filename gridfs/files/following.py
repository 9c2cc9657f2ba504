"""Following: a mount that only reads keeps up with what somebody else writes.

The head servers are asked for records behind the newest one seen. One counts only when a quorum has it: any
other might be given up, and what was shown once must stay. Its operations and the data it carries come in at
once, between awaits, so a reader sees the state of one record or of the next. Then the kernel is told what it
may have kept of the old one.

Nothing here is a promise to anybody: the local database is made anew from a checkpoint where it is too old or
of another history, and the spool is scratch, for data that is in records only.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import trio

from gridfs.codec.headkeys import HeadKeys
from gridfs.files.contents import Contents
from gridfs.files.dirty import DirtyData
from gridfs.files.headstate import HeadState, save_head_state
from gridfs.files.history import BehindCheckpoint, History, Tail
from gridfs.files.log import OperationLog
from gridfs.files.reader import Reader
from gridfs.files.rebuilding import Remaking
from gridfs.files.restoring import restore
from gridfs.files.salvage import touched
from gridfs.files.spoolformat import CHUNK
from gridfs.grid.errors import GridError, NotEnoughServers
from gridfs.grid.heads import HeadServers
from gridfs.meta.operations import Write, encode
from gridfs.meta.records import CarriedData, HeadBody
from storage.errors import Refused, StorageError
from storage.format.head import HeadRecord
from storage.ports import Disk

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FollowConfig:
    poll_s: float = 1.0
    retry_s_max: float = 5.0
    durable_every_s: float = 15.0


class Follower:
    """Keeps one mount's metadata up to date, for as long as `run` runs."""

    def __init__(
        self,
        log: OperationLog,
        dirty: DirtyData,
        contents: Contents,
        heads: HeadServers,
        history: History,
        keys: HeadKeys,
        state: HeadState,
        remaking: Remaking,
        reader: Reader,
        config: FollowConfig,
    ) -> None:
        self._log = log
        self._dirty = dirty
        self._contents = contents
        self._heads = heads
        self._history = history
        self._keys = keys
        self._state = state
        self._remaking = remaking
        self._reader = reader
        self._config = config
        self._scratch = 0
        """Number of the last record in the spool."""
        self._last_shown = 0
        """Number of the last operation in the state that is shown."""
        self._newest: HeadRecord | None = None
        """What is shown is the state at this record."""
        self.changed: Callable[[Collection[int]], Awaitable[None]] = _nobody
        """Told the inodes whose content or attributes are others now."""
        self.trouble: str | None = None
        """Why nothing newer can be seen just now, in words."""
        self._seen_at = trio.current_time()
        """When the head servers last told what is newest."""

    @property
    def seconds_behind(self) -> float:
        """Since when what is shown may be old."""
        return trio.current_time() - self._seen_at

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow until cancelled."""
        task_status.started()
        config, delay = self._config, self._config.poll_s
        durable_at = trio.current_time()
        while True:
            await trio.sleep(delay)
            try:
                await self.catch_up()
                if trio.current_time() >= durable_at + config.durable_every_s:
                    durable_at = trio.current_time()
                    await self._log.make_durable()
            except (GridError, StorageError, OSError) as error:
                if self.trouble is None:
                    logger.warning("following waits: %s", error)
                self.trouble = str(error)
                delay = min(2 * delay, config.retry_s_max)
            else:
                if self.trouble is not None:
                    logger.info("following goes on")
                self.trouble = None
                delay = config.poll_s

    async def catch_up(self) -> bool:
        """Show the newest record that counts; returns whether that was news. Raises NotEnoughServers where
        no quorum answers, and what reading the grid raises; what was shown before stays then."""
        newest = await self._find()
        if newest is None:
            return False
        body = self._history.body(newest)
        number, is_other = self._log.number, not await self._goes_on(newest)
        if is_other:
            logger.warning("what is here is of another history: the metadata are made anew from the grid")
            number = await self._remaking.make(newest, body)
        try:
            tail = await self._history.behind(newest, number)
        except BehindCheckpoint as error:
            logger.warning("the metadata are made anew from the grid: %s", error)
            is_other = True
            number = await self._remaking.make(newest, body)
            tail = await self._history.behind(newest, number)
        carried = await self._history.carried(newest)
        inodes = self._show(newest, tail, carried, is_other=is_other)
        if is_other:
            inodes = self._log.metadata.inodes()
        try:
            await self.changed(inodes)
        finally:
            self._log.commit()
        await self._log.turn()
        return True

    async def _find(self) -> HeadRecord | None:
        """The newest record behind the one shown that a quorum has, of the head servers that it names."""
        heads, shown, state = self._heads, self._newest, self._state
        after = shown.stamp if shown else None
        # What was shown before this start counted then: it counts, whoever of those who had it is here now.
        counts = state.previous if shown is None else None
        news = await heads.news(after, counts)
        while news.newest is not None and self._turn_to(self._history.body(news.newest)):
            news = await heads.news(after, counts)
        self._history.learn(news.records)
        heads.require("quorum", news.answered, "reading the head log")
        if news.strange and news.kept is None:
            await self._check_keys()
        kept = news.kept
        if not news.may_be_old:
            self._seen_at = trio.current_time()
        is_lost = kept is None or kept.stamp < (state.recorded, state.sequence)
        if shown is None and (news.may_be_old or (state.sequence and is_lost)):
            raise NotEnoughServers("finding the newest record", len(news.answered), len(heads.servers))
        return kept

    async def _check_keys(self) -> None:
        """Raise Refused where others sign the records now."""
        if self._keys.are_replaced(standing.succession for standing in await self._heads.look()):
            raise Refused(
                "the file system has new keys since the read key was written: ask for another one "
                "(gridfs key read), forget this folder and follow anew"
            )

    def _turn_to(self, body: HeadBody) -> bool:
        """Ask the head servers that the newest record names, from now on; returns whether these are others.
        As long as it may be given up it names those before as well, and they tell."""
        heads, lists = self._heads, (body.heads, body.leaving)
        if lists == (heads.now, heads.leaving):
            return False
        heads.use(*lists)
        self._state.heads, self._state.leaving = lists
        return True

    async def _goes_on(self, newest: HeadRecord) -> bool:
        """Whether the record is of the same history as what is here."""
        state = self._state
        if not self._log.number or newest.record_hash() == state.previous:
            return True
        return newest.mount_id == state.mount_id or await self._history.descends(newest, state.previous)

    def _show(
        self, newest: HeadRecord, tail: Tail, carried: list[tuple[int, CarriedData]], *, is_other: bool
    ) -> Collection[int]:
        """In one step: what is shown from now on is the state at `newest`. Returns the inodes it changed.

        `is_other`: metadata that were made anew take the place of those in use first.
        """
        log, state = self._log, self._state
        if is_other:
            self._remaking.put(log.metadata)
            log.begin_anew()
            self._dirty.forget_all()
            self._reader.forget()
            self._contents.forget_all_readahead()
        inodes: dict[int, None] = {}
        for number, encoded in tail.operations:
            operation = log.adopt(number, encoded)
            self._dirty.replay(number, operation, None, 0)
            inodes.update(dict.fromkeys(touched(operation)))

        def keep(data: CarriedData, start: int, view: memoryview) -> None:
            self._keep(data, start, view)
            inodes[data.ino] = None

        # Of records before the one shown everything is here, or was taken away again since.
        since = self._last_shown if self._newest is not None and not is_other else 0
        restore(log, self._dirty, [each for each in carried if each[0] >= since], keep)
        # Records with data that are still needed begin behind the newest journal pack.
        log.metadata.drop_outbox(tail.gathered)
        self._last_shown = log.number
        state.epoch = state.recorded = newest.epoch
        state.sequence = newest.sequence
        state.previous, state.mount_id = newest.record_hash(), newest.mount_id
        save_head_state(log.metadata, state)
        self._newest = newest
        for ino in inodes:
            self._contents.forget_readahead(ino)
        return inodes

    def _keep(self, data: CarriedData, start: int, view: memoryview) -> None:
        """Bytes that are in records only: `view` is part of `data`, and goes to `start` in the file."""
        self._scratch += 1
        operation = encode(Write(data.ino, start, len(view), None))
        source = self._log.spool.append(self._scratch, operation, view, start % CHUNK)
        self._dirty.written(data.ino, start, len(view), data.number, source)
        self._log.spool.reclaim(self._scratch)


def clear_scratch(disk: Disk, directory: str) -> None:
    """Remove what the last run left in the spool: what it held is in records, and is taken from there."""
    disk.make_directory(directory)
    for name in disk.names(directory):
        disk.remove(f"{directory}/{name}")


async def _nobody(inodes: Collection[int]) -> None:
    del inodes
