"""Who keeps a head log: an explicit list, never computed, with the number of servers that make a quorum."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

import msgspec

ServerKey = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]

Need = Literal["none", "seeing", "quorum"]
"""How many of a list: any number, as many as show every record that a quorum has, or a quorum."""


class HeadList(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One list of head servers."""

    servers: tuple[ServerKey, ...]
    """Server ids."""
    quorum: Annotated[int, msgspec.Meta(ge=1, le=256)]
    """W: so many have every record that counts."""
    generation: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    """Rises with each change of the list."""

    def needed(self, need: Need) -> int:
        return {"none": 0, "seeing": len(self.servers) - self.quorum + 1, "quorum": self.quorum}[need]

    def count(self, servers: Collection[bytes]) -> int:
        """How many of `servers` are in the list."""
        return sum(server in servers for server in self.servers)
