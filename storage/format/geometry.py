"""How a pack's sealed stream is dealt out to n shares: lengths and places, by arithmetic alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from storage.format.hashes import HASH_SIZE

SEGMENT_SIZE = 65536
TAG_SIZE = 16
BLOCK_SIZE = SEGMENT_SIZE + TAG_SIZE
MAX_SHARES = 256
MAX_FULL_BLOCKS = 128
HEADER_SIZE = 64
assert BLOCK_SIZE == 65552

MAX_SHARE_SIZE = HEADER_SIZE + 8 * HASH_SIZE + (MAX_FULL_BLOCKS + 1) * (BLOCK_SIZE + HASH_SIZE)


def max_full_rows(k: int) -> int:
    """Most rows of k whole blocks that a pack may have; one row that is not whole may follow."""
    return max(1, MAX_FULL_BLOCKS // k)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a pack's sealed stream is dealt out to n shares. Raises ValueError outside the limits.

    Block b of the stream lies in row b // k of primary share b % k; only the stream's last block may be
    short. Parity shares (k..n-1) are as long as the first primary.
    """

    k: int
    """Shares that suffice: 1 <= k <= n."""
    n: int
    """Shares in all: at most 256."""
    stream_length: int
    """Bytes of the sealed stream: at least 1, at most `max_full_rows(k)` whole rows and a part of one."""
    block_size: int = BLOCK_SIZE
    """Bytes of a whole block: 1 to BLOCK_SIZE (smaller ones serve tests)."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n <= MAX_SHARES:
            raise ValueError(f"k={self.k} n={self.n}: need 1 <= k <= n <= {MAX_SHARES}")
        if not 1 <= self.block_size <= BLOCK_SIZE:
            raise ValueError(f"block size {self.block_size} is not in 1..{BLOCK_SIZE}")
        if not 1 <= self.stream_length < (max_full_rows(self.k) + 1) * self.k * self.block_size:
            raise ValueError(f"stream length {self.stream_length} does not fit k={self.k}")

    @property
    def total_blocks(self) -> int:
        """Blocks of the stream."""
        return -(-self.stream_length // self.block_size)

    @property
    def rows(self) -> int:
        """Rows, the last one whole or not."""
        return -(-self.total_blocks // self.k)

    @property
    def depth(self) -> int:
        """Hashes in a Merkle path: ceil(log2 n)."""
        return (self.n - 1).bit_length()

    @property
    def data_offset(self) -> int:
        """Where block data starts in a share: the size of header and path, fixed by n."""
        return HEADER_SIZE + HASH_SIZE * self.depth

    def block_count(self, number: int) -> int:
        """Blocks in share `number`; 0 for a primary that the stream does not reach."""
        if not 0 <= number < self.n:
            raise ValueError(f"share {number} of {self.n}")
        column = number if number < self.k else 0
        return max(0, -(-(self.total_blocks - column) // self.k))

    def block_length(self, number: int, row: int) -> int:
        """Bytes of block `row` of share `number`. Raises ValueError where there is none."""
        if not 0 <= row < self.block_count(number):
            raise ValueError(f"share {number} has no block {row}")
        block = row * self.k + (number if number < self.k else 0)
        return min(self.block_size, self.stream_length - block * self.block_size)

    def data_length(self, number: int) -> int:
        """Bytes of block data in share `number`."""
        count = self.block_count(number)
        return (count - 1) * self.block_size + self.block_length(number, count - 1) if count else 0

    def table_offset(self, number: int) -> int:
        """Where the hash table starts in share `number`."""
        return self.data_offset + self.data_length(number)

    def share_size(self, number: int) -> int:
        """Bytes of the whole share: header, path, blocks and table."""
        return self.table_offset(number) + HASH_SIZE * self.block_count(number)

    def stored_numbers(self) -> tuple[int, ...]:
        """Numbers of the shares that are not empty, ascending."""
        return tuple(range(min(self.k, self.total_blocks))) + tuple(range(self.k, self.n))


def locate(geometry: Geometry, stream_offset: int, length: int) -> tuple[int, int]:
    """Where a range of the stream lies: (share number, offset in that share's bytes).

    The range must lie inside one block: ValueError otherwise.
    """
    block, inside = divmod(stream_offset, geometry.block_size)
    end = stream_offset + length
    if (
        stream_offset < 0
        or length < 1
        or inside + length > geometry.block_size
        or end > geometry.stream_length
    ):
        raise ValueError(f"range {stream_offset}+{length} is not inside one block of the stream")
    row, number = divmod(block, geometry.k)
    return number, geometry.data_offset + row * geometry.block_size + inside
