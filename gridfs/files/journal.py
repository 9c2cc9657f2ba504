"""The journal: operations leave this machine in order, as head log records and journal packs.

Once the mount has its epoch (`claiming`), `run` ships what the metadata's outbox holds: small amounts inline
in a record, larger ones gathered into a journal pack that a record names. `shipped` waits until everything up
to a number is on W head servers, `synced` for a file's data too, of which little travels in the record
itself; all who wait share one record (group commit).

Order rules kept here: a record never names data that is not stored (`barriers`); the first record of an
epoch, and the first after gathering, stands for itself (`carrying`); the outbox is emptied only after W
servers have the record that names the journal pack; a checkpoint holds no operation that waits for data, and
what the one before it needed is given up only after W servers have a record that names it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import trio

from gridfs.codec.headkeys import HeadKeys
from gridfs.codec.headlist import HeadList
from gridfs.files.barriers import Barriers
from gridfs.files.carrying import Carrying, Picked
from gridfs.files.checkpointing import Checkpointer
from gridfs.files.claiming import Claimer, TakenOver
from gridfs.files.dirty import DirtyData
from gridfs.files.gathering import Gatherer
from gridfs.files.headstate import Base, HeadState
from gridfs.files.history import History
from gridfs.files.log import OperationLog
from gridfs.files.lull import PATIENCE_S, Lull
from gridfs.files.writer import Writer
from gridfs.grid.errors import GridError
from gridfs.grid.heads import Claim, HeadServers
from gridfs.grid.uploader import Uploader
from gridfs.meta.operations import Retire
from gridfs.meta.records import SALT_SIZE, HeadBody, Settings, brief, operations_max, seal_head
from storage.errors import Conflict, Refused, StorageError
from storage.format.head import HeadRecord, trim_signed_bytes
from storage.ports import Machine

logger = logging.getLogger(__name__)

GATHER_BYTES = 4 << 20
"""Operations and data in records since the newest journal pack: from here on they are gathered."""
RECORDS_MAX = 8192
"""The same for records, however small: head servers keep twice as many."""
SHORT_PATIENCE_S = 0.5
"""How long somebody waits behind operations that wait for data, before changes are held up for him."""


@dataclass(frozen=True, slots=True)
class JournalConfig:
    k: int
    n: int
    settings: Settings
    generation: int = 1
    """Of the list of head servers in the configuration: one before it was given up."""
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


@dataclass(slots=True, eq=False)
class _Change:
    """Somebody wants others to keep the head log."""

    now: HeadList
    error: Exception | None = None
    decided: trio.Event = field(default_factory=trio.Event)


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
        self._keys = keys
        self._config = config
        self._name = keys.log
        self._wanted = 0
        self._wake = trio.Event()
        self._progress = trio.Event()
        self._carrying = Carrying(log, dirty, writer)
        self._barriers = Barriers(log, dirty, writer, self._carrying)
        self._gatherer = Gatherer(machine, log, uploader, state, config.k, config.n)
        self._claimer = Claimer(
            machine,
            log,
            dirty,
            self._carrying,
            self._gatherer,
            heads,
            history,
            keys,
            state,
            takes_over=config.takes_over,
            generation=config.generation,
        )
        self._record_bytes = 0
        self._begins = True
        """The next record stands for itself."""
        self._is_ours = False
        """W head servers have a record of this epoch. Before, one that too few took in an epoch before may
        still be found by the next client, so nothing counts as shipped that does not know of it."""
        self._draft: _Draft | None = None
        """What was sent and not yet taken by W servers. Some may have it, and they take no other in its
        place: it is sent again as it is until W have it."""
        self._change: _Change | None = None
        self._says_heads = False
        """The next record is sent for what it says of the head servers."""
        self._contested = False
        """A head server refused our record: the epoch is claimed anew, and if it is lost that tells so."""
        self.trouble: str | None = None
        """Why nothing can be shipped just now, in words."""
        self.taken_over: str | None = None
        self.state = state

    @property
    def up_to(self) -> int:
        """Number of the last operation that is on W head servers."""
        return self.state.shipped

    @property
    def is_owner(self) -> bool:
        """Whether a quorum of head servers has promised this mount that nobody else writes."""
        return self._claimer.has_quorum

    @property
    def base(self) -> Base:
        """The checkpoint and the journal packs that records rest on."""
        return self._gatherer.base

    # ---- starting

    async def claim(self, early: Claim | None = None) -> None:
        """See `Claimer.claim`."""
        told = await self._claimer.claim(early)
        self._says_heads = self._heads.leaving is not None
        # A quorum may have the newest record, though fewer showed it: ours must not tell less.
        self._barriers.hold_again(max(self.state.shipped, told))

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

    async def reach(self) -> None:
        """Raises unless a quorum of head servers answers just now: TakenOver, NotEnoughServers."""
        self._check_owner()
        await self._heads.reach()

    async def change_heads(self, now: HeadList) -> None:
        """Let other servers keep the head log: a record that says so is on a quorum of both lists, and one
        more on a quorum of the new one, when this returns.

        Raises Refused while another change is under way, NotEnoughServers where either list has no quorum
        just now (nothing has changed then), TakenOver.
        """
        self._check_owner()
        if self._change is not None or self._heads.leaving is not None:
            raise Refused("the list of head servers is changing already")
        self._change = change = _Change(now)
        self._wake.set()
        try:
            await change.decided.wait()
        finally:
            if self._change is change:
                self._change = None  # nobody waits for it any more
        if change.error is not None:
            raise change.error
        await self.heads_changed()

    async def heads_changed(self) -> None:
        """Wait until no change of the head servers is under way, one that was begun before us included.

        Raises TakenOver.
        """
        while self._says_heads:
            self._check_owner()
            await self._progress.wait()

    def _is_shipped(self, number: int) -> bool:
        return number == 0 or (self._is_ours and self.state.shipped >= number)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ship until cancelled, or until another mount took over; failures are retried for ever."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lull.run)
            await self._ship_all()
            nursery.cancel_scope.cancel()

    async def _ship_all(self) -> None:
        delay = self._config.retry_s
        while self.taken_over is None:
            try:
                if not self._claimer.has_quorum:
                    await self._claimer.again()
                    self._begins = self._begins or self._draft is None
                await self._turn()
            except TakenOver as error:
                self.taken_over = str(error)
                self._carrying.give_up()
                self._writer.halt(error)
                self._refuse_change(error)
                logger.error("this mount lost the file system to another one: %s", error)
            except (GridError, StorageError, OSError) as error:
                self._lull.end()
                self._refuse_change(error)
                # A head server may have been away when the epoch was claimed: then it knows nothing of it.
                self._claimer.has_quorum = False
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

    def _refuse_change(self, error: Exception) -> None:
        """Other head servers that somebody wants now: nothing can be shipped, and so nothing changes."""
        if self._change is not None:
            self._change.error = error
            self._change.decided.set()
            self._change = None

    async def _begin_change(self, change: _Change) -> None:
        """Claim our epoch from the new head servers too; the next records do the rest."""
        before = self._heads.now
        self._heads.use(change.now, before)
        try:
            await self._claimer.extend()
        except (GridError, StorageError) as error:
            self._heads.use(before, None)
            change.error = error
        except BaseException:
            self._heads.use(before, None)
            raise
        else:
            self._begins = self._says_heads = True
        self._change = None
        change.decided.set()

    async def _turn(self) -> None:
        """Wait until something is to be shipped, and ship it."""
        if self._change is not None and self._draft is None:
            await self._begin_change(self._change)
        if not (self._is_wanted or self._barriers.is_crowded or self._lull.is_forced):
            await self._sleep()
        limit = self._barriers.limit()
        if limit < self._log.number:
            self._barriers.push(limit)
        is_wanted = self._carrying.is_due(limit) or self._is_asked or self._says_heads
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
        is_asked = self._is_asked or self._says_heads or self._change is not None
        # `begun` asks for a record where there may be no operation yet.
        wanted = min(self._wanted, self._log.number)
        return is_asked or wanted > self.state.shipped or self._carrying.is_wanted

    @property
    def _is_asked(self) -> bool:
        """Whether somebody waits for the first record of this epoch."""
        return not self._is_ours and self._wanted > 0

    async def _sleep(self) -> None:
        """Until somebody waits for a record, or operations nobody waits for are due."""
        self._wake = trio.Event()
        with trio.move_on_after(self._config.ship_every_s):
            await self._wake.wait()

    async def _ship(self) -> None:
        """Send the next record, or again the one that too few servers took."""
        if self._draft is None:
            self._draft = await self._compose()
        draft, state = self._draft, self.state
        if draft is None:
            await trio.lowlevel.checkpoint()
            return
        await self._heads.append(draft.record)
        self._draft = None
        self._is_ours = True
        state.recorded, state.sequence = draft.record.stamp
        state.previous = draft.record.record_hash()
        state.shipped = max(state.shipped, draft.last)
        state.runs = [state.mount_id]
        self._begins = self._heads.leaving is not None
        self._says_heads = self._begins
        # A quorum of both lists knows of the change: from here on the new one alone counts, and is told so.
        self._claimer.use(self._heads.now, None)
        self._carrying.landed(draft.picked)
        self._count(draft.size)
        emptied = draft.gathered > state.emptied
        if emptied:
            self._log.metadata.drop_outbox(draft.gathered)
            state.emptied = draft.gathered
            # In one transaction with the outbox: what it lacks is in packs we know of.
            self._gatherer.save()
        else:
            self._gatherer.save_late()
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
        before, after = self._record_bytes, self._record_bytes + size + GATHER_BYTES // RECORDS_MAX
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
        room = operations_max(sum(len(each.servers) for each in self._heads.lists), self._config.n)
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
            # Changes that come quicker than they are gathered would keep every record back for ever.
            self._lull.want(SHORT_PATIENCE_S if self._is_wanted else PATIENCE_S)
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
        state = self.state
        body = HeadBody(
            heads=self._heads.now,
            after=after,
            last=last,
            journal=self.base.newest,
            gathered=state.gathered,
            operations=operations,
            begins=picked.begins,
            carries=self._carrying.carries(picked),
            data=picked.data,
            settings=self._config.settings,
            checkpoint=self.base.checkpoint,
            checkpointed=self.base.checkpointed,
            earlier=brief(self.base.journals[:-1]),
            leaving=self._heads.leaving,
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
