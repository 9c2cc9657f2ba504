"""The head servers as one: claim, append and trim with a quorum, over explicit servers.

An append (`headappends`) is over with W answers. Whoever asks for what there is waits for enough answers,
and then for those servers only that are not late, by their own recent answers (`headquorum`): one that hangs
holds nobody up. What the answers mean is the caller's business: here is only who was asked, and when enough
have answered.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from gridfs.codec.headlist import HeadList, Need
from gridfs.grid.headappends import HeadAppends
from gridfs.grid.headquorum import UNLISTED, HeadClient, HeadQuorum
from gridfs.grid.roster import Roster, ServerId
from storage.errors import Conflict, Corrupt, StorageError
from storage.headlog import HeadClaim, HeadRecord, HeadStanding

T = TypeVar("T")

LOG_BYTES_MAX = 256 << 20
"""What one server may send of a head log: far above what it keeps."""
LOOKING = "reading the head log"


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
    """The head servers of one file system. `run` must be running while records are appended."""

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
        self._log = log
        self._is_genuine = is_genuine
        self._quorum = HeadQuorum(now, roster)
        self._appends = HeadAppends(clients, log, self._quorum)

    @property
    def now(self) -> HeadList:
        return self._quorum.now

    @property
    def leaving(self) -> HeadList | None:
        return self._quorum.leaving

    @property
    def servers(self) -> tuple[ServerId, ...]:
        """All that are asked."""
        return self._quorum.servers

    @property
    def lists(self) -> tuple[HeadList, ...]:
        return self._quorum.lists

    @property
    def lied(self) -> Mapping[ServerId, int]:
        """Forged records, by the server that showed them."""
        return self._quorum.lied

    def use(self, now: HeadList, leaving: HeadList | None) -> None:
        """From here on ask these."""
        if (now, leaving) != (self.now, self.leaving):
            self._appends.flush()
            self._quorum.now, self._quorum.leaving = now, leaving
            self._appends.forget()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `HeadAppends.run`."""
        await self._appends.run(task_status=task_status)

    async def append(self, record: HeadRecord) -> None:
        """See `HeadAppends.append`."""
        await self._appends.append(record)

    def require(
        self, need: Need, servers: Collection[ServerId], what: str, failed: Sequence[str] = ()
    ) -> None:
        """See `HeadQuorum.require`."""
        self._quorum.require(need, servers, what, failed)

    def can_do_without(self, servers: Collection[ServerId]) -> bool:
        """Whether the others may still be a quorum."""
        return self._are("quorum", [server for server in self.servers if server not in servers])

    def _are(self, need: Need, servers: Collection[ServerId]) -> bool:
        return self._quorum.are(need, servers)

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
        answers = await self._ask_all(self._look, LOOKING, "none", until="seeing")
        return [answer for answer in answers.values() if answer is not None]

    async def reach(self) -> None:
        """Raises NotEnoughServers unless a quorum answers just now."""
        await self._ask_all(self._look, LOOKING, "quorum")

    async def _look(self, _: ServerId, client: HeadClient) -> HeadStanding | None:
        return await client.head_look(self._log)

    async def records(self, *, surely: bool = False) -> list[HeadRecord]:
        """Every record that the servers which answer keep, each once, oldest first.

        surely: raises NotEnoughServers where too few answer for every record that a quorum has to be there.
        """

        async def ask(_: ServerId, client: HeadClient) -> list[HeadRecord]:
            return await client.head_read(self._log, None, LOG_BYTES_MAX)

        answers = await self._ask_all(ask, LOOKING, "seeing" if surely else "none", until="seeing")
        found = {record.record_hash(): record for records in answers.values() for record in records}
        return sorted(found.values(), key=lambda record: record.stamp)

    async def news(self, after: tuple[int, int] | None, counts: bytes | None = None) -> News:
        """What the servers that answer have behind the stamp `after`.

        `counts`: hash of a record that a quorum is known to have had.
        """

        async def ask(_: ServerId, client: HeadClient) -> list[HeadRecord]:
            return await client.head_read(self._log, after, LOG_BYTES_MAX)

        answers = await self._ask_all(ask, LOOKING, "none", until="quorum")
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

    async def trim(self, before: tuple[int, int], signature: bytes) -> None:
        """Let the servers drop their records before this stamp; failures and late ones do not matter."""

        async def ask(_: ServerId, client: HeadClient) -> None:
            await client.head_trim(self._log, before, signature)

        await self._ask_all(ask, "trimming the head log", "none", until="none")

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
        self._appends.flush()
        answers: dict[ServerId, T] = {}
        failed: dict[ServerId, str] = {}
        conflicts: list[Conflict] = []
        began = trio.current_time()
        servers = dict.fromkeys(self.servers).keys()
        open_until = {server: began + self._quorum.patience_s(server, began) for server in servers}

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
                failed[server] = self._quorum.failed(server, UNLISTED)
                del open_until[server]
                return
            try:
                answers[server] = await ask(server, client)
            except StorageError as error:
                failed[server] = self._quorum.failed(server, error)
                if isinstance(error, Conflict):
                    conflicts.append(error)
            else:
                self._quorum.answered(server, began, open_until[server])
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
                self._quorum.health.overtaken(server, 0, began, trio.current_time())
        return answers
