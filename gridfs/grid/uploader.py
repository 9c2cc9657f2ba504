"""The uploader: puts a sealed pack's shares onto servers, all at once, one request per server.

A server that fails, or misses its deadline, is replaced by the next in placement order. The pack counts
as stored when `happy` is reached; the rest may take `tail_s` more and is then dropped and reported as
missing, a debt that repair pays. A server that was known to be in trouble before is tried as the last
resort only, and nobody waits for it once the others are done.

The caller bounds what is in flight; between awaits every `_Placing` is consistent: each share is either
held, under way, or lost for want of a server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from gridfs.codec.pack import SealedPack
from gridfs.grid import placement
from gridfs.grid.errors import NotEnoughServers, short
from gridfs.grid.health import HealthBook, HealthConfig
from gridfs.grid.ports import GridServer, Stamp
from gridfs.grid.roster import Roster, ServerId
from storage.client import PUT_SIZE_MAX, SHARES_MAX, SharePut, Traffic
from storage.errors import StorageError


@dataclass(frozen=True, slots=True)
class UploaderConfig:
    tail_s: float = 2.0
    """How long shares beyond `happy` may take."""
    ask_have: bool = False
    """Ask servers for a convergent pack's shares before sending them (one round trip more)."""
    put_bytes_max: int = PUT_SIZE_MAX
    """Bytes of shares in one request; only several shares for one server come near it."""
    health: HealthConfig = field(default_factory=lambda: HealthConfig(deadline_s=10.0))
    """A put is durable when it is answered, so its deadline has room for a slow disk."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where a stored pack's shares are."""

    places: tuple[ServerId | None, ...]
    """Server per share number; None for empty shares and missing ones."""
    missing: tuple[int, ...]
    """Shares that found no server: the debt."""


@dataclass(slots=True)
class UploaderStatistics:
    """Counters since the start, and two gauges."""

    packs: int = 0
    """Packs stored."""
    failed: int = 0
    """Packs that could not be stored for now."""
    requests: int = 0
    bytes: int = 0
    """Bytes of shares acknowledged."""
    known: int = 0
    """Shares that a server had already, asked before they were sent."""
    replaced: int = 0
    """Shares that went to another server because one failed."""
    missing: int = 0
    """Shares left as a debt."""
    packs_in_flight: int = 0
    bytes_in_flight: int = 0


class Uploader:
    """Stores packs. Needs no task of its own; any number of tasks may call `store` at once."""

    def __init__(
        self,
        clients: Mapping[ServerId, GridServer],
        roster: Roster,
        file_system: bytes,
        k: int,
        n: int,
        happy: int,
        shares_per_server: int = 1,
        config: UploaderConfig | None = None,
    ) -> None:
        if not 1 <= k <= happy <= n <= 256 or shares_per_server < 1:
            raise ValueError("1 <= k <= happy <= n <= 256, and at least one share per server")
        self._clients = clients
        self._roster = roster
        self._file_system = file_system
        self._k, self._n, self._happy = k, n, happy
        self._shares_per_server = shares_per_server
        self._config = config or UploaderConfig()
        self._health = HealthBook(self._config.health)
        self._outstanding: dict[ServerId, int] = {}
        self._statistics = UploaderStatistics()

    def statistics(self) -> UploaderStatistics:
        """The live counters; not a copy."""
        return self._statistics

    async def store(self, pack: SealedPack, stamp: Stamp, traffic: Traffic = Traffic.UPLOAD) -> Receipt:
        """Store all shares of `pack`, leased under `stamp`. Idempotent: repeat it after a failure.

        Raises NotEnoughServers if `happy` cannot be reached now. ValueError for a pack of another k, n.
        """
        geometry = pack.geometry
        if (geometry.k, geometry.n) != (self._k, self._n):
            raise ValueError(f"a pack {geometry.k}-of-{geometry.n} in a file system {self._k}-of-{self._n}")
        counters = self._statistics
        counters.packs_in_flight += 1
        counters.bytes_in_flight += pack.size_bytes
        try:
            placing = await self._place(pack, stamp, traffic)
        finally:
            counters.packs_in_flight -= 1
            counters.bytes_in_flight -= pack.size_bytes
        reached = placement.happiness(geometry, placing.holders)
        if reached < self._happy:
            counters.failed += 1
            raise NotEnoughServers(
                f"pack {short(pack.pack_id)} was not stored", reached, self._happy, placing.failures
            )
        counters.packs += 1
        missing = tuple(number for number in pack.shares if number not in placing.holders)
        counters.missing += len(missing)
        return Receipt(tuple(placing.holders.get(number) for number in range(geometry.n)), missing)

    async def _place(self, pack: SealedPack, stamp: Stamp, traffic: Traffic) -> _Placing:
        demoted = self._health.demoted(trio.current_time())
        servers = placement.preferred(placement.order(pack.pack_id, self._roster), demoted)
        placing = _Placing(pack, servers, self._shares_per_server, demoted)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def send(server_id: ServerId, numbers: list[int]) -> None:
                    failure = await self._put(pack, server_id, numbers, stamp, traffic)
                    if failure is None:
                        placing.acknowledged(server_id, numbers)
                    else:
                        placing.failures.append(f"{self._roster.name(server_id)}: {failure}")
                        again = placing.refused(server_id, numbers)
                        self._statistics.replaced += sum(map(len, again.values()))
                        for other, moved in again.items():
                            nursery.start_soon(send, other, moved)
                    if placement.happiness(pack.geometry, placing.holders) >= self._happy:
                        tail_s = self._config.tail_s if placing.worth_waiting else 0.0
                        scope.deadline = min(scope.deadline, trio.current_time() + tail_s)

                for server_id, numbers in placing.first().items():
                    nursery.start_soon(send, server_id, numbers)
        return placing

    async def _put(
        self, pack: SealedPack, server_id: ServerId, numbers: Sequence[int], stamp: Stamp, traffic: Traffic
    ) -> str | None:
        """Put these shares on one server; returns what went wrong, None if nothing did."""
        client = self._clients.get(server_id)
        if client is None:
            return "there is no connection to it"
        size = sum(pack.geometry.share_size(number) for number in numbers)
        ahead = self._outstanding.get(server_id, 0)
        self._outstanding[server_id] = ahead + size
        try:
            with trio.move_on_after(self._health.deadline_s(ahead + size)) as scope:
                await self._send(client, pack, numbers, stamp, traffic)
        except StorageError as error:
            self._health.failed(server_id, trio.current_time(), hung=False)
            return str(error)
        finally:
            self._outstanding[server_id] -= size
        if scope.cancelled_caught:
            self._health.failed(server_id, trio.current_time(), hung=True)
            return "it did not answer in time"
        self._health.worked(server_id)
        self._statistics.bytes += size
        return None

    async def _send(
        self, client: GridServer, pack: SealedPack, numbers: Sequence[int], stamp: Stamp, traffic: Traffic
    ) -> None:
        if pack.convergent and self._config.ask_have:
            keys = [(pack.pack_id, number) for number in numbers]
            self._statistics.requests += 1
            held = await client.have(keys, self._file_system, stamp)
            self._statistics.known += sum(held)
            numbers = [number for number, known in zip(numbers, held, strict=True) if not known]
        for group in self._requests(pack, numbers):
            self._statistics.requests += 1
            await client.put(group, self._file_system, stamp, traffic)

    def _requests(self, pack: SealedPack, numbers: Sequence[int]) -> list[list[SharePut]]:
        """The shares in as few requests as the wire's limits allow: one, but for many large shares."""
        groups: list[list[SharePut]] = []
        room = 0
        for number in numbers:
            size = pack.geometry.share_size(number)
            if not groups or size > room or len(groups[-1]) == SHARES_MAX:
                groups.append([])
                room = self._config.put_bytes_max
            groups[-1].append(SharePut(pack.pack_id, number, pack.shares[number]))
            room -= size
        return groups


class _Placing:
    """Where the shares of one pack are, are going, and may still go. No I/O."""

    def __init__(
        self,
        pack: SealedPack,
        servers: Sequence[ServerId],
        shares_per_server: int,
        demoted: frozenset[ServerId],
    ) -> None:
        self.holders: dict[int, ServerId] = {}
        self.failures: list[str] = []
        self._first = placement.assign(pack.geometry, servers, shares_per_server)
        self._spare = [*servers] * shares_per_server
        del self._spare[: len(self._first)]
        self._demoted = demoted
        self._under_way: dict[ServerId, int] = {}

    def first(self) -> dict[ServerId, list[int]]:
        """The first assignment, as server -> share numbers."""
        return self._start(self._first)

    def acknowledged(self, server_id: ServerId, numbers: Sequence[int]) -> None:
        self._under_way[server_id] -= 1
        self.holders.update(dict.fromkeys(numbers, server_id))

    def refused(self, server_id: ServerId, numbers: Sequence[int]) -> dict[ServerId, list[int]]:
        """The server failed: never ask it again; returns where its shares go instead."""
        self._under_way[server_id] -= 1
        self._spare = [other for other in self._spare if other != server_id]
        moved = dict(zip(numbers, self._spare, strict=False))
        del self._spare[: len(moved)]
        return self._start(moved)

    @property
    def worth_waiting(self) -> bool:
        """Whether a server that was well when this began has not answered yet."""
        return any(count and server not in self._demoted for server, count in self._under_way.items())

    def _start(self, assignment: Mapping[int, ServerId]) -> dict[ServerId, list[int]]:
        groups: dict[ServerId, list[int]] = {}
        for number, server_id in assignment.items():
            groups.setdefault(server_id, []).append(number)
        for server_id in groups:
            self._under_way[server_id] = self._under_way.get(server_id, 0) + 1
        return groups
