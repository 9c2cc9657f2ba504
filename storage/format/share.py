"""The share: what one server holds of a pack, verifiable by anybody from the pack id alone.

Pure. `Geometry` says how long everything is, `build_shares` makes headers and hash tables for columns
of sealed blocks, `ShareVerifier` checks a share as it arrives. Bytes are laid down in SPEC.md:

    header (64 bytes) | path (32 * ceil(log2 n)) | blocks | table (32 per block)
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from storage.errors import Corrupt, Refused
from storage.format.geometry import (
    BLOCK_SIZE,
    HEADER_SIZE,
    MAX_SHARE_SIZE,
    MAX_SHARES,
    SEGMENT_SIZE,
    TAG_SIZE,
    Geometry,
    locate,
    max_full_rows,
)
from storage.format.hashes import HASH_SIZE, block_hasher, hash_block, hash_node, hash_pack, hash_table
from storage.ports import Buffer

__all__ = [
    "BLOCK_SIZE",
    "EMPTY_ROOT",
    "FORMAT_VERSION",
    "HASH_SIZE",
    "HEADER_SIZE",
    "MAX_SHARES",
    "MAX_SHARE_SIZE",
    "SEGMENT_SIZE",
    "TAG_SIZE",
    "BuiltPack",
    "Geometry",
    "ShareHeader",
    "ShareVerifier",
    "block_ok",
    "build_headers",
    "build_shares",
    "column_table",
    "locate",
    "max_full_rows",
    "verify_header",
    "verify_share",
    "verify_table",
]

FORMAT_VERSION = 1
MAGIC = b"gridfsSH"
EMPTY_ROOT = hash_table(b"")

_HEADER = struct.Struct(">8sHHHHI4xQ32s")
_CERTIFIED = struct.Struct(">HHHIQ")
RESERVED = slice(20, 24)
assert _HEADER.size == HEADER_SIZE
assert _CERTIFIED.size == 18


@dataclass(frozen=True, slots=True)
class ShareHeader:
    """What leads a share: enough to recompute the pack id, and to check the share's table."""

    geometry: Geometry
    number: int
    """Number of the share, 0..n-1."""
    root: bytes
    """Share root: hash of the share's table."""
    path: tuple[bytes, ...]
    """Sibling hashes from the share root up, `geometry.depth` of them."""

    def encode(self) -> bytes:
        """The first `geometry.data_offset` bytes of the share."""
        g = self.geometry
        fixed = _HEADER.pack(
            MAGIC, FORMAT_VERSION, g.k, g.n, self.number, g.block_size, g.stream_length, self.root
        )
        return b"".join((fixed, *self.path))

    @classmethod
    def decode(cls, data: Buffer) -> ShareHeader:
        """Read a header from the start of `data`, which may go on behind it.

        Raises Corrupt where it is none or is cut short, Refused where it has another format version.
        The result is not verified: compare `pack_id()` with the id that was asked for.
        """
        view = memoryview(data)
        if len(view) < HEADER_SIZE:
            raise Corrupt(f"share header is cut short at {len(view)} bytes")
        magic, version, k, n, number, block_size, length, root = _HEADER.unpack_from(view)
        if magic != MAGIC:
            raise Corrupt("not a share: wrong magic")
        if version != FORMAT_VERSION:
            raise Refused(f"share format version {version} is unknown; this program reads {FORMAT_VERSION}")
        try:
            geometry = Geometry(k, n, length, block_size)
        except ValueError as error:
            raise Corrupt(f"share header: {error}") from None
        if number >= n or any(view[RESERVED]):
            raise Corrupt("share header: number or reserved bytes out of range")
        if len(view) < geometry.data_offset:
            raise Corrupt(f"share header is cut short at {len(view)} bytes")
        ends = range(HEADER_SIZE, geometry.data_offset, HASH_SIZE)
        return cls(geometry, number, root, tuple(bytes(view[i : i + HASH_SIZE]) for i in ends))

    def pack_id(self) -> bytes:
        """The pack id that this header's fields, root and path lead to."""
        node, position = self.root, self.number
        for sibling in self.path:
            node = hash_node(sibling, node) if position & 1 else hash_node(node, sibling)
            position >>= 1
        return _certify(self.geometry, node)


def _certify(geometry: Geometry, merkle_root: bytes) -> bytes:
    g = geometry
    return hash_pack(_CERTIFIED.pack(FORMAT_VERSION, g.k, g.n, g.block_size, g.stream_length), merkle_root)


@dataclass(frozen=True, slots=True)
class BuiltPack:
    """Headers and tables of a pack; share bytes are header + column[:data_length(number)] + table."""

    pack_id: bytes
    headers: tuple[bytes, ...]
    """n encoded headers, of empty shares too."""
    tables: tuple[bytes, ...]
    """n tables of block hashes; an empty share's is empty."""


def _tree_levels(geometry: Geometry, roots: Sequence[bytes]) -> list[list[bytes]]:
    level = [*roots, *[EMPTY_ROOT] * ((1 << geometry.depth) - len(roots))]
    levels = [level]
    while len(level) > 1:
        level = [hash_node(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        levels.append(level)
    return levels


def build_shares(geometry: Geometry, columns: Sequence[Buffer]) -> BuiltPack:
    """Hash n columns of block data into a pack.

    Each column is at least `data_length(number)` bytes; what lies behind is ignored. Touches nothing but
    its arguments and may run in a worker thread; hashing releases the GIL. Raises ValueError where
    columns do not fit.
    """
    if len(columns) != geometry.n:
        raise ValueError(f"{len(columns)} columns for {geometry.n} shares")
    return build_headers(
        geometry, [column_table(geometry, number, column) for number, column in enumerate(columns)]
    )


def build_headers(geometry: Geometry, tables: Sequence[bytes]) -> BuiltPack:
    """The pack that n tables of block hashes (`column_table`) make."""
    levels = _tree_levels(geometry, [hash_table(table) for table in tables])
    headers = []
    for number in range(geometry.n):
        path = tuple(levels[i][(number >> i) ^ 1] for i in range(geometry.depth))
        headers.append(ShareHeader(geometry, number, levels[0][number], path).encode())
    return BuiltPack(_certify(geometry, levels[-1][0]), tuple(headers), tuple(tables))


def column_table(geometry: Geometry, number: int, column: Buffer) -> bytes:
    """The table of block hashes of one column, which is at least as long as share `number`'s blocks."""
    length, size = geometry.data_length(number), geometry.block_size
    with memoryview(column) as whole, whole[:length] as view:
        if len(view) < length:
            raise ValueError(f"column {number} has {len(view)} of {length} bytes")
        return b"".join([hash_block(view[i : i + size]) for i in range(0, length, size)])


def block_ok(table: Buffer, index: int, block: Buffer) -> bool:
    """Whether `block` (of its exact length) is the one that a verified table names at `index`."""
    expected = bytes(memoryview(table)[index * HASH_SIZE : (index + 1) * HASH_SIZE])
    return hmac.compare_digest(hash_block(block), expected)


def verify_header(pack_id: bytes, number: int, header: ShareHeader) -> None:
    """Raise Corrupt unless `header` belongs to share `number` of that pack."""
    if header.number != number:
        raise Corrupt(f"share says it is number {header.number}, not {number}")
    if not hmac.compare_digest(header.pack_id(), pack_id):
        raise Corrupt(f"share {number} does not belong to pack {pack_id.hex()[:16]}")


def verify_table(pack_id: bytes, header: ShareHeader, table: Buffer) -> None:
    """Raise Corrupt unless `table` is the whole hash table of that header's share in that pack."""
    verify_header(pack_id, header.number, header)
    if len(table) != HASH_SIZE * header.geometry.block_count(header.number):
        raise Corrupt(f"hash table of share {header.number} has the wrong length {len(table)}")
    if not hmac.compare_digest(hash_table(table), header.root):
        raise Corrupt(f"hash table of share {header.number} does not fit its root")


class ShareVerifier:
    """Checks one share while its bytes arrive in pieces of any size. No I/O; not to be shared.

    Whole blocks inside a piece are hashed where they lie; nothing of the data is kept or copied.
    """

    def __init__(self, pack_id: bytes, number: int, size: int) -> None:
        """`size`: bytes that the share is announced to have. Raises Corrupt if none can have that many."""
        if not HEADER_SIZE < size <= MAX_SHARE_SIZE:
            raise Corrupt(f"a share of {size} bytes is out of bounds")
        self._pack_id = pack_id
        self._number = number
        self._size = size
        self._position = 0
        self._front = bytearray()
        self._header: ShareHeader | None = None
        self._data_end = 0
        self._partial = block_hasher()
        self._partial_length = 0
        self._table = bytearray()

    def feed(self, piece: Buffer) -> None:
        """Take the next bytes. Raises Corrupt (or Refused: unknown version) as soon as something is wrong.

        After an exception the verifier is of no use.
        """
        view = memoryview(piece)
        if self._position + len(view) > self._size:
            raise Corrupt(f"more than the announced {self._size} bytes")
        while len(view):
            if self._header is None:
                used = self._take_header(view)
            elif self._position < self._data_end:
                used = self._take_data(view, self._header)
            else:
                used = self._take_table(view)
            self._position += used
            view = view[used:]

    def finish(self) -> Geometry:
        """The pack's geometry, once every byte was fed; Corrupt where some are missing."""
        if self._header is None or self._position != self._size:
            raise Corrupt(f"share ends after {self._position} of {self._size} bytes")
        return self._header.geometry

    def _take_header(self, view: memoryview) -> int:
        # The fixed part tells (by n) how long the path is; a header is asked for in two steps.
        wanted = HEADER_SIZE
        if len(self._front) >= HEADER_SIZE:
            wanted += HASH_SIZE * (max(1, _HEADER.unpack_from(self._front)[3]) - 1).bit_length()
        used = min(len(view), wanted - len(self._front))
        self._front += view[:used]
        if len(self._front) < HEADER_SIZE:
            return used
        if self._front[: len(MAGIC)] != MAGIC:
            raise Corrupt("not a share: wrong magic")
        n = _HEADER.unpack_from(self._front)[3]
        if not 1 <= n <= MAX_SHARES:
            raise Corrupt(f"share header: n={n}")
        if len(self._front) == HEADER_SIZE + HASH_SIZE * (n - 1).bit_length():
            self._accept_header(ShareHeader.decode(self._front))
        return used

    def _accept_header(self, header: ShareHeader) -> None:
        verify_header(self._pack_id, self._number, header)
        geometry = header.geometry
        if geometry.block_count(self._number) == 0:
            raise Corrupt(f"share {self._number} is empty and never stored")
        if geometry.share_size(self._number) != self._size:
            raise Corrupt(f"share has {geometry.share_size(self._number)} bytes, not {self._size}")
        self._header = header
        self._data_end = geometry.table_offset(self._number)

    def _take_data(self, view: memoryview, header: ShareHeader) -> int:
        size = header.geometry.block_size
        data = view[: self._data_end - self._position]
        used = 0
        if self._partial_length:
            used = self._take_partial(data[: size - self._partial_length], size)
        whole_end = used + (len(data) - used) // size * size
        for start in range(used, whole_end, size):
            self._table += hash_block(data[start : start + size])
        if whole_end < len(data):
            used = whole_end + self._take_partial(data[whole_end:], size)
        if self._position + len(data) == self._data_end:
            if self._partial_length:
                self._close_block()
            if not hmac.compare_digest(hash_table(self._table), header.root):
                raise Corrupt(f"blocks of share {self._number} do not fit its root")
        return len(data)

    def _take_partial(self, data: memoryview, size: int) -> int:
        self._partial.update(data)
        self._partial_length += len(data)
        if self._partial_length == size:
            self._close_block()
        return len(data)

    def _close_block(self) -> None:
        self._table += self._partial.digest()
        self._partial = block_hasher()
        self._partial_length = 0

    def _take_table(self, view: memoryview) -> int:
        start = self._position - self._data_end
        if view != memoryview(self._table)[start : start + len(view)]:
            raise Corrupt(f"hash table of share {self._number} does not fit its blocks")
        return len(view)


def verify_share(pack_id: bytes, number: int, share: Buffer) -> Geometry:
    """Check a whole share in one go, block by block where it lies. Raises Corrupt or Refused."""
    verifier = ShareVerifier(pack_id, number, len(share))
    verifier.feed(share)
    return verifier.finish()
