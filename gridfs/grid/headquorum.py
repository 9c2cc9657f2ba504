"""Who keeps a head log, how many of them are enough, and how each has answered of late."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import trio

from gridfs.codec.headlist import HeadList, Need
from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.health import HealthBook, HealthConfig
from gridfs.grid.roster import Roster, ServerId
from storage.errors import Conflict, Corrupt, StorageError, Unavailable
from storage.headlog import HeadClaim, HeadRecord, HeadStanding

logger = logging.getLogger(__name__)

HEAD_HEALTH = HealthConfig(first_s=1.0, deadline_s_min=0.1, deadline_s_max=5.0, own=2.0, peers=4.0)
"""Answers come from a disk that syncs; nothing is sent twice if one is late."""

UNLISTED = Unavailable("is not in the servers file")


class HeadClient(Protocol):
    """The part of a storage client that a head log needs."""

    async def head_claim(self, claim: HeadClaim) -> tuple[int, bytes, HeadRecord | None]: ...

    async def head_append(self, log: bytes, records: Sequence[HeadRecord]) -> None: ...

    def head_append_nowait(self, request: bytes, settled: Callable[[StorageError | None], None]) -> bool: ...

    async def head_read(
        self, log: bytes, after: tuple[int, int] | None, limit_bytes: int
    ) -> list[HeadRecord]: ...

    async def head_trim(self, log: bytes, before: tuple[int, int], signature: bytes) -> None: ...

    async def head_look(self, log: bytes) -> HeadStanding | None: ...


class HeadQuorum:
    """The head servers of one file system.

    While their list changes, both the one that is left and the new one count: a quorum is one of each.
    """

    def __init__(self, now: HeadList, roster: Roster) -> None:
        self.now = now
        self.leaving: HeadList | None = None
        self._roster = roster
        self.health = HealthBook(HEAD_HEALTH)
        self.lied: dict[ServerId, int] = {}
        """Forged records, by the server that showed them."""

    @property
    def servers(self) -> tuple[ServerId, ...]:
        """All that are asked."""
        return tuple(dict.fromkeys(server for each in self.lists for server in each.servers))

    @property
    def lists(self) -> tuple[HeadList, ...]:
        return (self.now,) if self.leaving is None else (self.now, self.leaving)

    def are(self, need: Need, servers: Collection[ServerId]) -> bool:
        """Whether these are so many of each list."""
        return all(each.count(servers) >= each.needed(need) for each in self.lists)

    def require(
        self, need: Need, servers: Collection[ServerId], what: str, failed: Sequence[str] = ()
    ) -> None:
        """Raise NotEnoughServers, for `what`, where these are not so many of each list."""
        for each in self.lists:
            if each.count(servers) < each.needed(need):
                raise NotEnoughServers(what, each.count(servers), each.needed(need), failed)

    def answered(self, server: ServerId, began: float, in_time_until: float) -> None:
        """It answered what it was asked at `began`."""
        now = trio.current_time()
        self.health.answered(server, 0, now - began, in_time=now <= in_time_until)

    def took(self, server: ServerId, began: float) -> None:
        """It took a record. Whether that was in time is seldom a question, and its answer costs something."""
        waited_s = trio.current_time() - began
        is_quick = waited_s <= HEAD_HEALTH.deadline_s_min and not self.health.is_demoted(server, began)
        in_time = is_quick or waited_s <= self.patience_s(server, began)
        self.health.answered(server, 0, waited_s, in_time=in_time)

    def failed(self, server: ServerId, error: StorageError) -> str:
        """Remember that it did; in words."""
        if isinstance(error, Conflict):
            return str(error)
        if error is UNLISTED:
            return f"{self._roster.name(server)} {error}"
        if isinstance(error, Corrupt):
            logger.warning("%s: %s", self._roster.name(server), error)
            self.lied[server] = self.lied.get(server, 0) + 1
        self.health.failed(server, trio.current_time())
        return f"{self._roster.name(server)}: {error}"

    def patience_s(self, server: ServerId, now: float) -> float:
        """How long to wait for one that is not needed."""
        return 0.0 if self.health.is_demoted(server, now) else self.health.deadline_s(server, 0)
