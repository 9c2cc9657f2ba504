"""The uploader: puts a sealed pack's shares onto servers, all at once, one request per server.

A server that fails is replaced by the next in placement order; so is one that misses its deadline, which
comes from its own recent answers (`health`): it goes on meanwhile, and whichever is first has the share. Not
so where no server has answered since a large share left: our own line is slow then, and all are waited for.
The pack counts as stored when `happy` is reached; the rest may take `tail_s` more and is then dropped and
reported as missing, a debt that is paid later (`complete`). A server that was known to be in trouble before
is tried as the last resort only, and nobody waits for it once the others are done.

The caller bounds what is in flight; between awaits every `Placing` is consistent: each share is either
held, under way, or lost for want of a server.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from gridfs.codec.pack import SealedPack
from gridfs.grid import placement
from gridfs.grid.errors import NotEnoughServers, short
from gridfs.grid.health import HealthBook, HealthConfig
from gridfs.grid.placing import Placing
from gridfs.grid.ports import GridServer, Stamp
from gridfs.grid.roster import Roster, ServerId
from storage.client import PUT_SIZE_MAX, SHARES_MAX, SharePut, Traffic
from storage.errors import StorageError
from storage.format.share import Geometry
from storage.ports import Buffer

UPLOAD_HEALTH = HealthConfig(
    first_s=2.0, deadline_s_min=0.5, deadline_s_max=10.0, own=2.0, own_large=2.0, peers=4.0
)
"""A put is durable when it is answered, and to send it again costs as much as the first time: its deadlines
have room for a slow disk."""


LARGE_BYTES = 256 << 10
"""Puts from this size on tell how fast our line is."""
PATIENCE_MAX = 8.0
"""Puts are waited for so many times as long as usual at most."""


@dataclass(frozen=True, slots=True)
class UploaderConfig:
    tail_s: float = 2.0
    """How long shares beyond `happy` may take."""
    ask_have: bool = False
    """Ask servers for a convergent pack's shares before sending them (one round trip more)."""
    put_bytes_max: int = PUT_SIZE_MAX
    """Bytes of shares in one request; only several shares for one server come near it."""
    health: HealthConfig = UPLOAD_HEALTH


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
    """Shares that went to another server because one failed or was late."""
    missing: int = 0
    """Shares left as a debt."""
    paid: int = 0
    """Debts placed later."""
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
        self._patience = 1.0
        """So many times as long as usual puts are waited for. It grows where no server at all answers in
        time: our own line is slow then, and else the same bytes would be sent again, or for ever."""
        self._answered_at = [float("-inf"), float("-inf")]
        """When a put was answered last; when a large one was."""
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
        demoted = self._health.demoted(trio.current_time())
        servers = placement.preferred(placement.order(pack.pack_id, self._roster), demoted)
        placing = Placing(geometry, pack.shares, servers, self._shares_per_server, demoted)
        flight = _Flight(pack.pack_id, geometry, pack.shares, pack.convergent, stamp, traffic)
        counters.packs_in_flight += 1
        counters.bytes_in_flight += pack.size_bytes
        try:
            await self._place(flight, placing, self._happy)
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

    def takers(
        self, pack_id: bytes, places: Sequence[ServerId | None], answering: Collection[ServerId]
    ) -> list[ServerId]:
        """Servers that could take a further share of a pack, in placement order, once for each share.

        places: who has its shares. answering: who is there at all.
        """
        order = placement.order(pack_id, self._roster)
        used = [place for place in places if place is not None]
        rounds = range(self._shares_per_server)
        return [s for turn in rounds for s in order if s in answering and used.count(s) <= turn]

    async def complete(
        self,
        pack_id: bytes,
        geometry: Geometry,
        shares: Mapping[int, Sequence[Buffer]],
        takers: Sequence[ServerId],
        stamp: Stamp,
    ) -> dict[int, ServerId]:
        """Put shares that a pack lacks on `takers`; returns where which are now. Idempotent.

        Raises nothing: what found no server stays a debt.
        """
        placing = Placing(geometry, shares, takers, 1, self._health.demoted(trio.current_time()))
        # The server may have taken the share when it was too late to count: it is asked before it is sent.
        flight = _Flight(pack_id, geometry, shares, True, stamp, Traffic.REPAIR)
        await self._place(flight, placing, None)
        self._statistics.paid += len(placing.holders)
        return placing.holders

    async def _place(self, flight: _Flight, placing: Placing, happy: int | None) -> None:
        """Send shares until all are held, or enough are and the rest takes too long; None: until the end."""
        sending = _Sending(self, flight, placing, happy)
        await sending.run()
        now = trio.current_time()
        for put in sending.under_way:  # the others were quicker
            self._health.overtaken(put.server_id, put.ahead + put.size, put.sent_at, now)

    @property
    def tail_s(self) -> float:
        """How long shares beyond `happy` may take."""
        return self._config.tail_s

    def name(self, server_id: ServerId) -> str:
        return self._roster.name(server_id)

    def opened(self, flight: _Flight, server_id: ServerId, numbers: list[int]) -> _Put:
        """A put that begins now."""
        now = trio.current_time()
        size = sum(flight.geometry.share_size(number) for number in numbers)
        ahead = self._outstanding.get(server_id, 0)
        self._outstanding[server_id] = ahead + size
        deadline_s = self._health.deadline_s(server_id, ahead + size) * self._patience
        limit_s = self._health.limit_s(ahead + size)
        return _Put(server_id, numbers, size, ahead, now, now + deadline_s, limit_s, self._patience)

    def is_behind(self, put: _Put) -> bool:
        """Whether others were quicker, and so it waits for its server and not for our line."""
        return not put.is_large or self._answered_at[True] >= put.sent_at

    def has_patience(self, put: _Put) -> bool:
        """Whether to go on waiting for one whose time is over: it may have twice as long."""
        patience = self._patience
        if self._answered_at[put.is_large] < put.sent_at:
            self._patience = patience = max(patience, min(PATIENCE_MAX, 2 * put.patience))
        if patience <= put.patience:
            return False
        put.patience = patience
        return True

    async def put(self, flight: _Flight, put: _Put) -> str | None:
        """Put shares on one server; returns what went wrong, None if nothing did."""
        client = self._clients.get(put.server_id)
        late_at = put.late_at
        try:
            if client is None:
                return "there is no connection to it"
            with put.scope:
                await self._send(client, flight, put.numbers)
        except StorageError as error:
            self._health.failed(put.server_id, trio.current_time())
            return str(error)
        finally:
            self._outstanding[put.server_id] -= put.size
        now = trio.current_time()
        if put.scope.cancelled_caught:
            self._health.overdue(put.server_id, now)
            return "it did not answer in time"
        self._answered_at[False] = now
        if put.is_large:
            self._answered_at[True] = now
            self._patience = max(1.0, 2 * (now - put.sent_at) / put.limit_s)
        self._health.answered(put.server_id, put.ahead + put.size, now - put.sent_at, in_time=now <= late_at)
        self._statistics.bytes += put.size
        return None

    async def _send(self, client: GridServer, flight: _Flight, numbers: Sequence[int]) -> None:
        if flight.may_be_known and (self._config.ask_have or flight.traffic is Traffic.REPAIR):
            keys = [(flight.pack_id, number) for number in numbers]
            self._statistics.requests += 1
            held = await client.have(keys, self._file_system, flight.stamp)
            self._statistics.known += sum(held)
            numbers = [number for number, known in zip(numbers, held, strict=True) if not known]
        for group in self._requests(flight, numbers):
            self._statistics.requests += 1
            await client.put(group, self._file_system, flight.stamp, flight.traffic)

    def _requests(self, flight: _Flight, numbers: Sequence[int]) -> list[list[SharePut]]:
        """The shares in as few requests as the wire's limits allow: one, but for many large shares."""
        groups: list[list[SharePut]] = []
        room = 0
        for number in numbers:
            size = flight.geometry.share_size(number)
            if not groups or size > room or len(groups[-1]) == SHARES_MAX:
                groups.append([])
                room = self._config.put_bytes_max
            groups[-1].append(SharePut(flight.pack_id, number, flight.shares[number]))
            room -= size
        return groups


@dataclass(frozen=True, slots=True)
class _Flight:
    """What is sent."""

    pack_id: bytes
    geometry: Geometry
    shares: Mapping[int, Sequence[Buffer]]
    may_be_known: bool
    """Somebody may have stored the same before."""
    stamp: Stamp
    traffic: Traffic


@dataclass(slots=True, eq=False)
class _Put:
    """Shares on their way to one server."""

    server_id: ServerId
    numbers: list[int]
    size: int
    ahead: int
    """Bytes on their way to that server before it."""
    sent_at: float
    late_at: float
    """When to look for another server; infinity once that is done."""
    limit_s: float
    """How long it is waited for, if our line is not slow, and ..."""
    patience: float
    """... so many times as long."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def given_up_at(self) -> float:
        """When its time is over; infinity once it was given up."""
        return float("inf") if self.scope.cancel_called else self.sent_at + self.limit_s * self.patience

    @property
    def is_large(self) -> bool:
        return self.size >= LARGE_BYTES


class _Sending:
    """The puts of one pack. Not functions within one: those would refer to each other, and keep the pack's
    memory until somebody looks for cycles."""

    def __init__(self, uploader: Uploader, flight: _Flight, placing: Placing, happy: int | None) -> None:
        self._uploader = uploader
        self._flight = flight
        self._placing = placing
        self._happy = happy
        self.under_way: dict[_Put, None] = {}
        self._started = trio.Event()
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """See `Uploader._place`."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._start(nursery, self._placing.first())
                self._look()
                nursery.start_soon(self._watch, nursery)

    def _start(self, nursery: trio.Nursery, groups: Mapping[ServerId, list[int]]) -> None:
        self._started.set()
        for server_id, numbers in groups.items():
            put = self._uploader.opened(self._flight, server_id, numbers)
            self.under_way[put] = None
            nursery.start_soon(self._send, nursery, put)

    def _look(self) -> None:
        placing, happy = self._placing, self._happy
        if placing.is_complete or not self.under_way:
            self._scope.cancel()
        elif happy is not None and placement.happiness(self._flight.geometry, placing.holders) >= happy:
            tail_s = self._uploader.tail_s if placing.worth_waiting else 0.0
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + tail_s)

    async def _send(self, nursery: trio.Nursery, put: _Put) -> None:
        failure = await self._uploader.put(self._flight, put)
        del self.under_way[put]
        if failure is None:
            self._placing.acknowledged(put.server_id, put.numbers)
        else:
            self._placing.failures.append(f"{self._uploader.name(put.server_id)}: {failure}")
            self._replace(nursery, self._placing.refused(put.server_id, put.numbers))
        self._look()

    async def _watch(self, nursery: trio.Nursery) -> None:
        while True:
            self._started = trio.Event()
            times = (min(put.late_at, put.given_up_at) for put in self.under_way)
            with trio.move_on_at(min(times, default=float("inf"))):
                await self._started.wait()
            now = trio.current_time()
            for put in list(self.under_way):
                if put.given_up_at <= now and not self._uploader.has_patience(put):
                    put.late_at = float("inf")
                    put.scope.cancel()
                elif put.late_at <= now and not self._uploader.is_behind(put):
                    put.late_at = now + (now - put.sent_at)
                elif put.late_at <= now:
                    put.late_at = float("inf")
                    self._replace(nursery, self._placing.late(put.server_id, put.numbers))
            self._look()

    def _replace(self, nursery: trio.Nursery, groups: dict[ServerId, list[int]]) -> None:
        self._uploader.statistics().replaced += sum(map(len, groups.values()))
        self._start(nursery, groups)
