"""The head servers as one: claim, append and trim with a quorum, over explicit servers.

W answers of one kind decide; answers of the others are not waited for. What the answers mean is the
caller's business: here is only who was asked, and when enough have agreed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.roster import Roster, ServerId
from storage.errors import Conflict, StorageError
from storage.headlog import HeadClaim, HeadRecord, HeadStanding

T = TypeVar("T")

LOG_BYTES_MAX = 256 << 20
"""What one server may send of a head log: far above what it keeps."""


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
        self, clients: Mapping[ServerId, HeadClient], servers: Sequence[ServerId], roster: Roster, log: bytes
    ) -> None:
        self._clients = clients
        self.servers = tuple(servers)
        self._roster = roster
        self._log = log

    async def claim(self, claim: HeadClaim, is_valid: Callable[[HeadRecord], bool]) -> Claim:
        """Claim an epoch; returns once every server answered or failed.

        A server whose newest record is not valid (it lies, or keeps what a successor wrote that was given up)
        counts as one without records.
        """
        refused = 0

        async def ask(client: HeadClient) -> HeadRecord | bool | None:
            nonlocal refused
            try:
                _, _, newest = await client.head_claim(claim)
            except Conflict:
                refused += 1
                return False
            return newest

        answers = await self._ask_all(ask, 0, "claiming the head log", everybody=True)
        records = [answer for answer in answers if isinstance(answer, HeadRecord) and is_valid(answer)]
        newest = max(records, key=lambda record: record.stamp, default=None)
        return Claim(len(answers) - refused, refused, newest, records.count(newest) if newest else 0)

    async def look(self) -> list[HeadStanding]:
        """How the log stands on every server that answers and has it."""

        async def ask(client: HeadClient) -> HeadStanding | None:
            return await client.head_look(self._log)

        answers = await self._ask_all(ask, 0, "reading the head log", everybody=True)
        return [answer for answer in answers if answer is not None]

    async def records(self, enough: int = 0) -> list[HeadRecord]:
        """Every record that any server which answers keeps, each once, oldest first.

        Raises NotEnoughServers if fewer than `enough` answer.
        """

        async def ask(client: HeadClient) -> list[HeadRecord]:
            return await client.head_read(self._log, None, LOG_BYTES_MAX)

        answers = await self._ask_all(ask, enough, "reading the head log", everybody=True)
        found = {record.record_hash(): record for records in answers for record in records}
        return sorted(found.values(), key=lambda record: record.stamp)

    async def append(self, record: HeadRecord, quorum: int) -> None:
        """Store a record on `quorum` servers. Raises Conflict if any says that a newer epoch exists,
        NotEnoughServers if too few took it (it may be on some)."""

        async def ask(client: HeadClient) -> None:
            await client.head_append(self._log, record)

        await self._ask_all(ask, quorum, f"head record {record.epoch}.{record.sequence}")

    async def trim(self, before: tuple[int, int], signature: bytes) -> None:
        """Let all servers that answer drop their records before this stamp; failures do not matter."""

        async def ask(client: HeadClient) -> None:
            await client.head_trim(self._log, before, signature)

        await self._ask_all(ask, 0, "trimming the head log", everybody=True)

    async def _ask_all(
        self,
        ask: Callable[[HeadClient], Awaitable[T]],
        enough: int,
        what: str,
        *,
        everybody: bool = False,
    ) -> list[T]:
        """Ask every server at once; stop waiting when `enough` answered, unless `everybody` is wanted."""
        answers: list[T] = []
        failed: list[str] = []
        conflicts: list[Conflict] = []

        async def one(server: ServerId) -> None:
            client = self._clients.get(server)
            if client is None:
                failed.append(f"{self._roster.name(server)} is not in the servers file")
                return
            try:
                answers.append(await ask(client))
            except Conflict as error:
                conflicts.append(error)
                nursery.cancel_scope.cancel()
            except StorageError as error:
                failed.append(f"{self._roster.name(server)}: {error}")
            else:
                if len(answers) >= enough and not everybody:
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for server in self.servers:
                nursery.start_soon(one, server)
        if conflicts:
            raise conflicts[0]
        if len(answers) < enough:
            raise NotEnoughServers(what, len(answers), enough, failed)
        return answers
