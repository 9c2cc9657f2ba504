"""Where the shares of one pack are, are going, and may still go. No I/O; see `uploader`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from gridfs.grid.roster import ServerId
from storage.format.share import Geometry


class Placing:
    """The state of one pack's upload, or of the placing of what it lacks."""

    def __init__(
        self,
        geometry: Geometry,
        numbers: Collection[int],
        servers: Sequence[ServerId],
        shares_per_server: int,
        demoted: frozenset[ServerId],
    ) -> None:
        """servers: who may get the shares `numbers`, best first; each gets `shares_per_server` at most."""
        self.holders: dict[int, ServerId] = {}
        self.failures: list[str] = []
        self._geometry = geometry
        self._numbers = sorted(numbers)
        slots = [*servers] * shares_per_server
        self._first = dict(zip(self._numbers, slots, strict=False))
        self._spare = slots[len(self._first) :]
        self._avoided = demoted
        self._under_way: dict[ServerId, int] = {}
        self._moved: dict[tuple[ServerId, int], None] = {}
        """(server, share) that was given to another server since."""

    def first(self) -> dict[ServerId, list[int]]:
        """The first assignment, as server -> share numbers."""
        return self._start(self._first)

    def acknowledged(self, server_id: ServerId, numbers: Sequence[int]) -> None:
        """The server has these shares; whoever was first counts as the holder."""
        self._under_way[server_id] -= 1
        for number in numbers:
            self.holders.setdefault(number, server_id)

    def refused(self, server_id: ServerId, numbers: Sequence[int]) -> dict[ServerId, list[int]]:
        """The server failed: never ask it again; returns where its shares go instead."""
        self._under_way[server_id] -= 1
        return self._move(server_id, numbers)

    def late(self, server_id: ServerId, numbers: Sequence[int]) -> dict[ServerId, list[int]]:
        """The server lets us wait: nobody waits for it any more; returns where its shares go as well."""
        self._avoided |= {server_id}
        return self._move(server_id, numbers)

    @property
    def is_complete(self) -> bool:
        return len(self.holders) == len(self._numbers)

    @property
    def worth_waiting(self) -> bool:
        """Whether a server that is well has not answered yet."""
        return any(count and server not in self._avoided for server, count in self._under_way.items())

    def _move(self, server_id: ServerId, numbers: Sequence[int]) -> dict[ServerId, list[int]]:
        self._spare = [other for other in self._spare if other != server_id]
        wanting = [n for n in numbers if n not in self.holders and (server_id, n) not in self._moved]
        moved = dict(zip(wanting, self._spare, strict=False))
        self._moved |= {(server_id, number): None for number in moved}
        del self._spare[: len(moved)]
        return self._start(moved)

    def _start(self, assignment: Mapping[int, ServerId]) -> dict[ServerId, list[int]]:
        groups: dict[ServerId, list[int]] = {}
        for number, server_id in assignment.items():
            groups.setdefault(server_id, []).append(number)
        for server_id in groups:
            self._under_way[server_id] = self._under_way.get(server_id, 0) + 1
        return groups
