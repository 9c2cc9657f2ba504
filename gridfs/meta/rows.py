"""What the metadata store hands out: frozen records, each a copy that later changes do not touch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

ROOT = 1
"""Inode number of the root directory."""

FIRST_COOKIE = 3
"""The smallest cookie of a directory entry; 1 and 2 are left for `.` and `..`."""


class Sealer(Protocol):
    """Seals secrets at rest under the file system's local key."""

    def seal(self, data: bytes) -> bytes: ...

    def open(self, data: bytes) -> bytes:
        """The inverse of `seal`; raises `storage.errors.Corrupt` for anything else."""


class Inode(NamedTuple):
    """One inode. Times in nanoseconds since 1970."""

    ino: int
    mode: int
    """Type and permission bits, as in stat(2)."""
    uid: int
    gid: int
    size: int
    """Bytes of a regular file, length of a symbolic link's target, else 0."""
    nlink: int
    """Names; a directory has 2 plus one per subdirectory. 0: an orphan."""
    atime: int
    mtime: int
    ctime: int
    rdev: int
    target: bytes
    """Where a symbolic link points, else empty."""
    blocks: int
    """Units of 512 bytes really held by extents (dirty bytes in the spool are not among them)."""
    read_only: bool = False
    """Part of a snapshot: nobody may change it."""


class Entry(NamedTuple):
    """One name in a directory."""

    cookie: int
    """Position in the listing: rises from entry to entry, stays while others come and go."""
    name: bytes
    ino: int
    mode: int
    """The type bits only (S_IFMT)."""


class Listed(NamedTuple):
    """One name in a directory, with all that its inode says."""

    cookie: int
    name: bytes
    inode: Inode


class Extent(NamedTuple):
    """Bytes [start, start + length) of an inode lie in a run, from its plaintext byte `skip` on."""

    start: int
    length: int
    pack_ref: int
    """The pack's number in this store, for `Metadata.pack`."""
    run: int
    run_offset: int
    """Offset of the run in the pack's sealed stream."""
    run_length: int
    """Plaintext bytes of the whole run."""
    skip: int
    frozen: int
    """Number of the last operation whose bytes may be in the run."""

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack that this file system keeps in the grid."""

    pack_id: bytes
    k: int
    n: int
    stream_length: int
    key: bytes
    """Opened: the pack key, or the run's own key where `convergent`."""
    convergent: bool
    places: tuple[bytes | None, ...]
    """Server id per share number; None where nobody holds it or the share is empty."""
    missing: tuple[int, ...]
    """Numbers of the shares that are owed."""
    kind: int
    live_bytes: int
    """Plaintext bytes that extents refer to, each reference counted."""

    def __repr__(self) -> str:
        # A record may reach a log; its key must not.
        return f"Pack({self.pack_id.hex()[:16]}, {self.k}-of-{self.n}, live_bytes={self.live_bytes})"


@dataclass(frozen=True, slots=True)
class Garbage:
    """A pack that nothing refers to any more; its shares may be released later."""

    pack_ref: int
    pack_id: bytes
    since: int
    """Number of the operation that was applied last when the pack died."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of the whole file system."""

    files: int
    """Inodes that are not directories, orphans included."""
    directories: int
    bytes: int
    """Sizes of all regular files, holes included, modulo 2**63."""
    packs: int
    """Packs in use, journal packs among them; garbage is not."""
    live_bytes: int
    """Plaintext bytes that extents refer to."""
    missing_shares: int
    """Shares owed by packs in use."""
