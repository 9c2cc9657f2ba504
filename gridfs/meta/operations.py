"""The operations: every change of a file system, as the spool, the head log and the store know it.

An operation is a frozen record; its number travels beside it. The encoding is MessagePack, an array
whose first element is the tag of the kind (SPEC.md has the field tables). All times are nanoseconds
since 1970 and may be negative; names, targets and extended attributes are bytes.

The records check nothing when they are made by the program itself; `decode` checks types and ranges
of what comes from outside, and `Metadata.apply` checks every operation against the state.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from storage.errors import Corrupt

MAX_INTEGER = (1 << 63) - 1
"""The largest offset, size, number or time: what SQLite's integers hold."""

NAME_BYTES_MAX = 255
TARGET_BYTES_MAX = 4095
XATTR_BYTES_MAX = 65536
PARTS_MAX = 16
"""Changes made together."""

Inode = Annotated[int, msgspec.Meta(ge=1, le=MAX_INTEGER)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
Time = Annotated[int, msgspec.Meta(ge=-MAX_INTEGER - 1, le=MAX_INTEGER)]
Word = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
Name = Annotated[bytes, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Make(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True, gc=False):
    """A new inode with its first name: file, directory, symbolic link, fifo, socket or device by `mode`."""

    ino: Inode
    parent: Inode
    name: Name
    mode: Word
    uid: Word
    gid: Word
    rdev: Count
    target: Annotated[bytes, msgspec.Meta(max_length=TARGET_BYTES_MAX)]
    """Where a symbolic link points; empty for everything else."""
    time: Time


class Link(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True, gc=False):
    """One more name for an inode that is not a directory."""

    ino: Inode
    parent: Inode
    name: Name
    time: Time


class Unlink(msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True, gc=False):
    """Take a name away, of an empty directory too. Without a name the inode is an orphan until `Drop`."""

    parent: Inode
    name: Name
    ino: Inode
    time: Time


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=4, forbid_unknown_fields=True, gc=False):
    """The last handle of an orphan was closed: the inode and its data go. Also for a detached directory
    once it is empty."""

    ino: Inode


class Rename(msgspec.Struct, frozen=True, array_like=True, tag=5, forbid_unknown_fields=True, gc=False):
    """Move a name, over another one or in exchange with it."""

    parent: Inode
    name: Name
    new_parent: Inode
    new_name: Name
    ino: Inode
    """The inode that is moved."""
    replaced: Count
    """The inode at the new name before: 0 for none; with `exchange` the one that takes the old name."""
    exchange: bool
    time: Time


class SetAttributes(
    msgspec.Struct, frozen=True, array_like=True, tag=6, forbid_unknown_fields=True, gc=False
):
    """Change what is not None. `size` truncates, or extends by a hole. `mode` keeps its type bits."""

    ino: Inode
    mode: Word | None
    uid: Word | None
    gid: Word | None
    atime: Time | None
    mtime: Time | None
    size: Count | None
    ctime: Time


class Write(msgspec.Struct, frozen=True, array_like=True, tag=7, forbid_unknown_fields=True, gc=False):
    """Bytes were written, which lie beside the record in the spool; here only size and times count."""

    ino: Inode
    offset: Count
    length: Count
    time: Time | None
    """None leaves the times: who wrote sets them by itself, before or after."""


class SetXattr(msgspec.Struct, frozen=True, array_like=True, tag=8, forbid_unknown_fields=True, gc=False):
    """Set or replace an extended attribute."""

    ino: Inode
    name: Name
    value: Annotated[bytes, msgspec.Meta(max_length=XATTR_BYTES_MAX)]
    time: Time


class RemoveXattr(msgspec.Struct, frozen=True, array_like=True, tag=9, forbid_unknown_fields=True, gc=False):
    """Take an extended attribute away."""

    ino: Inode
    name: Name
    time: Time


KIND_DATA = 0
KIND_JOURNAL = 1
KIND_CHECKPOINT = 2


class PackRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A pack that is stored in the grid, or newer news of where its shares lie."""

    pack_id: Hash
    k: Annotated[int, msgspec.Meta(ge=1, le=256)]
    n: Annotated[int, msgspec.Meta(ge=1, le=256)]
    stream_length: Annotated[int, msgspec.Meta(ge=1, le=MAX_INTEGER)]
    key: Hash
    """The pack key, or the run's own key where `convergent`."""
    convergent: bool
    places: list[Hash | None]
    """Server id for each share number; None where nobody holds it or the share is empty."""
    missing: list[Annotated[int, msgspec.Meta(ge=0, le=255)]]
    """Numbers of the shares that are owed."""
    kind: Annotated[int, msgspec.Meta(ge=0, le=2)] = KIND_DATA

    def __repr__(self) -> str:
        # A record may reach a log; its key must not.
        return f"PackRecord({self.pack_id.hex()[:16]}, {self.k}-of-{self.n}, missing={self.missing})"


class ExtentRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Bytes [start, start + length) of an inode lie in a run, from its plaintext byte `skip` on."""

    ino: Inode
    start: Count
    length: Annotated[int, msgspec.Meta(ge=1, le=MAX_INTEGER)]
    pack: Count
    """Index into the packs of the same Commit."""
    run: Count
    run_offset: Count
    """Offset of the run in the pack's sealed stream."""
    run_length: Annotated[int, msgspec.Meta(ge=1, le=MAX_INTEGER)]
    """Plaintext bytes of the whole run."""
    skip: Count
    frozen: Count
    """Number of the last operation whose bytes may be in the run."""


class Commit(msgspec.Struct, frozen=True, array_like=True, tag=10, forbid_unknown_fields=True, gc=False):
    """Packs are in the grid, and these ranges of files now lie in them.

    The extents are clipped by their writer against every truncate since the freeze. They replace what
    was frozen earlier and give way to what was frozen later; extents of inodes that are gone are left out.
    """

    packs: list[PackRecord]
    extents: list[ExtentRecord]


class Together(msgspec.Struct, frozen=True, array_like=True, tag=12, forbid_unknown_fields=True, gc=False):
    """Changes of inodes and their extended attributes that are made in one step or not at all, in order.

    None of them: a number without effect.
    """

    parts: Annotated[
        list[Make | Drop | SetAttributes | SetXattr | RemoveXattr], msgspec.Meta(max_length=PARTS_MAX)
    ]


class Clone(msgspec.Struct, frozen=True, array_like=True, tag=13, forbid_unknown_fields=True, gc=False):
    """A new inode that is a copy of another one as it stands: attributes, extended attributes, extents.

    Bytes of the source that are in no extent yet lie in the spool and are shared there. Of a directory
    only the inode is copied, without what lies in it.
    """

    ino: Inode
    source: Inode
    parent: Count
    """Directory of the first name; 0 for a directory that nobody sees until `Attach`."""
    name: Annotated[bytes, msgspec.Meta(max_length=NAME_BYTES_MAX)]
    """Empty where there is no parent."""
    read_only: bool
    """Part of a snapshot: it never changes again."""
    time: Time


class Attach(msgspec.Struct, frozen=True, array_like=True, tag=14, forbid_unknown_fields=True, gc=False):
    """A directory that nobody saw gets its name, with all that lies in it."""

    ino: Inode
    parent: Inode
    name: Name
    time: Time


class Detach(msgspec.Struct, frozen=True, array_like=True, tag=15, forbid_unknown_fields=True, gc=False):
    """A directory loses its name, with all that lies in it; from now on nobody sees it."""

    parent: Inode
    name: Name
    ino: Inode
    time: Time


class Retire(msgspec.Struct, frozen=True, array_like=True, tag=16, forbid_unknown_fields=True, gc=False):
    """A newer checkpoint took the place of these journal and checkpoint packs."""

    pack_ids: list[Hash]


Operation = (
    Make
    | Link
    | Unlink
    | Drop
    | Rename
    | SetAttributes
    | Write
    | SetXattr
    | RemoveXattr
    | Commit
    | Together
    | Clone
    | Attach
    | Detach
    | Retire
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Operation] = msgspec.msgpack.Decoder(Operation)


def encode(operation: Operation) -> bytes:
    """The bytes of one operation; the same operation always gives the same bytes."""
    return _encoder.encode(operation)


def decode(data: bytes | bytearray | memoryview) -> Operation:
    """The operation in `data`, which holds exactly one. Raises Corrupt."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Corrupt(f"operation record cannot be read: {error}") from error
