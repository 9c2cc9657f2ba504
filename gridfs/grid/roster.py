"""The roster: the storage servers that a file system may use, as its servers file lists them.

A servers file has one access line per server (what `gridfs-storage access` prints), blank lines and
comments after `#` at the start of a line. Behind a line may stand `weight=NUMBER` (its share of the
load, 1 if not given) and `domain=WORD` (servers that fail together).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gridfs.grid.errors import RosterError
from storage.errors import Refused
from storage.wire.url import Access, parse_access

ServerId = bytes
"""A server's Ed25519 public key, 32 bytes."""

SERVERS_MAX = 1024
WEIGHT_MAX = 1000.0


@dataclass(frozen=True, slots=True)
class Server:
    """One server of the roster."""

    index: int
    """Its place in the file, from 0: a short name for people, not for formats."""
    access: Access
    weight: float = 1.0
    """Its share of the load, relative to the others."""
    domain: str = ""
    """Failure domain; empty: the server stands for itself."""

    @property
    def server_id(self) -> ServerId:
        return self.access.server_id


@dataclass(frozen=True, slots=True)
class Roster:
    """All servers, in the order of their file."""

    servers: tuple[Server, ...]

    def __post_init__(self) -> None:
        ids = [server.server_id for server in self.servers]
        if len(dict.fromkeys(ids)) != len(ids):
            raise RosterError("a server is listed twice")

    def __len__(self) -> int:
        return len(self.servers)

    def __iter__(self) -> Iterator[Server]:
        return iter(self.servers)

    def get(self, server_id: ServerId) -> Server | None:
        """The server with this id, None if it is not in the roster."""
        return next((server for server in self.servers if server.server_id == server_id), None)

    def name(self, server_id: ServerId) -> str:
        """What messages call a server: its number in the file and the start of its id."""
        server = self.get(server_id)
        place = "unlisted server" if server is None else f"server {server.index + 1}"
        return f"{place} {server_id.hex()[:10]}"


def parse_roster(text: str) -> Roster:
    """Read a servers file. Raises RosterError with the line's number and what is wrong with it."""
    servers: list[Server] = []
    line_of: dict[ServerId, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            server = _parse_line(len(servers), words)
        except (Refused, ValueError) as error:
            raise RosterError(f"servers file, line {number}: {error}") from None
        first = line_of.setdefault(server.server_id, number)
        if first != number:
            raise RosterError(f"servers file, line {number}: the same server as in line {first}")
        servers.append(server)
    if not servers:
        raise RosterError("the servers file lists no server")
    if len(servers) > SERVERS_MAX:
        raise RosterError(f"the servers file lists {len(servers)} servers; {SERVERS_MAX} are possible")
    return Roster(tuple(servers))


def _parse_line(index: int, words: Sequence[str]) -> Server:
    access = parse_access(words[0])
    if access.secret is None:
        raise ValueError(
            "this is a public URL without a secret; `gridfs-storage access DIR` prints one with it"
        )
    weight, domain = 1.0, ""
    for word in words[1:]:
        name, _, value = word.partition("=")
        if name == "weight":
            weight = _parse_weight(value)
        elif name == "domain" and value:
            domain = value
        else:
            raise ValueError("only weight=NUMBER and domain=WORD may follow a server's URL")
    return Server(index, access, weight, domain)


def _parse_weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight <= WEIGHT_MAX:
        raise ValueError(f"a weight is a number above 0 and up to {WEIGHT_MAX:.0f}")
    return weight
