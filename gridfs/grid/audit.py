"""The audit: whole blocks of one row, checked with header and hash table against the pack id. Pure.

A segment that does not open says that some bytes are wrong, not whose. The hashes say whose: anybody can
check any block of any share from the pack id alone. The downloader asks for what `exhibit_spans` names
and lets `judge` decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gridfs.codec.erasure import rebuild
from gridfs.grid.planner import PackRef
from storage.client import Span
from storage.errors import StorageError
from storage.format.share import HASH_SIZE, ShareHeader, block_ok, verify_table
from storage.ports import Buffer


class Exhibit(NamedTuple):
    """What one server showed of one share: three views, possibly short."""

    header: memoryview
    table: memoryview
    block: memoryview


EXHIBIT_PARTS = 3


def exhibit_spans(pack: PackRef, number: int, row: int) -> tuple[Span, Span, Span]:
    """Header, hash table and one whole block of a share that has this row."""
    geometry = pack.geometry
    offset = geometry.data_offset + row * geometry.block_size
    table_size = HASH_SIZE * geometry.block_count(number)
    return (
        Span(pack.pack_id, number, 0, geometry.data_offset),
        Span(pack.pack_id, number, geometry.table_offset(number), table_size),
        Span(pack.pack_id, number, offset, geometry.block_length(number, row)),
    )


def judge(pack: PackRef, number: int, row: int, exhibit: Exhibit, got: Sequence[int]) -> str | None:
    """What is wrong with a share's block; None if it is the one that the pack id certifies.

    got: the bytes that came of each of `exhibit_spans`.
    """
    if not any(got):
        return "it lacks its share"
    if any(count < len(part) for count, part in zip(got, exhibit, strict=True)):
        return "its share is cut short"
    try:
        header = ShareHeader.decode(exhibit.header)
        if header.number != number or header.geometry != pack.geometry:
            return "it shows another share"
        verify_table(pack.pack_id, header, exhibit.table)
    except StorageError as error:
        return str(error)
    if not block_ok(exhibit.table, row, exhibit.block):
        return "its block does not fit its hash"
    return None


def known_zeros(pack: PackRef, row: int) -> dict[int, Buffer]:
    """The shares that have no such row: their part of it is zeros, and no server needs to be asked."""
    return {number: b"" for number in range(pack.geometry.k) if row >= pack.geometry.block_count(number)}


def rebuild_block(pack: PackRef, number: int, row: int, good: Mapping[int, Buffer]) -> memoryview:
    """Block `row` of share `number` from k good ones, of which short ones count as followed by zeros."""
    geometry = pack.geometry
    length = geometry.block_length(0, row)
    chosen = {other: padded(good[other], length) for other in sorted(good)[: geometry.k]}
    block = memoryview(rebuild(geometry.k, geometry.n, (number,), chosen)[number])
    return block[: geometry.block_length(number, row)]


def padded(data: Buffer, length: int) -> Buffer:
    """`data` with zeros behind, up to `length`; itself where it is that long."""
    size = len(data)
    return data if size >= length else bytes(data) + bytes(length - size)
