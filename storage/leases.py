"""Leases: who needs a share, and since which record. The rules, without storage.

A lease is held by (file system, account) and carries a stamp: the (epoch, sequence) of the newest put or
have that asserted it. A stamp only rises; a release takes away only a lease whose stamp is lower than its
own; the share goes when a release takes its last lease. No clock ever ends a lease.
"""

from __future__ import annotations

from typing import NamedTuple

from storage.errors import Refused

FILE_SYSTEM_SIZE = 16
ACCOUNT_SIZE = 16
STAMP_MAX = 2**63 - 1

Stamp = tuple[int, int]
"""(epoch, sequence) of a head record, compared in that order."""
Holder = tuple[bytes, bytes]
"""(file system, account): at most one lease a share."""


class Lease(NamedTuple):
    """A claim of one account, for one file system, on a share."""

    file_system: bytes
    """16 bytes."""
    account: bytes
    """16 bytes."""
    epoch: int
    sequence: int

    @property
    def holder(self) -> Holder:
        return self.file_system, self.account

    @property
    def stamp(self) -> Stamp:
        return self.epoch, self.sequence

    def check(self) -> None:
        """Raise Refused unless every field has its size and range."""
        if len(self.file_system) != FILE_SYSTEM_SIZE or len(self.account) != ACCOUNT_SIZE:
            raise Refused("a lease names its file system and account by 16 bytes each")
        if not (0 <= self.epoch <= STAMP_MAX and 0 <= self.sequence <= STAMP_MAX):
            raise Refused("a lease's epoch and sequence lie in 0..2**63-1")


def rises(held: Stamp | None, asserted: Stamp) -> bool:
    """Whether asserting a lease changes what is held."""
    return held is None or asserted > held


def releases(held: Stamp | None, released: Stamp) -> bool:
    """Whether a release with that stamp takes the held lease away."""
    return held is not None and held < released
