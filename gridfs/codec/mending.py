"""Mending: shares that a pack lacks, built anew from any k that it has. Pure; meant for a worker thread.

The header of a share holds a path through the roots of all n, so all columns are computed, one after the
other: no more than the primaries, one parity column and what is wanted are in memory at a time. What comes
out is checked against the pack id.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gridfs.codec.erasure import rebuild
from storage.errors import Corrupt
from storage.format.share import Geometry, build_headers, column_table
from storage.ports import Buffer


def mend(
    geometry: Geometry, pack_id: bytes, columns: Mapping[int, Buffer], wanted: Collection[int]
) -> dict[int, tuple[Buffer, ...]]:
    """Share number -> header, blocks and table, for the `wanted` ones.

    columns: block data of at least k shares, empty primaries included; short ones count as followed by
    zeros. Raises Corrupt where they do not give the pack of that id, ValueError for fewer than k.
    """
    k, n = geometry.k, geometry.n
    size = geometry.data_length(0)
    have = {number: _padded(column, size) for number, column in sorted(columns.items())[:k]}
    primaries = rebuild(k, n, range(k), have)
    tables: list[bytes] = []
    kept: dict[int, Buffer] = {}
    for number in range(n):
        column = primaries[number] if number < k else rebuild(k, n, (number,), primaries)[number]
        tables.append(column_table(geometry, number, column))
        if number in wanted:
            kept[number] = memoryview(column)[: geometry.data_length(number)]
    built = build_headers(geometry, tables)
    if built.pack_id != pack_id:
        raise Corrupt("the shares do not give the pack")
    return {number: (built.headers[number], data, tables[number]) for number, data in kept.items()}


def _padded(column: Buffer, size: int) -> Buffer:
    length = len(column)
    return column if length >= size else bytes(column) + bytes(size - length)
