"""Packs: runs of plaintext laid out as a sealed stream and turned into shares. SPEC.md has every byte.

A pack's stream is cut in blocks that are dealt to the k primary columns in turn. Segments are sealed
straight into the columns, so a pack's plaintext is touched once; parity is one erasure coding call over
whole columns. `seal_pack` is meant for a worker thread: it releases the GIL for most of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gridfs.codec.cipher import KEY_SIZE, SEGMENT_SIZE, TAG_SIZE, segment_nonce
from gridfs.codec.erasure import encode_parity
from storage.format.share import BLOCK_SIZE, FORMAT_VERSION, Geometry, build_shares
from storage.ports import Buffer

assert BLOCK_SIZE == SEGMENT_SIZE + TAG_SIZE, "a full segment is exactly one block"

PACK_BLOCKS = 128
"""Blocks of a pack: as many full rows as fit, one at least."""

_RUN_KEY = "gridfs 2026 run key"
_GAPS_MAX = 32
"""Half-filled blocks that small runs may still enter; the oldest is closed first."""


def rows_max(k: int) -> int:
    """Full rows that a pack may have."""
    return max(1, PACK_BLOCKS // k)


def max_plaintext(k: int) -> int:
    """Bytes of plaintext in a full pack: large runs are cut at multiples of it."""
    return rows_max(k) * k * SEGMENT_SIZE


@dataclass(frozen=True, slots=True)
class RunPlace:
    """Where a run lies in its pack."""

    offset: int
    """Stream offset of its first sealed segment; segment i lies i * BLOCK_SIZE further."""
    length: int
    """Bytes of plaintext."""

    @property
    def segment_count(self) -> int:
        return -(-self.length // SEGMENT_SIZE)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the runs of a pack lie."""

    runs: tuple[RunPlace, ...]
    stream_length: int


class LayoutPlan:
    """Places runs one after the other, as long as the pack has room."""

    __slots__ = ("_blocks", "_blocks_max", "_end", "_gaps", "_runs")

    def __init__(self, k: int) -> None:
        self._blocks_max = rows_max(k) * k
        self._blocks = 0
        self._end = 0
        self._gaps: list[tuple[int, int]] = []  # (stream offset, bytes free) of half-filled blocks
        self._runs: list[RunPlace] = []

    def add(self, length: int) -> RunPlace | None:
        """Place a run of `length` bytes of plaintext; None (and nothing changed) if the pack is full."""
        if length < 1:
            raise ValueError("a run has at least one byte")
        place = RunPlace(0, length)
        if self._runs and length < SEGMENT_SIZE:
            offset = self._take_gap(length + TAG_SIZE)
            if offset is not None:
                return self._placed(RunPlace(offset, length))
        if self._blocks + place.segment_count > self._blocks_max:
            return None
        place = RunPlace(self._blocks * BLOCK_SIZE, length)
        self._blocks += place.segment_count
        self._open_gap(*_run_end(place))
        return self._placed(place)

    def layout(self) -> Layout:
        """What was placed so far; ValueError where nothing was."""
        if not self._runs:
            raise ValueError("a pack has at least one run")
        return Layout(tuple(self._runs), self._end)

    def _placed(self, place: RunPlace) -> RunPlace:
        self._end = max(self._end, _run_end(place)[0])
        self._runs.append(place)
        return place

    def _take_gap(self, size: int) -> int | None:
        for index, (offset, free) in enumerate(self._gaps):
            if free >= size:
                del self._gaps[index]
                if free - size > TAG_SIZE:
                    self._gaps.insert(index, (offset + size, free - size))
                return offset
        return None

    def _open_gap(self, end: int, free: int) -> None:
        if free > TAG_SIZE:
            self._gaps.append((end, free))
            del self._gaps[:-_GAPS_MAX]


def plan_layout(k: int, lengths: Sequence[int]) -> Layout:
    """Lay out runs of these plaintext lengths (each >= 1), in order. ValueError if no pack holds them."""
    plan = LayoutPlan(k)
    for length in lengths:
        if plan.add(length) is None:
            raise ValueError(f"{len(lengths)} runs of {sum(lengths)} bytes do not fit into one pack")
    return plan.layout()


def segment_span(place: RunPlace, index: int) -> tuple[int, int]:
    """(stream offset, bytes of plaintext) of segment `index` of a run; it is TAG_SIZE longer when sealed."""
    length = min(SEGMENT_SIZE, place.length - index * SEGMENT_SIZE)
    if index < 0 or length <= 0:
        raise IndexError(f"a run of {place.length} bytes has no segment {index}")
    return place.offset + index * BLOCK_SIZE, length


@dataclass(frozen=True, slots=True)
class SealedRun:
    """A run as metadata needs it."""

    offset: int
    """Stream offset of its first segment."""
    length: int
    """Bytes of plaintext."""
    key: bytes = field(repr=False)
    """The run's key."""


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A pack ready to be sent."""

    geometry: Geometry
    pack_id: bytes
    key: bytes = field(repr=False)
    """The pack key; of a convergent pack the key of its one run. `run_key` gives the runs' keys."""
    convergent: bool
    runs: tuple[SealedRun, ...]
    shares: dict[int, tuple[Buffer, ...]] = field(repr=False)
    """Share number -> header, blocks, table; only the shares that are not empty, ascending."""
    size_bytes: int
    """Bytes of all shares together."""


def run_key(key: bytes, convergent: bool, run: int) -> bytes:
    """The key of run `run` of a pack, from what metadata keeps: the pack's key and its kind."""
    if not convergent:
        return blake3(key + run.to_bytes(4, "little"), derive_key_context=_RUN_KEY).digest()
    if run:
        raise ValueError("a convergent pack has one run")
    return key


def convergent_key(convergence_secret: bytes, plaintext: Buffer) -> bytes:
    """The key of a run that is alone in its pack: the same content has the same key in this file system."""
    view = memoryview(plaintext).cast("B")
    count, last = divmod(len(view), SEGMENT_SIZE)
    lengths = [SEGMENT_SIZE] * count + ([last] if last else [])
    head = [FORMAT_VERSION.to_bytes(2, "little"), len(lengths).to_bytes(4, "little")]
    head += [length.to_bytes(4, "little") for length in lengths]
    return blake3(b"".join(head), key=convergence_secret).update(view).digest()


def column_bytes_max(k: int) -> int:
    """Bytes of each primary column of a full pack."""
    return rows_max(k) * BLOCK_SIZE


def seal_pack(
    k: int,
    n: int,
    runs: Sequence[Buffer],
    *,
    pack_key: bytes | None,
    convergence_secret: bytes,
    known_key: bytes | None = None,
    memory: Sequence[memoryview] | None = None,
) -> SealedPack:
    """Seal runs into a pack and build its shares. Touches no event loop; pure.

    runs: the plaintext of each, all of which fit (`LayoutPlan`); the buffers must not change meanwhile.
    pack_key: 32 bytes that never sealed anything else, or None for a convergent pack (one run).
    known_key: the run's convergent key, where the caller has computed it already.
    memory: k times `column_bytes_max`, whatever it holds, for the primary columns; None: fresh memory.
    """
    convergent = pack_key is None
    if convergent and len(runs) != 1:
        raise ValueError("only a pack of one run is convergent")
    key = pack_key or known_key or convergent_key(convergence_secret, runs[0])
    if len(key) != KEY_SIZE:
        raise ValueError(f"a pack key has {KEY_SIZE} bytes")
    views = [memoryview(run).cast("B") for run in runs]
    layout = plan_layout(k, [len(view) for view in views])
    geometry = Geometry(k, n, layout.stream_length)
    columns = _primary_columns(geometry, memory, is_gapless=len(views) == 1)
    sealed_runs = []
    for number, (place, view) in enumerate(zip(layout.runs, views, strict=True)):
        sealed_runs.append(SealedRun(place.offset, place.length, run_key(key, convergent, number)))
        _seal_run(AESGCM(sealed_runs[-1].key), place, view, columns)
    parity = [memoryview(column) for column in encode_parity(k, n, columns)]
    return _with_shares(geometry, [*columns, *parity], key, convergent, tuple(sealed_runs))


def _primary_columns(
    geometry: Geometry, memory: Sequence[memoryview] | None, *, is_gapless: bool
) -> list[memoryview]:
    """One column per primary, all as long as the longest: zeros wherever no segment will be sealed.

    Empty primaries share one of zeros. `is_gapless`: segments will fill each column as far as it has data.
    """
    size = geometry.data_length(0)
    empty = memoryview(bytes(size)) if not geometry.data_length(geometry.k - 1) else None
    columns = []
    for number in range(geometry.k):
        length = geometry.data_length(number)
        if not length and empty is not None:
            columns.append(empty)
        elif memory is None:
            columns.append(memoryview(bytearray(size)))
        else:
            column = memory[number][:size]
            rest = column[length if is_gapless else 0 :]
            rest[:] = bytes(len(rest))
            columns.append(column)
    return columns


def _seal_run(cipher: AESGCM, place: RunPlace, plaintext: memoryview, columns: list[memoryview]) -> None:
    k = len(columns)
    first_block, inside = divmod(place.offset, BLOCK_SIZE)
    for ordinal in range(place.segment_count):
        row, number = divmod(first_block + ordinal, k)
        segment = plaintext[ordinal * SEGMENT_SIZE : (ordinal + 1) * SEGMENT_SIZE]
        start = row * BLOCK_SIZE + inside
        out = columns[number][start : start + len(segment) + TAG_SIZE]
        cipher.encrypt_into(segment_nonce(ordinal), segment, None, out)


def _with_shares(
    geometry: Geometry, columns: list[memoryview], key: bytes, convergent: bool, runs: tuple[SealedRun, ...]
) -> SealedPack:
    built = build_shares(geometry, columns)
    shares: dict[int, tuple[Buffer, ...]] = {}
    for number in geometry.stored_numbers():
        data = columns[number][: geometry.data_length(number)]
        shares[number] = (built.headers[number], data, built.tables[number])
    size_bytes = sum(geometry.share_size(number) for number in shares)
    return SealedPack(geometry, built.pack_id, key, convergent, runs, shares, size_bytes)


def _run_end(place: RunPlace) -> tuple[int, int]:
    """(stream offset behind the run's last byte, bytes free behind it in its block)."""
    start, length = segment_span(place, place.segment_count - 1)
    end = start + length + TAG_SIZE
    return end, -end % BLOCK_SIZE
