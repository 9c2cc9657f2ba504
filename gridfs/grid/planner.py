"""The read planner: which byte ranges of which shares to ask of which servers. Pure.

A range that is wanted is asked of the server with its own share; where that one is in trouble it is
rebuilt from the same byte range of any k others, never more: those that cost nothing (known zeros,
bytes that are here or wanted anyway) first. Neighbouring ranges of a share become one.

All offsets here count bytes of block data in a share (its column), without the share's header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gridfs.grid.roster import ServerId
from storage.format.share import Geometry

ShareKey = tuple[bytes, int]
"""(pack id, share number)."""


@dataclass(frozen=True, slots=True)
class PackRef:
    """A pack, and where its shares were put."""

    pack_id: bytes
    geometry: Geometry
    places: tuple[ServerId | None, ...]
    """Server per share number, as a hint; None where the share is empty or its place is not known."""


class Want(NamedTuple):
    """A byte range of one share, within one block."""

    pack: PackRef
    number: int
    start: int
    end: int


class Fetch(NamedTuple):
    """A byte range of one share to ask of one server; blocks that are neighbours there come as one."""

    pack: PackRef
    number: int
    start: int
    end: int
    server: ServerId


class Piece(NamedTuple):
    """Bytes of one share that are here."""

    start: int
    end: int
    view: memoryview
    server: ServerId
    """Who sent them."""


class Step(NamedTuple):
    """How to come by the bytes of wants that share one byte range of one pack."""

    wants: tuple[int, ...]
    """Indexes of the wants."""
    helpers: tuple[int, ...]
    """Share numbers to rebuild them from; empty: the bytes are read as they are."""


@dataclass(slots=True)
class Plan:
    """What to ask, and what to do with the answers."""

    steps: list[Step] = field(default_factory=list)
    fetches: list[Fetch] = field(default_factory=list)
    lacking: dict[bytes, tuple[PackRef, int]] = field(default_factory=dict)
    """Pack id -> (pack, shares that can be had) where that is fewer than k. Then nothing else is planned."""


class Held:
    """The pieces of shares that one read has got so far."""

    def __init__(self) -> None:
        self._pieces: dict[ShareKey, list[Piece]] = {}

    def add(self, pack_id: bytes, number: int, piece: Piece) -> None:
        self._pieces.setdefault((pack_id, number), []).append(piece)

    def view(self, pack_id: bytes, number: int, start: int, end: int) -> memoryview | None:
        """The bytes of this range, if one piece has them all."""
        for piece in self._pieces.get((pack_id, number), ()):
            if piece.start <= start and end <= piece.end:
                return piece.view[start - piece.start : end - piece.start]
        return None

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()

    def drop(self, pack_id: bytes, number: int, server: ServerId) -> None:
        """Forget what this server sent of a share."""
        key = (pack_id, number)
        self._pieces[key] = [piece for piece in self._pieces.get(key, ()) if piece.server != server]


class Coming:
    """Byte ranges of shares that are on their way from servers that are not late."""

    def __init__(self) -> None:
        self._ranges: dict[ShareKey, list[tuple[int, int]]] = {}

    def add(self, pack_id: bytes, number: int, start: int, end: int) -> None:
        self._ranges.setdefault((pack_id, number), []).append((start, end))

    def covers(self, pack_id: bytes, number: int, start: int, end: int) -> bool:
        """Whether one range has all of these bytes."""
        return any(low <= start and end <= high for low, high in self._ranges.get((pack_id, number), ()))


NOTHING_COMING = Coming()


class Sources:
    """Who may still be asked for what, in one read. It only ever shrinks, but for `found`."""

    def __init__(self, demoted: Iterable[ServerId] = ()) -> None:
        self._avoided = frozenset(demoted)
        self._dead: dict[ServerId, str] = {}
        self._bad: dict[tuple[bytes, int, ServerId], str] = {}
        self._found: dict[ShareKey, list[ServerId]] = {}

    def best(self, pack: PackRef, number: int) -> ServerId | None:
        """The server to ask for this share: one in good health if there is one."""
        candidates = list(self._candidates(pack, number))
        return next((s for s in candidates if s not in self._avoided), candidates[0] if candidates else None)

    def healthy(self, server: ServerId) -> bool:
        return server not in self._avoided

    def late(self, server: ServerId) -> None:
        """It lets us wait: from now on ask it only for what nobody else can give."""
        self._avoided |= {server}

    def alive(self, server: ServerId) -> bool:
        return server not in self._dead

    @property
    def silent(self) -> int:
        """Servers that did not answer: what they have may be had later."""
        return len(self._dead)

    def fail_server(self, server: ServerId, reason: str) -> None:
        """It does not answer: ask it nothing more."""
        self._dead.setdefault(server, reason)

    def fail_share(self, pack_id: bytes, number: int, server: ServerId, reason: str) -> None:
        """It lacks this share, or has a bad one."""
        self._bad.setdefault((pack_id, number, server), reason)

    def found(self, pack_id: bytes, number: int, server: ServerId) -> None:
        """A server that the hints did not name has this share."""
        servers = self._found.setdefault((pack_id, number), [])
        if server not in servers:
            servers.append(server)

    def available(self, pack: PackRef) -> int:
        """How many of the pack's shares can be had, empty ones included."""
        geometry = pack.geometry
        return sum(
            geometry.data_length(number) == 0 or self.best(pack, number) is not None
            for number in range(geometry.n)
        )

    def reasons(self, pack_id: bytes) -> list[tuple[ServerId, str]]:
        """(server, what is wrong with it) for all that failed, as far as this pack is concerned."""
        bad = [(server, reason) for (pack, _, server), reason in self._bad.items() if pack == pack_id]
        return [*self._dead.items(), *bad]

    def _candidates(self, pack: PackRef, number: int) -> Iterator[ServerId]:
        place = pack.places[number]
        found = self._found.get((pack.pack_id, number), ())
        for server in found if place is None else (place, *found):
            if server not in self._dead and (pack.pack_id, number, server) not in self._bad:
                yield server


def plan_reads(
    wants: Sequence[tuple[int, Want]], sources: Sources, held: Held, coming: Coming = NOTHING_COMING
) -> Plan:
    """Plan the reads for (index, want) pairs, with what is `held`, or `coming` and so not asked again.

    The plan either covers every want, or names the packs of which fewer than k shares can be had.
    """
    planning = _Planning(sources, held, coming)
    for index, want in wants:
        planning.direct(index, want)
    planning.rebuild_rest()
    return planning.finish()


class _Planning:
    def __init__(self, sources: Sources, held: Held, coming: Coming) -> None:
        self._sources = sources
        self._held = held
        self._coming = coming
        self._plan = Plan()
        self._ranges: dict[ShareKey, list[tuple[int, int]]] = {}
        self._from: dict[ShareKey, tuple[PackRef, ServerId]] = {}
        self._rows: set[tuple[bytes, int, int]] = set()
        self._rest: dict[tuple[bytes, int, int], list[tuple[int, Want]]] = {}

    def direct(self, index: int, want: Want) -> None:
        """Plan the plain read of a range, or leave it for `rebuild_rest`."""
        pack, number, start, end = want
        pack_id = pack.pack_id
        if self._is_here(pack_id, number, start, end):
            self._plan.steps.append(Step((index,), ()))
            return
        key = (pack_id, number)
        source = self._from.get(key)
        if source is None:
            server = self._sources.best(pack, number)
            if server is None or not self._sources.healthy(server):
                self._rest.setdefault((pack_id, start, end), []).append((index, want))
                return
            self._from[key] = (pack, server)
        self._ranges.setdefault(key, []).append((start, end))
        self._rows.add((pack_id, number, start // pack.geometry.block_size))
        self._plan.steps.append(Step((index,), ()))

    def rebuild_rest(self) -> None:
        """Plan what has no server in good health: rebuild it, or ask demoted servers as the last resort."""
        for group in self._rest.values():
            pack, _, start, end = group[0][1]
            lost = [want.number for _, want in group]
            helpers, all_healthy = self._choose(pack, lost, start, end)
            if helpers and all_healthy:
                self._rebuild(group, helpers)
                continue
            blind = [(index, want) for index, want in group if self._sources.best(pack, want.number) is None]
            for index, want in group:
                if (index, want) not in blind:
                    self._ask(pack, want.number, want.start, want.end)
                    self._plan.steps.append(Step((index,), ()))
            if blind and helpers:
                self._rebuild(blind, self._choose(pack, [want.number for _, want in blind], start, end)[0])
            elif blind:
                self._plan.lacking[pack.pack_id] = (pack, self._sources.available(pack))

    def finish(self) -> Plan:
        plan = self._plan
        if plan.lacking:
            return Plan(lacking=plan.lacking)
        for key, ranges in self._ranges.items():
            pack, server = self._from[key]
            plan.fetches += [Fetch(pack, key[1], start, end, server) for start, end in coalesce(ranges)]
        return plan

    def _choose(
        self, pack: PackRef, lost: Sequence[int], start: int, end: int
    ) -> tuple[tuple[int, ...], bool]:
        """k shares to rebuild from, cheapest first; whether all are in good health; () if there are fewer."""
        ranked: list[tuple[int, int]] = []
        row = start // pack.geometry.block_size
        for number in range(pack.geometry.n):
            if number in lost:
                continue
            if start >= pack.geometry.data_length(number):
                ranked.append((0, number))
                continue
            if self._is_here(pack.pack_id, number, start, min(end, pack.geometry.data_length(number))):
                ranked.append((1, number))
                continue
            server = self._sources.best(pack, number)
            if server is None:
                continue
            if not self._sources.healthy(server):
                ranked.append((4, number))
            else:
                ranked.append((2 if (pack.pack_id, number, row) in self._rows else 3, number))
        ranked.sort()
        chosen = ranked[: pack.geometry.k]
        if len(chosen) < pack.geometry.k:
            return (), False
        return tuple(number for _, number in chosen), chosen[-1][0] < 4

    def _rebuild(self, group: Sequence[tuple[int, Want]], helpers: tuple[int, ...]) -> None:
        pack, _, start, end = group[0][1]
        for number in helpers:
            self._ask(pack, number, start, end)
        self._plan.steps.append(Step(tuple(index for index, _ in group), helpers))

    def _is_here(self, pack_id: bytes, number: int, start: int, end: int) -> bool:
        """Whether a range need not be asked for: it is held, or on its way."""
        if self._held.view(pack_id, number, start, end) is not None:
            return True
        return self._coming is not NOTHING_COMING and self._coming.covers(pack_id, number, start, end)

    def _ask(self, pack: PackRef, number: int, start: int, end: int) -> None:
        """Ask for a range as far as the share goes; what lies behind its end is known to be zeros."""
        end = min(end, pack.geometry.data_length(number))
        if start >= end or self._is_here(pack.pack_id, number, start, end):
            return
        key = (pack.pack_id, number)
        if key not in self._from:
            server = self._sources.best(pack, number)
            assert server is not None, "only shares with a server are chosen"
            self._from[key] = (pack, server)
        self._ranges.setdefault(key, []).append((start, end))
        self._rows.add((pack.pack_id, number, start // pack.geometry.block_size))


def coalesce(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges sorted, those that touch or overlap merged."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
