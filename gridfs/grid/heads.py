"""The head servers as one: claim, append and trim with a quorum, over explicit servers.

An append is over with W answers. Whoever asks for what there is waits for enough answers, and then for those
servers only that are not late, by their own recent answers (`health`): one that hangs holds nobody up. What
the answers mean is the caller's business: here is only who was asked, and when enough have answered.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import trio

from gridfs.codec.headlist import HeadList, Need
from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.health import HealthBook, HealthConfig
from gridfs.grid.roster import Roster, ServerId
from storage.client import append_request
from storage.errors import Conflict, Corrupt, StorageError, Unavailable
from storage.headlog import HeadClaim, HeadRecord, HeadStanding

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOG_BYTES_MAX = 256 << 20
"""What one server may send of a head log: far above what it keeps."""

_UNLISTED = Unavailable("is not in the servers file")

HEAD_HEALTH = HealthConfig(first_s=1.0, deadline_s_min=0.1, deadline_s_max=5.0, own=2.0, peers=4.0)
"""Answers come from a disk that syncs; nothing is sent twice if one is late."""


class HeadClient(Protocol):
    """The part of a storage client that a head log needs."""

    async def head_claim(self, claim: HeadClaim) -> tuple[int, bytes, HeadRecord | None]: ...

    async def head_append(self, log: bytes, record: HeadRecord) -> None: ...

    def head_append_nowait(self, request: bytes, settled: Callable[[StorageError | None], None]) -> bool: ...

    async def head_read(
        self, log: bytes, after: tuple[int, int] | None, limit_bytes: int
    ) -> list[HeadRecord]: ...

    async def head_trim(self, log: bytes, before: tuple[int, int], signature: bytes) -> None: ...

    async def head_look(self, log: bytes) -> HeadStanding | None: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """What the head servers answered to a claim."""

    promised: Collection[ServerId]
    """Servers that promised this epoch."""
    refusers: Collection[ServerId]
    """Servers that promised this epoch or a higher one to another mount, or to a successor of our key."""
    newest: HeadRecord | None
    """The newest record that any of those who promised has."""
    holders: int
    """Servers whose newest record it is."""
    has_quorum: bool
    """Whether those who promised are a quorum."""
    is_heard: bool
    """Whether so many answered, that no record that a quorum has can be missing."""
    is_kept: bool
    """Whether a quorum has the newest record."""

    @property
    def promises(self) -> int:
        return len(self.promised)

    @property
    def refused(self) -> int:
        return len(self.refusers)


@dataclass(frozen=True, slots=True)
class News:
    """Records that a reader has not seen yet."""

    answered: Collection[ServerId]
    records: Collection[HeadRecord]
    """All that are genuine."""
    newest: HeadRecord | None
    """The newest of any server; it may be given up, where fewer than a quorum have it."""
    kept: HeadRecord | None
    """The newest that a quorum has."""
    may_be_old: bool
    """Whether with those who did not answer a quorum may have a record newer than `kept`."""
    strange: bool
    """Whether any server has records that are not genuine, or of keys that we do not know."""


class HeadServers:
    """The head servers of one file system.

    While their list changes, both the one that is left and the new one count: a quorum is one of each.
    """

    def __init__(
        self,
        clients: Mapping[ServerId, HeadClient],
        now: HeadList,
        roster: Roster,
        log: bytes,
        is_genuine: Callable[[HeadRecord], bool] | None = None,
    ) -> None:
        """`is_genuine`: whether a record was signed by who may write this log; without it all are taken for
        genuine."""
        self._clients = clients
        self._roster = roster
        self._log = log
        self.now = now
        self.leaving: HeadList | None = None
        self._is_genuine = is_genuine
        self._health = HealthBook(HEAD_HEALTH)
        self.lied: dict[ServerId, int] = {}
        """Forged records, by the server that showed them."""

    @property
    def servers(self) -> tuple[ServerId, ...]:
        """All that are asked."""
        return tuple(dict.fromkeys(server for each in self.lists for server in each.servers))

    @property
    def lists(self) -> tuple[HeadList, ...]:
        return (self.now,) if self.leaving is None else (self.now, self.leaving)

    def use(self, now: HeadList, leaving: HeadList | None) -> None:
        """From here on ask these."""
        self.now, self.leaving = now, leaving

    async def claim(self, claim: HeadClaim, *, patient: bool = False) -> Claim:
        """Claim an epoch. Returns once every server answered or failed; late ones are not waited for when
        enough have answered that the newest record is known, or `patient`: when a quorum has. One that shows
        a record which is not genuine (it lies, or keeps what a successor wrote that was given up) is as good
        as failed."""
        refused: set[ServerId] = set()

        async def ask(server: ServerId, client: HeadClient) -> HeadRecord | None:
            try:
                _, _, newest = await client.head_claim(claim)
            except Conflict:
                refused.add(server)
                return None
            if newest is not None and self._is_genuine is not None and not self._is_genuine(newest):
                raise Corrupt(f"its head record {newest.epoch}.{newest.sequence} is forged")
            return newest

        until: Need = "quorum" if patient else "seeing"
        answers = await self._ask_all(ask, "claiming the head log", "none", until=until)
        records = [answer for answer in answers.values() if answer is not None]
        newest = max(records, key=lambda record: record.stamp, default=None)
        holders = {server for server, answer in answers.items() if newest is not None and answer == newest}
        promised = answers.keys() - refused
        return Claim(
            promised=frozenset(promised),
            refusers=frozenset(refused),
            newest=newest,
            holders=len(holders),
            has_quorum=self._are("quorum", promised),
            is_heard=self._are("seeing", answers),
            is_kept=self._are("quorum", holders),
        )

    async def look(self) -> list[HeadStanding]:
        """How the log stands on every server that answers and has it."""

        async def ask(_: ServerId, client: HeadClient) -> HeadStanding | None:
            return await client.head_look(self._log)

        answers = await self._ask_all(ask, "reading the head log", "none", until="seeing")
        return [answer for answer in answers.values() if answer is not None]

    async def records(self, *, surely: bool = False) -> list[HeadRecord]:
        """Every record that the servers which answer keep, each once, oldest first.

        surely: raises NotEnoughServers where too few answer for every record that a quorum has to be there.
        """

        async def ask(_: ServerId, client: HeadClient) -> list[HeadRecord]:
            return await client.head_read(self._log, None, LOG_BYTES_MAX)

        what = "reading the head log"
        answers = await self._ask_all(ask, what, "seeing" if surely else "none", until="seeing")
        found = {record.record_hash(): record for records in answers.values() for record in records}
        return sorted(found.values(), key=lambda record: record.stamp)

    async def news(self, after: tuple[int, int] | None, counts: bytes | None = None) -> News:
        """What the servers that answer have behind the stamp `after`.

        `counts`: hash of a record that a quorum is known to have had.
        """

        async def ask(_: ServerId, client: HeadClient) -> list[HeadRecord]:
            return await client.head_read(self._log, after, LOG_BYTES_MAX)

        answers = await self._ask_all(ask, "reading the head log", "none", until="quorum")
        shown: dict[HeadRecord, set[ServerId]] = {}
        for server, records in answers.items():
            for record in records:
                shown.setdefault(record, set()).add(server)
        is_genuine = self._is_genuine or (lambda _: True)
        holders = {record: servers for record, servers in shown.items() if is_genuine(record)}
        newest_first = sorted(holders, key=lambda record: record.stamp, reverse=True)
        kept = next(
            (
                each
                for each in newest_first
                if self._are("quorum", holders[each]) or each.record_hash() == counts
            ),
            None,
        )
        silent = [server for server in self.servers if server not in answers]
        may_be_old = bool(silent) and any(
            self._are("quorum", [*holders[each], *silent])
            for each in itertools.takewhile(lambda each: each != kept, newest_first)
        )
        newest = newest_first[0] if newest_first else None
        return News(
            answers.keys(), holders.keys(), newest, kept, may_be_old, strange=len(holders) < len(shown)
        )

    async def append(self, record: HeadRecord) -> None:
        """Store a record on a quorum of servers. Raises Conflict if too few took it and any says that another
        epoch is promised there, else NotEnoughServers (it may be on some). One that is behind is no veto.

        Servers that are slower than the quorum get it all the same: nobody waits for their answers.
        """
        request = append_request(self._log, record)
        began = trio.current_time()
        servers = dict.fromkeys(self.servers).keys()
        taken: dict[ServerId, None] = {}
        failed: dict[ServerId, str] = {}
        conflicts: list[Conflict] = []
        decided = trio.Event()

        def settled(server: ServerId, error: StorageError | None) -> None:
            if error is None:
                taken[server] = None
                self._took(server, began)
            else:
                failed[server] = self._failed(server, error)
                if isinstance(error, Conflict):
                    conflicts.append(error)
            is_over = len(taken) + len(failed) == len(servers)
            is_lost = bool(conflicts) and not self._are("quorum", servers - failed.keys())
            if is_over or is_lost or (len(taken) >= self.now.quorum and self._are("quorum", taken)):
                decided.set()

        async def one(server: ServerId, client: HeadClient) -> None:
            try:
                await client.head_append(self._log, record)
            except StorageError as error:
                settled(server, error)
            else:
                settled(server, None)

        waiting: list[tuple[ServerId, HeadClient]] = []
        for server in servers:
            client = self._clients.get(server)
            if client is None:
                settled(server, _UNLISTED)
            elif not client.head_append_nowait(request, partial(settled, server)):
                waiting.append((server, client))
        if waiting:
            async with trio.open_nursery() as nursery:
                for server, client in waiting:
                    nursery.start_soon(one, server, client)
                await decided.wait()
                nursery.cancel_scope.cancel()
        else:
            await decided.wait()
        if not self._are("quorum", taken):
            if conflicts:
                raise conflicts[0]
            what = f"head record {record.epoch}.{record.sequence}"
            self.require("quorum", taken, what, list(failed.values()))

    async def trim(self, before: tuple[int, int], signature: bytes) -> None:
        """Let the servers drop their records before this stamp; failures and late ones do not matter."""

        async def ask(_: ServerId, client: HeadClient) -> None:
            await client.head_trim(self._log, before, signature)

        await self._ask_all(ask, "trimming the head log", "none", until="none")

    def require(
        self, need: Need, servers: Collection[ServerId], what: str, failed: Sequence[str] = ()
    ) -> None:
        """Raise NotEnoughServers, for `what`, where these are not so many of each list."""
        for each in self.lists:
            if each.count(servers) < each.needed(need):
                raise NotEnoughServers(what, each.count(servers), each.needed(need), failed)

    def can_do_without(self, servers: Collection[ServerId]) -> bool:
        """Whether the others may still be a quorum."""
        return self._are("quorum", [server for server in self.servers if server not in servers])

    def _are(self, need: Need, servers: Collection[ServerId]) -> bool:
        return all(each.count(servers) >= each.needed(need) for each in self.lists)

    async def _ask_all(
        self,
        ask: Callable[[ServerId, HeadClient], Awaitable[T]],
        what: str,
        enough: Need,
        *,
        until: Need | None = None,
    ) -> dict[ServerId, T]:
        """Ask every server at once; stop waiting when `enough` answered, and raise if fewer did.

        until: wait for all, but once so many answered no longer for those that are late.
        """
        answers: dict[ServerId, T] = {}
        failed: dict[ServerId, str] = {}
        conflicts: list[Conflict] = []
        began = trio.current_time()
        servers = dict.fromkeys(self.servers).keys()
        open_until = {server: began + self._patience_s(server, began) for server in servers}

        def look() -> None:
            """Move the end of the waiting, where that is known now."""
            if until is None:
                if self._are(enough, answers):
                    nursery.cancel_scope.cancel()
            elif self._are(until, answers):
                # At least as long again, so that distance alone makes nobody late.
                again = 2 * trio.current_time() - began if answers else began
                nursery.cancel_scope.deadline = max(again, *open_until.values()) if open_until else again
            if conflicts and not self._are(enough, servers - failed.keys()):
                nursery.cancel_scope.cancel()

        async def one(server: ServerId) -> None:
            client = self._clients.get(server)
            if client is None:
                failed[server] = self._failed(server, _UNLISTED)
                del open_until[server]
                return
            try:
                answers[server] = await ask(server, client)
            except StorageError as error:
                failed[server] = self._failed(server, error)
                if isinstance(error, Conflict):
                    conflicts.append(error)
            else:
                self._answered(server, began, open_until[server])
            del open_until[server]
            look()

        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(one, server)
            look()
        if not self._are(enough, answers):
            if conflicts:
                raise conflicts[0]
            self.require(enough, answers, what, list(failed.values()))
        if until is not None:
            for server in open_until:
                self._health.overtaken(server, 0, began, trio.current_time())
        return answers

    def _answered(self, server: ServerId, began: float, in_time_until: float) -> None:
        now = trio.current_time()
        self._health.answered(server, 0, now - began, in_time=now <= in_time_until)

    def _took(self, server: ServerId, began: float) -> None:
        """It took a record. Whether that was in time is seldom a question, and its answer costs something."""
        waited_s = trio.current_time() - began
        is_quick = waited_s <= HEAD_HEALTH.deadline_s_min and not self._health.is_demoted(server, began)
        in_time = is_quick or waited_s <= self._patience_s(server, began)
        self._health.answered(server, 0, waited_s, in_time=in_time)

    def _failed(self, server: ServerId, error: StorageError) -> str:
        """Remember that it did; in words."""
        if isinstance(error, Conflict):
            return str(error)
        if error is _UNLISTED:
            return f"{self._roster.name(server)} {error}"
        if isinstance(error, Corrupt):
            logger.warning("%s: %s", self._roster.name(server), error)
            self.lied[server] = self.lied.get(server, 0) + 1
        self._health.failed(server, trio.current_time())
        return f"{self._roster.name(server)}: {error}"

    def _patience_s(self, server: ServerId, now: float) -> float:
        """How long to wait for one that is not needed."""
        return 0.0 if self._health.is_demoted(server, now) else self._health.deadline_s(server, 0)
