"""Which servers keep the head log, after somebody has named some to add and some to remove. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from gridfs.codec.headlist import HeadList
from gridfs.config import Config
from gridfs.grid.roster import Roster, ServerId
from storage.errors import Refused

ID_DIGITS_MIN = 6


def changed(
    config: Config, roster: Roster, now: HeadList, add: Sequence[str], remove: Sequence[str]
) -> HeadList:
    """The list that follows `now`. Servers are named by their number in the servers file, from 1, or by the
    start of their id. Raises Refused with one line that says what is wrong."""
    added, removed = [_find(roster, now, name) for name in add], [_find(roster, now, name) for name in remove]
    for index, server in enumerate(added):
        if roster.get(server) is None:
            raise Refused(f"{roster.name(server)} is not in the servers file")
        if server in now.servers or server in added[:index]:
            raise Refused(f"{roster.name(server)} keeps the head log already")
    for index, server in enumerate(removed):
        if server not in now.servers or server in removed[:index]:
            raise Refused(f"{roster.name(server)} does not keep the head log")
    servers = (*(server for server in now.servers if server not in removed), *added)
    quorum = config.quorum_of(len(servers))
    if quorum > len(servers):
        raise Refused(f"{len(servers)} head servers are too few: a quorum takes {quorum}")
    if servers == now.servers:
        raise Refused("name servers to add or to remove")
    return HeadList(servers, quorum, now.generation + 1)


def _find(roster: Roster, now: HeadList, name: str) -> ServerId:
    """A server of the roster, or one that has left it and still keeps the head log."""
    if name.isdigit() and 1 <= int(name) <= len(roster):
        return roster.servers[int(name) - 1].server_id
    ids = dict.fromkeys((*(server.server_id for server in roster), *now.servers))
    found = [server for server in ids if server.hex().startswith(name.lower())]
    if len(name) < ID_DIGITS_MIN or len(found) != 1:
        raise Refused(
            f"{name}: name a server by its number in the servers file (1 to {len(roster)}), or by at least "
            f"{ID_DIGITS_MIN} digits of its id"
        )
    return found[0]
