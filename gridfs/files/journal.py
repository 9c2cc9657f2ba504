"""The journal: operations leave this machine in order, as head log records and journal packs.

`run` claims an epoch from the head servers, then ships what the metadata's outbox holds: small amounts
inline in a record, larger ones gathered into a journal pack that a record names. `shipped` waits until
everything up to a number is on W head servers, `synced` for a file's data too, of which little travels
in the record itself; all who wait share one record (group commit).

Order rules kept here: a record never names data that is not stored (`barriers`); the first record of an
epoch, and the first after gathering, stands for itself (`carrying`); the outbox is emptied only after W
servers have the record that names the journal pack; a checkpoint holds no operation that waits for data, and
what the one before it needed is given up only after W servers have a record that names it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from gridfs.codec.headkeys import HeadKeys
from gridfs.files.barriers import Barriers
from gridfs.files.carrying import Carrying, Picked
from gridfs.files.checkpointing import Checkpointer
from gridfs.files.dirty import DirtyData
from gridfs.files.gathering import Gatherer
from gridfs.files.headstate import CLIENT_SIZE, Base, HeadState
from gridfs.files.history import BehindCheckpoint, History
from gridfs.files.log import OperationLog
from gridfs.files.lull import PATIENCE_S, Lull
from gridfs.files.rebuilding import RebuildNeeded
from gridfs.files.restoring import restore
from gridfs.files.writer import Writer
from gridfs.grid.errors import GridError, NotEnoughServers
from gridfs.grid.heads import Claim, HeadServers
from gridfs.grid.uploader import Uploader
from gridfs.meta.operations import Retire
from gridfs.meta.records import (
    SALT_SIZE,
    HeadBody,
    Settings,
    brief,
    operations_max,
    seal_head,
)
from gridfs.meta.store import ROOT
from storage.errors import Conflict, StorageError
from storage.format.head import HeadRecord, trim_signed_bytes
from storage.ports import Machine

logger = logging.getLogger(__name__)

GATHER_BYTES = 4 << 20
"""Operations and data in records since the newest journal pack: from here on they are gathered."""
SHORT_PATIENCE_S = 0.5
"""How long somebody waits behind operations that wait for data, before changes are held up for him."""


class TakenOver(Exception):
    """Another mount writes this file system now. `str()` is one line for a person."""


class ShutOut(TakenOver):
    """The recovery key has made new keys, and this machine has the old ones."""

    def __init__(self) -> None:
        super().__init__(
            "this machine was shut out: the file system has new keys; `gridfs spool export` gets out what is "
            "only here, `gridfs forget` and then `gridfs recover` with the recovery key let it in again"
        )


@dataclass(frozen=True, slots=True)
class JournalConfig:
    k: int
    n: int
    quorum: int
    settings: Settings
    generation: int = 1
    """Of the list of head servers."""
    takes_over: bool = False
    """Go on from what another client has written last."""
    ship_every_s: float = 5.0
    """Operations nobody waits for leave after this long."""
    retry_s: float = 0.5
    retry_s_max: float = 5.0


@dataclass(frozen=True, slots=True)
class _Draft:
    """A record on its way to the head servers."""

    record: HeadRecord
    last: int
    """The last operation that it stands for."""
    size: int
    """Bytes of operations and data inside it."""
    gathered: int
    """The last operation in what it rests on."""
    checkpointed: int
    picked: Picked


class Journal:
    """Ships the outbox of one mount."""

    def __init__(
        self,
        machine: Machine,
        log: OperationLog,
        dirty: DirtyData,
        writer: Writer,
        uploader: Uploader,
        checkpointer: Checkpointer,
        lull: Lull,
        heads: HeadServers,
        history: History,
        keys: HeadKeys,
        state: HeadState,
        config: JournalConfig,
    ) -> None:
        self._machine = machine
        self._log = log
        self._dirty = dirty
        self._writer = writer
        self._checkpointer = checkpointer
        self._lull = lull
        self._heads = heads
        self._history = history
        self._keys = keys
        self._config = config
        self._name = keys.log
        self._client = state.client
        """Whose folder this was when it was opened."""
        self._wanted = 0
        self._wake = trio.Event()
        self._progress = trio.Event()
        self._carrying = Carrying(log, dirty, writer)
        self._barriers = Barriers(log, dirty, writer, self._carrying)
        self._gatherer = Gatherer(machine, log, uploader, state, config.k, config.n)
        self._record_bytes = 0
        self._begins = True
        """The next record stands for itself."""
        self._is_ours = False
        """W head servers have a record of this epoch. Before, one that too few took in an epoch before may
        still be found by the next client, so nothing counts as shipped that does not know of it."""
        self._is_settled = False
        """What the newest record knows is here, data included."""
        self._draft: _Draft | None = None
        """What was sent and not yet taken by W servers. Some may have it, and they take no other in its
        place: it is sent again as it is until W have it."""
        self._contested = False
        """A head server refused our record: the epoch is claimed anew, and if it is lost that tells so."""
        self.claimed = False
        self.trouble: str | None = None
        """Why nothing can be shipped just now, in words."""
        self.taken_over: str | None = None
        self.state = state

    @property
    def up_to(self) -> int:
        """Number of the last operation that is on W head servers."""
        return self.state.shipped

    @property
    def base(self) -> Base:
        """The checkpoint and the journal packs that records rest on."""
        return self._gatherer.base

    # ---- starting

    async def claim(self, enough: int) -> None:
        """Claim an epoch of our own. Returns with `enough` answers, the quorum or not.

        Raises NotEnoughServers with fewer answers, or without the quorum where another client wrote last: it
        may go on until a quorum has promised us the epoch. TakenOver if the newest record is another's,
        RebuildNeeded where this machine's metadata cannot be brought up to date.
        """
        was_new, knows = self.state.is_new, frozenset(self.state.runs)
        if not was_new:
            await self._look_first(knows)
        self.state.begin_run(self._machine.entropy.token(16))
        epoch, step = max(self.state.epoch, self._keys.epoch_floor) + 1, 1
        while True:
            # Durable before it is used: after a crash, of the machine too, the newest record must be known
            # as our own, and an epoch must not begin twice.
            self.state.epoch = epoch
            self._gatherer.save()
            await self._log.settle()
            mine = self._keys.claim(epoch, self.state.mount_id)
            claim = await self._heads.claim(mine)
            if claim.promises + claim.refused < enough:
                raise NotEnoughServers("asking the head servers", claim.promises, enough)
            if not claim.refused:
                break
            await self._check_keys()
            epoch, step = epoch + step, step * 2
        quorum = self._config.quorum
        if claim.newest is not None and not self._is_known(claim.newest, knows) and claim.promises < quorum:
            claim = await self._heads.claim(mine, quorum)  # those that were only late are waited for
            if claim.promises < quorum:
                raise NotEnoughServers("taking over from another client", claim.promises, quorum)
        await self._adopt(claim, was_new, knows)
        self._barriers.hold_again(self.state.shipped)
        self.claimed = claim.promises >= quorum
        self._begins = True

    async def _look_first(self, knows: frozenset[bytes]) -> None:
        """Before anything is claimed: this mount may have to give way, and must not shut the other out."""
        is_genuine = self._keys.verifier()
        shown = [standing.newest for standing in await self._heads.look()]
        genuine = [record for record in shown if record is not None and is_genuine(record)]
        newest = max(genuine, key=lambda record: record.stamp, default=None)
        if newest is None or self._is_known(newest, knows):
            return
        # W servers have ours: whoever went on from there is above it. Below are servers that lag behind.
        own = self.state.sequence - self._is_of_this_client(newest)
        if newest.sequence > own:
            self._check_stranger(newest, self._history.body(newest))

    def _is_of_this_client(self, record: HeadRecord) -> bool:
        return record.mount_id[:CLIENT_SIZE] == self.state.client

    def _is_known(self, newest: HeadRecord, knows: frozenset[bytes]) -> bool:
        return newest.record_hash() == self.state.previous or newest.mount_id in knows

    async def _check_keys(self) -> None:
        """Raise ShutOut if it is for newer keys that head servers refuse us."""
        for standing in await self._heads.look():
            if self._keys.yields_to(standing.succession):
                raise ShutOut

    async def _adopt(self, claim: Claim, was_new: bool, knows: frozenset[bytes]) -> None:
        """Take over the newest record; a local state that is older is rolled forward first.

        What it says counts as shipped where W servers are known to have it, else it is shipped again.
        `knows`: mount ids of this folder's own runs.
        """
        state, newest = self.state, claim.newest
        if newest is None:
            if state.shipped:
                logger.warning("the head servers that answered know no record of this file system")
            return
        body = self._history.body(newest)
        is_latest = newest.record_hash() == state.previous
        is_known = self._is_known(newest, knows)
        if newest.sequence < state.sequence and self._is_of_this_client(newest):
            return  # those who answered have older records than W servers took from us
        if not is_known and not was_new:
            self._check_stranger(newest, body)
            if not await self._history.descends(newest, state.previous):
                reason = "nothing proves that the grid goes on from what this machine has"
                raise self._rebuild_needed(reason, newest, body, keeps_spool=False)
        is_ahead = body.last > self._log.number
        carried = [] if is_latest and self._is_settled else await self._history.carried(newest)
        if is_ahead:
            await self._roll_forward(newest, body, keeps_spool=is_known)
        if carried:
            self._carrying.restored(restore(self._log, self._dirty, carried))
        state.sequence = newest.sequence
        if is_latest or claim.holders >= self._config.quorum:
            state.shipped = max(state.shipped, body.last)
        state.previous = newest.record_hash()
        self._gatherer.save()
        if carried:
            await self._log.spool.sync()
        if is_ahead or carried:
            # The spool goes on behind what it lacks: only once nothing can undo that any more.
            await self._log.settle()
        self._is_settled = True

    def _check_stranger(self, newest: HeadRecord, body: HeadBody) -> None:
        """The newest record is of no run of this folder: of another client, or of a copy of this folder that
        went on after the copy was made. Then only what the grid has is certain here: what was shipped. Data
        that never got out would come back into files with which the other one has gone on since.
        """
        own, own_bytes = max(0, self._log.number - self.state.shipped), self._dirty.bytes
        held = f"{own} operations and {own_bytes} bytes" if own or own_bytes else ""
        if not self._is_of_this_client(newest) and not self._config.takes_over:
            rest = f"; {held} here are not in the grid (gridfs spool export)" if held else ""
            raise TakenOver(
                "another client has written this file system since it was last mounted here: "
                f"mount with -o takeover to go on from what it wrote, and to shut it out{rest}"
            )
        if held:
            reason = f"the grid has another history, {held} of this machine are set aside"
            raise self._rebuild_needed(reason, newest, body, keeps_spool=False)

    def _rebuild_needed(
        self, reason: str, newest: HeadRecord, body: HeadBody, *, keeps_spool: bool
    ) -> RebuildNeeded:
        root = self._log.metadata.inode(ROOT)
        assert root is not None
        return RebuildNeeded(reason, newest, body, root, self._client, keeps_spool=keeps_spool)

    async def _roll_forward(self, newest: HeadRecord, body: HeadBody, *, keeps_spool: bool) -> None:
        try:
            tail = await self._history.behind(newest, self._log.number)
        except BehindCheckpoint as error:
            raise self._rebuild_needed(str(error), newest, body, keeps_spool=keeps_spool) from None
        logger.warning("the grid is ahead of this machine by %d operations", len(tail.operations))
        for number, encoded in tail.operations:
            self._dirty.replay(number, self._log.adopt(number, encoded), None, 0)
        self._gatherer.adopt(tail.base, tail.gathered)

    # ---- shipping

    def hold(self, number: int, ino: int) -> None:
        """Operation `number` names `ino` anew: it is shipped after the data written to it before."""
        self._barriers.hold(number, ino)

    async def synced(self, ino: int, number: int) -> None:
        """Wait until the inode's data and all operations up to `number` are in the grid.

        Little data travels in the record itself, more is stored in packs first. Raises TakenOver.
        """
        self._check_owner()
        safe_from = self._barriers.safe_from(ino, number)
        if safe_from is not None and self._is_shipped(max(number, safe_from)):
            return
        if self._carrying.takes(ino, self._log.number):
            want = self._carrying.want(ino, number)
            self._wake.set()
            await want.settled.wait()
            if want.is_carried:
                return
            self._check_owner()
        await self._writer.stored(ino, number)
        await self.shipped(self._log.number)

    async def shipped(self, number: int) -> None:
        """Wait until every operation up to `number` is on the quorum of head servers.

        Raises TakenOver when another mount has taken the file system.
        """
        while not self._is_shipped(number):
            self._check_owner()
            self._wanted = max(self._wanted, number)
            self._wake.set()
            await self._progress.wait()

    async def begun(self) -> None:
        """Wait until a record of this epoch that stands for itself is on the quorum of head servers.

        From then on nothing depends on what earlier epochs, or keys, have written there. Raises TakenOver.
        """
        while not self._is_ours:
            self._check_owner()
            self._wanted = max(self._wanted, 1)
            self._wake.set()
            await self._progress.wait()

    def _is_shipped(self, number: int) -> bool:
        return number == 0 or (self._is_ours and self.state.shipped >= number)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ship until cancelled, or until another mount took over; failures are retried for ever."""
        task_status.started()
        with self._lull:
            await self._ship_all()

    async def _ship_all(self) -> None:
        delay = self._config.retry_s
        while self.taken_over is None:
            try:
                if not self.claimed:
                    await self._reclaim()
                await self._turn()
            except TakenOver as error:
                self.taken_over = str(error)
                self._carrying.give_up()
                self._writer.halt(error)
                logger.error("this mount lost the file system to another one: %s", error)
            except (GridError, StorageError, OSError) as error:
                self._lull.end()
                # A head server may have been away when the epoch was claimed: then it knows nothing of it.
                self.claimed = False
                if isinstance(error, Conflict) and not self._contested:
                    self._contested = True
                    continue
                if self.trouble is None:
                    logger.warning("shipping waits: %s", error)
                self.trouble = str(error)
                await trio.sleep(delay)
                delay = min(2 * delay, self._config.retry_s_max)
            else:
                self._contested = False
                self.trouble = None
                delay = self._config.retry_s
            self._progress_made()

    async def _turn(self) -> None:
        """Wait until something is to be shipped, and ship it."""
        if not (self._is_wanted or self._barriers.is_crowded or self._lull.is_forced):
            await self._sleep()
        limit = self._barriers.limit()
        if limit < self._log.number:
            self._barriers.push(limit)
        is_wanted = self._carrying.is_wanted or self._is_asked
        if self._draft is not None or limit > self.state.shipped or is_wanted:
            await self._ship()
        elif limit < self._log.number:
            with trio.move_on_after(self._config.ship_every_s):
                await self._writer.progressed()  # held back by data that is on its way
        is_still, is_due = self._barriers.limit() == self._log.number, self._checkpointer.is_due(self.base)
        if is_still and is_due:
            self._checkpointer.begin()
        if not is_still and (is_due or self._barriers.is_crowded):
            self._lull.want(SHORT_PATIENCE_S if self._is_wanted else PATIENCE_S)
        else:
            self._lull.end()

    @property
    def _is_wanted(self) -> bool:
        return self._wanted > self.state.shipped or self._carrying.is_wanted or self._is_asked

    @property
    def _is_asked(self) -> bool:
        """Whether somebody waits for the first record of this epoch."""
        return not self._is_ours and self._wanted > 0

    async def _sleep(self) -> None:
        """Until somebody waits for a record, or operations nobody waits for are due."""
        self._wake = trio.Event()
        with trio.move_on_after(self._config.ship_every_s):
            await self._wake.wait()

    async def _reclaim(self) -> None:
        mine = self._keys.claim(self.state.epoch, self.state.mount_id)
        claim = await self._heads.claim(mine, self._config.quorum)
        if claim.refused:
            await self._check_keys()
            raise TakenOver("another client has claimed this file system")
        if claim.promises < self._config.quorum:
            raise NotEnoughServers("claiming the head log", claim.promises, self._config.quorum)
        if self._draft is None:
            await self._adopt(claim, False, frozenset(self.state.runs))
            self._begins = True
        self.claimed = True

    async def _ship(self) -> None:
        """Send the next record, or again the one that too few servers took."""
        if self._draft is None:
            self._draft = await self._compose()
        draft, state = self._draft, self.state
        if draft is None:
            await trio.lowlevel.checkpoint()
            return
        await self._heads.append(draft.record, self._config.quorum)
        self._draft = None
        self._is_ours = True
        state.sequence = draft.record.sequence
        state.previous = draft.record.record_hash()
        state.shipped = max(state.shipped, draft.last)
        state.runs = [state.mount_id]
        self._begins = False
        self._carrying.landed(draft.picked)
        self._count(draft.size)
        emptied = draft.gathered > state.emptied
        if emptied:
            self._log.metadata.drop_outbox(draft.gathered)
            state.emptied = draft.gathered
        # In one transaction with the outbox: what it lacks is in packs we know of.
        self._gatherer.save()
        self._settle_checkpoint(draft.checkpointed)
        if emptied:
            await self._trim()

    def _settle_checkpoint(self, named: int) -> None:
        """W servers have a record that names the checkpoint of operation `named`: what it replaced may go."""
        made = self._checkpointer.made
        if made is None or made.number != named:
            return
        metadata = self._log.metadata
        metadata.finish_checkpoint(made.ranges, made.parts)
        self._checkpointer.made = None
        if superseded := metadata.superseded(self.base.packs):
            self._log.record(Retire(superseded))

    def _count(self, size: int) -> None:
        """Ask the writer for what records carry, so that little is left to be carried again when they are
        gathered: when half of what is gathered at a time is there, and once more near its end."""
        before, after = self._record_bytes, self._record_bytes + size
        if any(before < GATHER_BYTES * part // 8 <= after for part in (4, 7)):
            self._carrying.store()
        self._record_bytes = after

    async def _compose(self) -> _Draft | None:
        """The next record; None if there is nothing to say, or if data has to be stored first."""
        state = self.state
        made = self._checkpointer.made
        if made is not None and made.number > self.base.checkpointed:
            await self._log.settle()  # or the loss of power would leave metadata older than any journal pack
            self._gatherer.rebase(made.root, made.number)
            self._begins = True
            self._record_bytes = 0
        room = operations_max(len(self._heads.servers), self._config.n)
        while True:
            limit = self._barriers.limit()
            after = state.gathered if self._begins else state.shipped
            operations = self._gatherer.operations(after, limit, room)
            size = sum(len(operation) + 16 for _, operation in operations)
            complete = not self._gatherer.operations(operations[-1][0] if operations else after, limit, 1)
            if complete and size <= room and self._record_bytes + size <= GATHER_BYTES:
                break
            await self._gatherer.gather(limit)
            self._begins = True
            self._record_bytes = 0
        # No awaits from here: the record tells the state at `limit`.
        picked = self._carrying.pick(limit, room - size, begins=self._begins)
        if picked is None:
            self._carrying.store()
            self._barriers.store()
            await self._writer.progressed()
            return None
        if not operations and not picked.up_to and not self._begins:
            return None
        record = self._sign(after, limit, operations, picked)
        return _Draft(record, limit, size + picked.size, state.gathered, self.base.checkpointed, picked)

    def _sign(self, after: int, last: int, operations: list[tuple[int, bytes]], picked: Picked) -> HeadRecord:
        state, config = self.state, self._config
        body = HeadBody(
            head_servers=list(self._heads.servers),
            generation=config.generation,
            quorum=config.quorum,
            after=after,
            last=last,
            journal=self.base.newest,
            gathered=state.gathered,
            operations=operations,
            begins=picked.begins,
            carries=self._carrying.carries(picked),
            data=picked.data,
            settings=config.settings,
            checkpoint=self.base.checkpoint,
            checkpointed=self.base.checkpointed,
            earlier=brief(self.base.journals[:-1]),
        )
        sequence = state.sequence + 1
        salt = self._machine.entropy.token(SALT_SIZE)
        payload = seal_head(body, self._keys.tree.journal_key, salt, state.epoch, sequence)
        unsigned = HeadRecord(state.epoch, sequence, state.previous, payload, bytes(64), state.mount_id)
        signature = self._keys.sign(unsigned.signed_bytes(self._name))
        return HeadRecord(state.epoch, sequence, state.previous, payload, signature, state.mount_id)

    async def _trim(self) -> None:
        """Records before the newest are in journal packs now."""
        signature = self._keys.sign(trim_signed_bytes(self._name, self.state.stamp))
        await self._heads.trim(self.state.stamp, signature)

    def _check_owner(self) -> None:
        if self.taken_over is not None:
            raise TakenOver(self.taken_over)

    def _progress_made(self) -> None:
        self._progress.set()
        self._progress = trio.Event()
