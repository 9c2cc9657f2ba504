"""What can go wrong between a file system and its grid. Each message is one line for a person."""

from __future__ import annotations

from collections.abc import Sequence

NAMES_MAX = 4
"""Servers that a message names; of more it says how many."""


class GridError(Exception):
    """Any failure of the grid as a whole."""


class RosterError(GridError):
    """A servers file is wrong: its author must act."""


class NotEnoughServers(GridError):
    """Data cannot be stored now: too few servers took their shares. Try again later."""

    def __init__(self, subject: str, got: int, happy: int, failed: Sequence[str] = ()) -> None:
        why = f" ({_list(failed)})" if failed else ""
        super().__init__(f"{subject}: {got} of the {happy} servers needed{why}")
        self.got = got
        self.happy = happy


class NotEnoughShares(GridError):
    """Data cannot be read now: fewer than k shares were found. Try again when servers are back."""

    def __init__(
        self, pack_id: bytes, got: int, k: int, failed: Sequence[str] = (), *, silent: int = 0
    ) -> None:
        """`silent`: servers that did not answer."""
        why = f" ({_list(failed)})" if failed else ""
        super().__init__(f"pack {short(pack_id)}: {got} of the {k} shares needed were found{why}")
        self.pack_id = pack_id
        self.got = got
        self.k = k
        self.may_pass = silent > 0
        """Whether it may be otherwise when servers are back."""


class DamagedData(GridError):
    """Shares are what the pack id certifies and yet do not open: key or place in metadata is wrong."""

    def __init__(self, pack_id: bytes, reason: str) -> None:
        super().__init__(f"pack {short(pack_id)}: {reason}")
        self.pack_id = pack_id


def short(identity: bytes) -> str:
    """A pack id or server id as messages show it: its first ten hexadecimal digits."""
    return identity.hex()[:10]


def _list(items: Sequence[str]) -> str:
    rest = len(items) - NAMES_MAX
    return "; ".join(items[:NAMES_MAX]) + (f"; and {rest} more" if rest > 0 else "")
