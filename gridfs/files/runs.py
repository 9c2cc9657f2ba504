"""Whole runs of packs that hold metadata: journal packs and checkpoints, stored and read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from gridfs.codec.cipher import SEGMENT_SIZE, TAG_SIZE
from gridfs.codec.pack import RunPlace, run_key, seal_pack, segment_span
from gridfs.files.writer import pack_record
from gridfs.grid.downloader import Downloader, PackRef, SegmentRead
from gridfs.grid.uploader import Uploader
from gridfs.meta.operations import PackRecord
from storage.client import Traffic
from storage.format.share import BLOCK_SIZE, Geometry
from storage.ports import Machine


async def store_runs(
    machine: Machine,
    uploader: Uploader,
    runs: Sequence[bytes],
    geometry: tuple[int, int],
    stamp: tuple[int, int],
    kind: int,
) -> tuple[PackRecord, list[int]]:
    """Store runs in one pack of `geometry` (k, n); returns it with each run's offset in its stream.

    Raises what storing a pack raises, ValueError where they do not fit into one.
    """
    key = machine.entropy.token(32)
    seal = partial(seal_pack, *geometry, runs, pack_key=key, convergence_secret=b"")
    sealed = await machine.offload.run(seal)
    receipt = await uploader.store(sealed, stamp)
    return pack_record(sealed, receipt, kind), [run.offset for run in sealed.runs]


class RunIn(NamedTuple):
    """One run of a pack."""

    pack: PackRecord
    number: int
    offset: int
    """Of its first segment in the pack's stream."""
    length: int
    """Bytes of plaintext."""


def only_run(pack: PackRecord) -> RunIn:
    """The run of a pack that has just one."""
    segments = -(-pack.stream_length // BLOCK_SIZE)
    return RunIn(pack, 0, 0, pack.stream_length - TAG_SIZE * segments)


def batches(runs: Iterable[RunIn], size: int) -> Iterator[list[RunIn]]:
    """The runs in their order, so many at once as are about `size` bytes; one at least."""
    batch: list[RunIn] = []
    total = 0
    for run in runs:
        if batch and total + run.length > size:
            yield batch
            batch, total = [], 0
        batch.append(run)
        total += run.length
    if batch:
        yield batch


async def read_runs(downloader: Downloader, runs: Sequence[RunIn]) -> list[memoryview]:
    """The plaintext of runs, in one round trip. Raises what reading raises."""
    plain = []
    reads = []
    for pack, number, offset, length in runs:
        ref = PackRef(pack.pack_id, Geometry(pack.k, pack.n, pack.stream_length), tuple(pack.places))
        out = memoryview(bytearray(length))
        plain.append(out)
        place = RunPlace(offset, length)
        key = run_key(pack.key, pack.convergent, number)
        for ordinal in range(place.segment_count):
            at, size = segment_span(place, ordinal)
            start = ordinal * SEGMENT_SIZE
            reads.append(SegmentRead(ref, key, ordinal, at, size, out[start : start + size]))
    await downloader.read(reads, Traffic.DEMAND)
    return plain
