"""Placement: which servers should hold a pack's shares, and when enough of them do. Pure.

Every server scores every pack by a hash of both (weighted rendezvous hashing), so a server that comes
or goes moves only its own part of the shares, and nobody keeps a table. The places really used are
recorded with the pack; this order is where to look when that record does not help.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from blake3 import blake3

from gridfs.grid.roster import Roster, Server, ServerId
from storage.format.share import Geometry

_CONTEXT = "gridfs 2026 placement"
_PRECISION = 53
"""Bits of the hash that make a score: what a float holds exactly."""


def order(pack_id: bytes, roster: Roster) -> list[ServerId]:
    """All servers, the pack's best first; each failure domain appears once before any appears again."""
    scored = sorted(roster, key=lambda server: (_score(pack_id, server), server.server_id))
    seen: dict[str, int] = {}
    turns: list[tuple[int, int, ServerId]] = []
    for rank, server in enumerate(scored):
        domain = server.domain or server.server_id.hex()
        turn = seen.get(domain, 0)
        seen[domain] = turn + 1
        turns.append((turn, rank, server.server_id))
    return [server_id for _, _, server_id in sorted(turns)]


def assign(
    geometry: Geometry, servers: Sequence[ServerId], shares_per_server: int = 1
) -> dict[int, ServerId]:
    """Share number -> server, for the shares that are not empty.

    servers: in placement order. Each gets one share before any gets a second; shares for which there is
    no room (more than servers * shares_per_server) have no entry: the last ones.
    """
    slots = list(servers) * shares_per_server
    return dict(zip(geometry.stored_numbers(), slots, strict=False))


def happiness(geometry: Geometry, holders: Mapping[int, ServerId]) -> int:
    """How happy a placement is: k, plus the number of whole servers that may be lost without losing data.

    holders: share number -> server that acknowledged it. With one share a server this is the number of
    distinct servers; empty primaries need no server and count as held. Below k the data cannot be read.
    """
    counts: dict[ServerId, int] = {}
    for server_id in holders.values():
        counts[server_id] = counts.get(server_id, 0) + 1
    left = geometry.n - len(geometry.stored_numbers()) + len(holders)
    if left < geometry.k:
        return left
    lost = 0
    for count in sorted(counts.values(), reverse=True):
        left -= count
        if left < geometry.k:
            break
        lost += 1
    return geometry.k + lost


def preferred(servers: Iterable[ServerId], demoted: Iterable[ServerId]) -> list[ServerId]:
    """The same servers in the same order, but the demoted ones last."""
    avoid = frozenset(demoted)
    listed = list(servers)
    return [s for s in listed if s not in avoid] + [s for s in listed if s in avoid]


def _score(pack_id: bytes, server: Server) -> float:
    digest = blake3(pack_id + server.server_id, derive_key_context=_CONTEXT).digest(8)
    point = ((int.from_bytes(digest, "little") >> (64 - _PRECISION)) + 0.5) / (1 << _PRECISION)
    return -math.log(point) / server.weight
