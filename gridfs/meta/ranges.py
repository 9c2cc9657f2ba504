"""What a checkpoint is made of: parts of ranges of rows, and the root that lists them. Pure.

The metadata's tables are cut into ranges by inode, body and pack number (`schema.FAMILIES`). The rows of
one range are one or more parts, each a run in a pack of its own kind; the root says which part lies where,
so that the next checkpoint writes only the ranges that changed. SPEC.md has the fields.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from gridfs.meta.operations import Count, Hash, PackRecord
from gridfs.meta.schema import FAMILIES
from storage.errors import Corrupt, Refused

ROOT_VERSION = 2
PART_BYTES = 1 << 20
"""Encoded rows after which a part ends, about: one that is loaded is in memory as a whole."""
PART_BYTES_MAX = 64 << 20
"""Of one part, inflated; far above what the largest row makes of it."""
LEVEL = 1
"""Of zlib: a fifth of the bytes is left of the rows of many small files."""
_ROW_COST = 40

Row = Sequence[Any]


class KeptPart(NamedTuple):
    """One part of a range in the newest checkpoint."""

    family: int
    bucket: int
    part: int
    pack: bytes
    """Pack id."""
    run: int
    run_offset: int
    run_length: int


class PartPlace(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where one part of a range lies."""

    family: Annotated[int, msgspec.Meta(ge=0, lt=len(FAMILIES))]
    bucket: int
    part: Count
    pack: Count
    """Index into the root's packs."""
    run: Count
    run_offset: Count
    run_length: Annotated[int, msgspec.Meta(ge=1)]


class Root(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The plaintext of a checkpoint's root pack."""

    version: int
    number: Count
    """The last operation that the rows know."""
    state: bytes
    """The counters, as the table `state` has them."""
    servers: list[tuple[int, Hash]]
    """Numbers by which places of packs name servers."""
    packs: list[PackRecord]
    parts: list[PartPlace]
    """By family, bucket and part."""

    def kept(self) -> list[KeptPart]:
        """The parts with the ids of their packs."""
        return [
            KeptPart(
                place.family,
                place.bucket,
                place.part,
                self.packs[place.pack].pack_id,
                place.run,
                place.run_offset,
                place.run_length,
            )
            for place in self.parts
        ]


_encoder = msgspec.msgpack.Encoder()
_root = msgspec.msgpack.Decoder(Root)
_part = msgspec.msgpack.Decoder(list[tuple[int, list[list[int | bytes | None]]]])


def encode_root(root: Root) -> bytes:
    return _encoder.encode(root)


def decode_root(data: bytes | bytearray | memoryview) -> Root:
    """Raises Corrupt, or Refused for a version this program does not know."""
    try:
        root = _root.decode(data)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"checkpoint cannot be read: {error}") from None
    if root.version != ROOT_VERSION:
        raise Refused(f"the checkpoint has format version {root.version}; this gridfs reads {ROOT_VERSION}")
    if any(part.pack >= len(root.packs) for part in root.parts):
        raise Corrupt("a checkpoint names a pack that it has not")
    return root


def encode_parts(tables: Iterable[tuple[int, Iterable[Row]]]) -> Iterator[bytes]:
    """The rows of one range, table by table, as parts of bounded size, deflated; nothing without rows."""
    part: list[tuple[int, list[Row]]] = []
    size = 0
    for number, rows in tables:
        taken: list[Row] = []
        for row in rows:
            taken.append(row)
            size += _ROW_COST + sum(len(value) for value in row if isinstance(value, bytes))
            if size >= PART_BYTES:
                yield zlib.compress(_encoder.encode([*part, (number, taken)]), LEVEL)
                part, taken, size = [], [], 0
        if taken:
            part.append((number, taken))
    if part:
        yield zlib.compress(_encoder.encode(part), LEVEL)


def decode_part(data: bytes | bytearray | memoryview, family: int) -> Sequence[tuple[int, Sequence[Row]]]:
    """(index of the table in its family, rows) of one part. Raises Corrupt."""
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(data, PART_BYTES_MAX)
        if not inflate.eof or inflate.unused_data:
            raise Corrupt("part of a checkpoint is cut short, too long, or followed by something")
        tables = _part.decode(plain)
    except (msgspec.MsgspecError, zlib.error) as error:
        raise Corrupt(f"part of a checkpoint cannot be read: {error}") from None
    for number, rows in tables:
        if not 0 <= number < len(FAMILIES[family]):
            raise Corrupt(f"part of a checkpoint has a table {number}")
        width = len(FAMILIES[family][number].columns)
        if any(len(row) != width for row in rows):
            raise Corrupt("a row of a checkpoint has a wrong number of fields")
    return tables
