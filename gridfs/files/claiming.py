"""Claiming: a mount becomes the one writer of its file system, and takes over what is newest.

An epoch is claimed from the head servers; from then on they take nothing from whoever had it before. The
newest record that they show says who the head servers are, and what this machine may lack: local metadata
that are older are rolled forward from the grid, those of another history are given up for it (`rebuilding`).
"""

from __future__ import annotations

import logging

from gridfs.codec.headkeys import HeadKeys
from gridfs.codec.headlist import HeadList
from gridfs.files.carrying import Carrying
from gridfs.files.dirty import DirtyData
from gridfs.files.gathering import Gatherer
from gridfs.files.headstate import CLIENT_SIZE, HeadState
from gridfs.files.history import BehindCheckpoint, History
from gridfs.files.log import OperationLog
from gridfs.files.rebuilding import RebuildNeeded
from gridfs.files.restoring import restore
from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.heads import Claim, HeadServers
from gridfs.meta.records import HeadBody
from gridfs.meta.store import ROOT
from storage.format.head import HeadRecord
from storage.ports import Machine

logger = logging.getLogger(__name__)

RISE_MAX = 4096
"""Steps are doubled up to this. Epochs are not given away: a generation of keys has 2**40 of them."""


class TakenOver(Exception):
    """Another mount writes this file system now. `str()` is one line for a person."""


class ShutOut(TakenOver):
    """The recovery key has made new keys, and this machine has the old ones."""

    def __init__(self) -> None:
        super().__init__(
            "this machine was shut out: the file system has new keys; `gridfs spool export` gets out what is "
            "only here, `gridfs forget` and then `gridfs recover` with the recovery key let it in again"
        )


def is_settled(claim: Claim, step: int) -> bool:
    """Whether to go on with what was promised, and not to claim an epoch that is higher by `step`.

    Somebody may have promised another one long ago, and is to keep our records, too. Who refuses however
    high the epoch is may lie: a quorum can do without him, as every other quorum has one who promised.
    """
    return not claim.refused or (step > RISE_MAX and claim.has_quorum)


class Claimer:
    """Claims epochs for one mount."""

    def __init__(
        self,
        machine: Machine,
        log: OperationLog,
        dirty: DirtyData,
        carrying: Carrying,
        gatherer: Gatherer,
        heads: HeadServers,
        history: History,
        keys: HeadKeys,
        state: HeadState,
        *,
        takes_over: bool,
        generation: int,
    ) -> None:
        """`takes_over`: go on from what another client has written last. `generation`: of the oldest list of
        head servers that may be followed; those before were given up."""
        self._machine = machine
        self._log = log
        self._dirty = dirty
        self._carrying = carrying
        self._gatherer = gatherer
        self._heads = heads
        self._history = history
        self._keys = keys
        self._state = state
        self._client = state.client
        """Whose folder this was when it was opened."""
        self._takes_over = takes_over
        self._generation = generation
        self.has_quorum = False
        """W head servers have promised us the epoch."""

    async def claim(self, early: Claim | None = None) -> int:
        """Claim an epoch of our own. Returns when so many head servers answered that the newest record is
        known, with the quorum or not: the last operation that this one tells, 0 where there is none.

        `early`: what was promised already, to the epoch and run in the state, for a folder in the making, in
        which nothing is its own.
        Raises NotEnoughServers with fewer answers, or without the quorum where another client wrote last: it
        may go on until a quorum has promised us the epoch. TakenOver if the newest record is another's,
        RebuildNeeded where this machine's metadata cannot be brought up to date.
        """
        state = self._state
        was_new, knows = state.is_new or early is not None, frozenset(state.runs)
        if not was_new:
            await self._look_first(knows)
        if early is None or self._follow(early.newest):
            state.begin_run(self._machine.entropy.token(16))
            claim = await self._claim_all()
        else:
            claim = early
        if claim.newest is not None and not self._is_known(claim.newest, knows) and not claim.has_quorum:
            # Those that were only late are waited for.
            claim = await self._heads.claim(self._keys.claim(state.epoch, state.mount_id), patient=True)
            self._heads.require("quorum", claim.promised, "taking over from another client")
        await self._adopt(claim, was_new, knows)
        last = 0 if claim.newest is None else self._history.body(claim.newest).last
        self._history.forget()
        self.has_quorum = claim.has_quorum
        return last

    async def _claim_all(self) -> Claim:
        """Claim an epoch that nobody has, from those who are the head servers by the newest record."""
        state = self._state
        patient, epoch, step = False, max(state.epoch, self._keys.epoch_floor) + 1, 1
        while True:
            await self._rise(epoch)
            made = self._keys.claim(epoch, state.mount_id)
            claim = await self._heads.claim(made, patient=patient)
            while is_settled(claim, step) and claim.is_heard and self._follow(claim.newest):
                claim = await self._heads.claim(made, patient=patient)
            if not claim.is_heard:
                needed = self._heads.now.needed("seeing")
                raise NotEnoughServers("asking the head servers", claim.promises, needed)
            if is_settled(claim, step):
                return claim
            await self._check_keys()
            patient, epoch, step = step * 2 > RISE_MAX, epoch + step, step * 2

    async def _rise(self, epoch: int) -> None:
        """Take an epoch, durable before it is used: after a crash, of the machine too, the newest record must
        be known as our own, and an epoch must not begin twice."""
        self._state.epoch = epoch
        self._gatherer.save()
        await self._log.settle()

    def _follow(self, newest: HeadRecord | None) -> bool:
        """Turn to the head servers that the newest record names; returns whether these are others."""
        if newest is None or self._is_older(newest) or newest.record_hash() == self._state.previous:
            return False
        body, heads = self._history.body(newest), self._heads
        lists = (body.heads, body.leaving)
        if body.heads.generation < self._generation or lists == (heads.now, heads.leaving):
            return False
        self.use(*lists)
        return True

    def use(self, now: HeadList, leaving: HeadList | None) -> None:
        """From here on these are the head servers."""
        self._heads.use(now, leaving)
        self._state.heads, self._state.leaving = now, leaving

    async def again(self) -> None:
        """Claim our epoch once more, from head servers that may have been away.

        What they show is not taken over: so many have promised us the epoch at the start that no record of
        another run has come to a quorum since, and none had one, or it would have been seen then. Raises
        NotEnoughServers without a quorum, TakenOver where the epoch is lost.
        """
        state = self._state
        self.has_quorum = False
        claim = await self._heads.claim(self._keys.claim(state.epoch, state.mount_id), patient=True)
        if not self._heads.can_do_without(claim.refusers):
            await self._check_keys()
            raise TakenOver("another client has claimed this file system")
        self._heads.require("quorum", claim.promised, "claiming the head log")
        self.has_quorum = True

    async def extend(self) -> None:
        """Have our epoch promised by servers that are to be head servers, too.

        One that was a head server before may have promised a higher one: then ours rises above it, on all of
        them. Raises NotEnoughServers, TakenOver.
        """
        state, before, step = self._state, self._heads.leaving, 1
        assert before is not None
        while True:
            claim = await self._heads.claim(self._keys.claim(state.epoch, state.mount_id), patient=True)
            if is_settled(claim, step):
                break
            if before.count(claim.refusers):
                await self._check_keys()
                raise TakenOver("another client has claimed this file system")
            await self._rise(state.epoch + step)
            step *= 2
        self._heads.require("quorum", claim.promised, "changing the head servers")

    async def _look_first(self, knows: frozenset[bytes]) -> None:
        """Before anything is claimed: this mount may have to give way, and must not shut the other out."""
        is_genuine = self._keys.verifier()
        shown = [standing.newest for standing in await self._heads.look()]
        genuine = [record for record in shown if record is not None and is_genuine(record)]
        newest = max(genuine, key=lambda record: record.stamp, default=None)
        if newest is None or self._is_known(newest, knows) or self._is_older(newest):
            return
        self._check_stranger(newest, self._history.body(newest))

    def _is_older(self, newest: HeadRecord) -> bool:
        """Whether it is from before the newest that we know of: then those who show it lag behind. Who went
        on from ours, or was made to go on from an older one, has a newer epoch."""
        return newest.stamp < (self._state.recorded, self._state.sequence)

    def _is_of_this_client(self, record: HeadRecord) -> bool:
        return record.mount_id[:CLIENT_SIZE] == self._state.client

    def _is_known(self, newest: HeadRecord, knows: frozenset[bytes]) -> bool:
        return newest.record_hash() == self._state.previous or newest.mount_id in knows

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
        state, newest = self._state, claim.newest
        if newest is None:
            if state.shipped:
                logger.warning("the head servers that answered know no record of this file system")
            return
        body = self._history.body(newest)
        is_known = self._is_known(newest, knows)
        if self._is_older(newest):
            if body.gathered >= state.emptied:
                # Whoever has newer ones is away, and a quorum has none: what synced data rests on these
                # records has to be carried again all the same.
                rests = await self._history.carried(newest)
                self._carrying.restored(restore(self._log, self._dirty, rests))
            return
        if not is_known and not was_new:
            self._check_stranger(newest, body)
            if not await self._history.descends(newest, state.previous):
                reason = "nothing proves that the grid goes on from what this machine has"
                raise self._rebuild_needed(reason, newest, body, keeps_spool=False)
        is_ahead = body.last > self._log.number
        carried = await self._history.carried(newest)
        if is_ahead:
            await self._roll_forward(newest, body, keeps_spool=is_known)
        if carried:
            before = self._log.number
            self._carrying.restored(restore(self._log, self._dirty, carried))
            if self._log.number > before:
                logger.warning("synced data of %d records was brought back from the head log", len(carried))
        state.recorded, state.sequence = newest.stamp
        if claim.is_kept:
            state.shipped = max(state.shipped, body.last)
        state.previous = newest.record_hash()
        self._gatherer.save()
        if carried:
            await self._log.spool.sync()
        if is_ahead or carried:
            # The spool goes on behind what it lacks: only once nothing can undo that any more.
            await self._log.settle()

    def _check_stranger(self, newest: HeadRecord, body: HeadBody) -> None:
        """The newest record is of no run of this folder: of another client, or of a copy of this folder that
        went on after the copy was made. Then only what the grid has is certain here: what was shipped. Data
        that never got out would come back into files with which the other one has gone on since.
        """
        own, own_bytes = max(0, self._log.number - self._state.shipped), self._dirty.bytes
        held = f"{own} operations and {own_bytes} bytes" if own or own_bytes else ""
        if not self._is_of_this_client(newest) and not self._takes_over:
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
        is_kept = self._log.keeps_adopted and self._log.spool.last == self._log.number
        for number, encoded in tail.operations:
            is_kept = is_kept and self._log.keep(number, encoded)
            self._dirty.replay(number, self._log.adopt(number, encoded), None, 0)
        self._gatherer.adopt(tail.base, tail.gathered)
