"""The head servers as one: claim, append and trim with a quorum, over explicit servers.

An append is over with W answers. Whoever asks for what there is waits for enough answers, and then for those
servers only that are not late, by their own recent answers (`health`): one that hangs holds nobody up. What
the answers mean is the caller's business: here is only who was asked, and when enough have answered.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.health import HealthBook, HealthConfig
from gridfs.grid.roster import Roster, ServerId
from storage.errors import Conflict, Corrupt, StorageError
from storage.headlog import HeadClaim, HeadRecord, HeadStanding

logger = logging.getLogger(__name__)

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOG_BYTES_MAX = 256 << 20
"""What one server may send of a head log: far above what it keeps."""

HEAD_HEALTH = HealthConfig(first_s=1.0, deadline_s_min=0.1, deadline_s_max=5.0, own=2.0, peers=4.0)
"""Answers come from a disk that syncs; nothing is sent twice if one is late."""


class HeadClient(Protocol):
    """The part of a storage client that a head log needs."""

    async def head_claim(self, claim: HeadClaim) -> tuple[int, bytes, HeadRecord | None]: ...

    async def head_append(self, log: bytes, record: HeadRecord) -> None: ...

    async def head_read(
        self, log: bytes, after: tuple[int, int] | None, limit_bytes: int
    ) -> list[HeadRecord]: ...

    async def head_trim(self, log: bytes, before: tuple[int, int], signature: bytes) -> None: ...

    async def head_look(self, log: bytes) -> HeadStanding | None: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """What the head servers answered to a claim."""

    promises: int
    """Servers that promised this epoch."""
    refused: int
    """Servers that promised this epoch or a higher one to another mount, or to a successor of our key."""
    newest: HeadRecord | None
    """The newest valid record that any server which promised has."""
    holders: int
    """Servers whose newest record it is."""


class HeadServers:
    """The head servers of one file system."""

    def __init__(
        self,
        clients: Mapping[ServerId, HeadClient],
        servers: Sequence[ServerId],
        roster: Roster,
        log: bytes,
        quorum: int,
        is_genuine: Callable[[HeadRecord], bool] | None = None,
    ) -> None:
        """`quorum`: W, the number of servers that have every record that counts. `is_genuine`: whether a
        record was signed by who may write this log; without it all are taken for genuine."""
        self._clients = clients
        self.servers = tuple(servers)
        self._roster = roster
        self._log = log
        self._seeing = len(self.servers) - quorum + 1
        """So many answers show every record that W servers have."""
        self._is_genuine = is_genuine
        self._health = HealthBook(HEAD_HEALTH)
        self.lied: dict[ServerId, int] = {}
        """Forged records, by the server that showed them."""

    async def claim(self, claim: HeadClaim, wanted: int | None = None) -> Claim:
        """Claim an epoch. Returns once every server answered or failed; with `wanted` answers (by default as
        many as show the newest record), late ones are not waited for. One that shows a record which is not
        genuine (it lies, or keeps what a successor wrote that was given up) is as good as failed."""
        refused = 0

        async def ask(client: HeadClient) -> HeadRecord | bool | None:
            nonlocal refused
            try:
                _, _, newest = await client.head_claim(claim)
            except Conflict:
                refused += 1
                return False
            if newest is not None and self._is_genuine is not None and not self._is_genuine(newest):
                raise Corrupt(f"its head record {newest.epoch}.{newest.sequence} is forged")
            return newest

        wanted = self._seeing if wanted is None else wanted
        answers = await self._ask_all(ask, 0, "claiming the head log", punctual_after=wanted)
        records = [answer for answer in answers if isinstance(answer, HeadRecord)]
        newest = max(records, key=lambda record: record.stamp, default=None)
        return Claim(len(answers) - refused, refused, newest, records.count(newest) if newest else 0)

    async def look(self) -> list[HeadStanding]:
        """How the log stands on every server that answers and has it."""

        async def ask(client: HeadClient) -> HeadStanding | None:
            return await client.head_look(self._log)

        answers = await self._ask_all(ask, 0, "reading the head log", punctual_after=self._seeing)
        return [answer for answer in answers if answer is not None]

    async def records(self, enough: int = 0) -> list[HeadRecord]:
        """Every record that the servers which answer keep, each once, oldest first.

        Every record that W servers have is among them, where so many answer that it can be. Raises
        NotEnoughServers if fewer than `enough` answer.
        """

        async def ask(client: HeadClient) -> list[HeadRecord]:
            return await client.head_read(self._log, None, LOG_BYTES_MAX)

        answers = await self._ask_all(ask, enough, "reading the head log", punctual_after=self._seeing)
        found = {record.record_hash(): record for records in answers for record in records}
        return sorted(found.values(), key=lambda record: record.stamp)

    async def append(self, record: HeadRecord, quorum: int) -> None:
        """Store a record on `quorum` servers. Raises Conflict if too few took it and any says that another
        epoch is promised there, else NotEnoughServers (it may be on some). One that is behind is no veto."""

        async def ask(client: HeadClient) -> None:
            await client.head_append(self._log, record)

        await self._ask_all(ask, quorum, f"head record {record.epoch}.{record.sequence}")

    async def trim(self, before: tuple[int, int], signature: bytes) -> None:
        """Let the servers drop their records before this stamp; failures and late ones do not matter."""

        async def ask(client: HeadClient) -> None:
            await client.head_trim(self._log, before, signature)

        await self._ask_all(ask, 0, "trimming the head log", punctual_after=0)

    async def _ask_all(
        self,
        ask: Callable[[HeadClient], Awaitable[T]],
        enough: int,
        what: str,
        *,
        punctual_after: int | None = None,
    ) -> list[T]:
        """Ask every server at once; stop waiting when `enough` answered.

        punctual_after: wait for all, but once so many answered no longer for those that are late.
        """
        answers: list[T] = []
        failed: list[str] = []
        conflicts: list[Conflict] = []
        began = trio.current_time()
        open_until = {server: began + self._patience_s(server, began) for server in self.servers}

        def look() -> None:
            """Move the end of the waiting, where that is known now."""
            if punctual_after is None:
                if len(answers) >= enough:
                    nursery.cancel_scope.cancel()
            elif len(answers) >= punctual_after:
                # At least as long again, so that distance alone makes nobody late.
                again = 2 * trio.current_time() - began if answers else began
                nursery.cancel_scope.deadline = max(again, *open_until.values()) if open_until else again

        def end_if_hopeless() -> None:
            if conflicts and len(self.servers) - len(conflicts) - len(failed) < enough:
                nursery.cancel_scope.cancel()

        async def one(server: ServerId) -> None:
            client = self._clients.get(server)
            if client is None:
                failed.append(f"{self._roster.name(server)} is not in the servers file")
                del open_until[server]
                return
            try:
                answers.append(await ask(client))
            except Conflict as error:
                conflicts.append(error)
                end_if_hopeless()
            except StorageError as error:
                failed.append(f"{self._roster.name(server)}: {error}")
                if isinstance(error, Corrupt):
                    logger.warning("%s: %s", self._roster.name(server), error)
                    self.lied[server] = self.lied.get(server, 0) + 1
                self._health.failed(server, trio.current_time())
                end_if_hopeless()
            else:
                waited_s = trio.current_time() - began
                in_time = trio.current_time() <= open_until[server]
                self._health.answered(server, 0, waited_s, in_time=in_time)
            del open_until[server]
            look()

        async with trio.open_nursery() as nursery:
            for server in self.servers:
                nursery.start_soon(one, server)
            look()
        if len(answers) < enough:
            if conflicts:
                raise conflicts[0]
            raise NotEnoughServers(what, len(answers), enough, failed)
        if punctual_after is not None:
            for server in open_until:
                self._health.overtaken(server, 0, began, trio.current_time())
        return answers

    def _patience_s(self, server: ServerId, now: float) -> float:
        """How long to wait for one that is not needed."""
        return 0.0 if self._health.is_demoted(server, now) else self._health.deadline_s(server, 0)
