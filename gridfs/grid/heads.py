"""The head servers as one: claim, append and trim with a quorum, over explicit servers.

W answers of one kind decide; answers of the others are not waited for. What the answers mean is the
caller's business: here is only who was asked, and when enough have agreed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.roster import Roster, ServerId
from storage.errors import Conflict, Corrupt, StorageError
from storage.headlog import HeadRecord

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOG_BYTES_MAX = 256 << 20
"""What one server may send of a head log: far above what it keeps."""


class HeadClient(Protocol):
    """The part of a storage client that a head log needs."""

    async def head_claim(
        self, log: bytes, verifying_key: bytes, epoch: int, mount_id: bytes
    ) -> tuple[int, bytes, HeadRecord | None]: ...

    async def head_append(self, log: bytes, record: HeadRecord) -> None: ...

    async def head_read(
        self, log: bytes, after: tuple[int, int] | None, limit_bytes: int
    ) -> list[HeadRecord]: ...

    async def head_trim(self, log: bytes, before: tuple[int, int], signature: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """What the head servers answered to a claim."""

    promises: int
    """Servers that promised this epoch."""
    refused: int
    """Servers that promised this epoch or a higher one to another mount."""
    newest: HeadRecord | None
    """The newest record that any server which promised has."""
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

    async def claim(self, verifying_key: bytes, epoch: int, mount_id: bytes) -> Claim:
        """Claim `epoch`; returns once every server answered or failed. To show a forged record is to fail."""
        refused = 0
        verifier = Ed25519PublicKey.from_public_bytes(verifying_key)

        async def ask(client: HeadClient) -> HeadRecord | bool | None:
            nonlocal refused
            try:
                _, _, newest = await client.head_claim(self._log, verifying_key, epoch, mount_id)
            except Conflict:
                refused += 1
                return False
            if newest is not None:
                self._verify(verifier, newest)
            return newest

        answers = await self._ask_all(ask, 0, "claiming the head log", everybody=True)
        records = [answer for answer in answers if isinstance(answer, HeadRecord)]
        newest = max(records, key=lambda record: record.stamp, default=None)
        return Claim(len(answers) - refused, refused, newest, records.count(newest) if newest else 0)

    def _verify(self, verifier: Ed25519PublicKey, record: HeadRecord) -> None:
        try:
            verifier.verify(record.signature, record.signed_bytes(self._log))
        except InvalidSignature:
            logger.error("a head server shows record %d.%d, which is forged", *record.stamp)
            raise Corrupt(f"its head record {record.epoch}.{record.sequence} is forged") from None

    async def records(self) -> list[HeadRecord]:
        """Every record that any server which answers keeps, each once, oldest first."""

        async def ask(client: HeadClient) -> list[HeadRecord]:
            return await client.head_read(self._log, None, LOG_BYTES_MAX)

        answers = await self._ask_all(ask, 0, "reading the head log", everybody=True)
        found = {record.record_hash(): record for records in answers for record in records}
        return sorted(found.values(), key=lambda record: record.stamp)

    async def append(self, record: HeadRecord, quorum: int) -> None:
        """Store a record on `quorum` servers. Raises Conflict if too few took it and any says that another
        epoch is promised there, else NotEnoughServers (it may be on some). One that is behind is no veto."""

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
                if len(self.servers) - len(conflicts) - len(failed) < enough:
                    nursery.cancel_scope.cancel()
            except StorageError as error:
                failed.append(f"{self._roster.name(server)}: {error}")
                if conflicts and len(self.servers) - len(conflicts) - len(failed) < enough:
                    nursery.cancel_scope.cancel()
            else:
                if len(answers) >= enough and not everybody:
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for server in self.servers:
                nursery.start_soon(one, server)
        if len(answers) < enough:
            if conflicts:
                raise conflicts[0]
            raise NotEnoughServers(what, len(answers), enough, failed)
        return answers
