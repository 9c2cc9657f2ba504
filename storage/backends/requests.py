"""Checks of what a backend is asked for, the same for every backend."""

from __future__ import annotations

from collections.abc import Sequence

from storage.backends.port import IncomingShare, ShareKey
from storage.errors import Refused
from storage.format.geometry import MAX_SHARE_SIZE, MAX_SHARES
from storage.leases import Lease

KEYS_PER_OPERATION = 1000
"""Keys that are committed in one step; longer vectors go in several."""


def share_length(share: IncomingShare) -> int:
    """Bytes of the share."""
    return sum(len(part) for part in share.parts)


def check_keys(keys: Sequence[ShareKey], lease: Lease | None) -> None:
    """Raise Refused for malformed keys or lease."""
    for key in keys:
        if len(key.pack_id) != 32 or not 0 <= key.number < MAX_SHARES:
            raise Refused("a share is named by 32 bytes and a number in 0..255")
    if lease is not None:
        lease.check()


def check_shares(shares: Sequence[IncomingShare]) -> None:
    """Raise Refused for malformed keys or leases, empty and oversized shares."""
    for share in shares:
        check_keys([share.key], share.lease)
        if not 0 < share_length(share) <= MAX_SHARE_SIZE:
            raise Refused(f"a share of {share_length(share)} bytes; at most {MAX_SHARE_SIZE}")
