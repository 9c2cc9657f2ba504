"""Spool overlay, operation log and metadata together against plain byte arrays.

A hypothesis machine writes, truncates, freezes, commits, unlinks, kills and restores older copies of
the database at every point between; what a file reads is compared after each step.
"""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gridfs.files.overlay import Overlay, Source
from gridfs.meta import bodies
from gridfs.meta.operations import (
    Clone,
    Commit,
    Drop,
    ExtentRecord,
    Make,
    Operation,
    PackRecord,
    SetAttributes,
    Unlink,
    Write,
    decode,
)
from gridfs.meta.store import ROOT, Metadata
from tests.meta.support import SERVERS, MaskSealer

SIZE = 64
NAMES = (b"one", b"two")
edges = st.integers(0, SIZE)


@dataclass
class Frozen:
    """A freeze that is on its way to the grid."""

    ino: int
    number: int
    runs: list[tuple[int, bytes]]
    limit: int = SIZE
    """Smallest size that the file was cut to since."""


@dataclass
class Client:
    """What a mount daemon has in memory: an open store and the overlays."""

    store: Metadata
    path: str
    overlays: dict[int, Overlay] = field(default_factory=lambda: defaultdict(Overlay))

    def replay(self, number: int, operation: Operation) -> None:
        self.store.apply(number, operation)
        match operation:
            case Write(ino=ino, offset=offset, length=length):
                self.overlays[ino].write(offset, offset + length, number, Source(number, 0))
            case SetAttributes(ino=ino, size=int(size)):
                self.overlays[ino].truncate(size)
            case Commit(extents=extents):
                for extent in extents:
                    self.overlays[extent.ino].retire(
                        extent.start, extent.start + extent.length, extent.frozen
                    )
            case Drop(ino=ino):
                self.overlays.pop(ino, None)
            case Clone(ino=ino, source=source):
                self.overlays[ino] = self.overlays[source].copy()
            case _:
                pass


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="gridfs-model"))
        self.copies = count()
        path = self.path()
        self.client = Client(Metadata.create(path, MaskSealer()), path)
        self.log: list[Operation] = []
        self.data: dict[int, bytes] = {}
        """The spool: bytes of each write, by its number."""
        self.grid: dict[bytes, list[bytes]] = {}
        """Plaintext of each pack's runs."""
        self.files: dict[int, bytearray] = {}
        self.named: dict[bytes, int] = {}
        self.pending: list[Frozen] = []
        self.older: list[str] = []

    def path(self) -> str:
        return str(self.directory / f"{next(self.copies)}.db")

    def do(self, operation: Operation, data: bytes = b"") -> None:
        self.log.append(operation)
        self.data[len(self.log)] = data
        self.client.replay(len(self.log), operation)

    @initialize()
    def two_files(self) -> None:
        for name in NAMES:
            self.make(name)

    def make(self, name: bytes) -> None:
        ino = self.client.store.reserve_inode()
        self.do(Make(ino, ROOT, name, stat.S_IFREG | 0o600, 0, 0, 0, b"", len(self.log)))
        self.named[name] = ino
        self.files[ino] = bytearray()

    @rule(name=st.sampled_from(NAMES), start=edges, data=st.binary(max_size=24))
    def write(self, name: bytes, start: int, data: bytes) -> None:
        ino = self.named[name]
        data = data[: SIZE - start]
        self.do(Write(ino, start, len(data), len(self.log)), data)
        model = self.files[ino]
        if data:
            model.extend(bytes(max(0, start + len(data) - len(model))))
            model[start : start + len(data)] = data

    @rule(name=st.sampled_from(NAMES), size=edges)
    def truncate_or_extend(self, name: bytes, size: int) -> None:
        ino = self.named[name]
        now = len(self.log)
        self.do(SetAttributes(ino, None, None, None, None, now, size, now))
        model = self.files[ino]
        del model[size:]
        model.extend(bytes(size - len(model)))
        for frozen in self.pending:
            if frozen.ino == ino:
                frozen.limit = min(frozen.limit, size)

    @rule(name=st.sampled_from(NAMES), start=edges, end=edges)
    def freeze(self, name: bytes, start: int, end: int) -> None:
        """Gather dirty pieces into runs, one for each stretch without a gap."""
        ino = self.named[name]
        runs: list[tuple[int, bytes]] = []
        for piece in self.client.overlays[ino].freeze(start, end, len(self.log)):
            data = self.data[piece.number][piece.skip :][: piece.end - piece.start]
            if runs and runs[-1][0] + len(runs[-1][1]) == piece.start:
                runs[-1] = (runs[-1][0], runs[-1][1] + data)
            else:
                runs.append((piece.start, data))
        if runs:
            self.pending.append(Frozen(ino, len(self.log), runs))

    @precondition(lambda self: self.pending)
    @rule(choice=st.integers(0, 9))
    def commit(self, choice: int) -> None:
        """The oldest freeze of one of the files, clipped by what was truncated since."""
        inodes = list({frozen.ino: None for frozen in self.pending})
        ino = inodes[choice % len(inodes)]
        frozen = next(item for item in self.pending if item.ino == ino)
        self.pending.remove(frozen)
        pack_id = (len(self.grid) + 1).to_bytes(32, "big")
        self.grid[pack_id] = [data for _, data in frozen.runs]
        extents = [
            ExtentRecord(
                ino, start, min(len(data), frozen.limit - start), 0, index, 0, len(data), 0, frozen.number
            )
            for index, (start, data) in enumerate(frozen.runs)
            if start < frozen.limit
        ]
        record = PackRecord(pack_id, 4, 6, 1000, bytes(32), False, list(SERVERS), [])
        self.do(Commit([record], extents))

    @rule(name=st.sampled_from(NAMES))
    def unlink_and_make_anew(self, name: bytes) -> None:
        ino = self.named.pop(name)
        self.do(Unlink(ROOT, name, ino, len(self.log)))
        self.make(name)

    @precondition(lambda self: len(self.files) > len(self.named))
    @rule()
    def drop_an_orphan(self) -> None:
        ino = min(set(self.files) - set(self.named.values()))
        self.do(Drop(ino))
        del self.files[ino]

    @rule(source=st.sampled_from(NAMES), name=st.sampled_from(NAMES))
    def clone_over(self, source: bytes, name: bytes) -> None:
        """A clone of one file, under the other's name or its own."""
        taken, gone = self.named[source], self.named.pop(name)
        self.do(Unlink(ROOT, name, gone, len(self.log)))
        ino = self.client.store.reserve_inode()
        self.do(Clone(ino, taken, ROOT, name, False, len(self.log)))
        self.named[name] = ino
        self.files[ino] = self.files[taken].copy()

    @rule()
    def end_transaction(self) -> None:
        self.client.store.commit()

    @rule(limit=st.integers(1, 4))
    def clear_away(self, limit: int) -> None:
        self.client.store.work(limit)

    @rule()
    def keep_a_copy(self) -> None:
        """As it would be found after a kill now, committed or not."""
        self.older.append(self.copy(self.client.path))

    @rule(choice=st.integers(0, 9), part=st.integers(0, 100), commits=st.booleans())
    def kill(self, choice: int, part: int, commits: bool) -> None:
        """Start anew from the killed daemon's database or an older one; the first replay is killed too."""
        candidates = [self.client.path, *self.older]
        source = candidates[choice % len(candidates)]
        found = self.copy(source)
        self.client.store.close()
        first = Client(Metadata.open(found, MaskSealer()), found)
        for number, operation in list(enumerate(self.log, start=1))[:part]:
            first.replay(number, operation)
        if commits:
            first.store.commit()
        found = self.copy(found)
        first.store.close()
        self.client = Client(Metadata.open(found, MaskSealer()), found)
        for number, operation in enumerate(self.log, start=1):
            self.client.replay(number, operation)
        for number, operation in enumerate(self.log, start=1):
            if not any(isinstance(other, Clone) for other in self.log):
                self.client.replay(number, operation)  # a clone takes what its source has now, so only once
        self.pending.clear()

    def copy(self, source: str) -> str:
        target = self.path()
        for suffix in ("", "-wal"):
            if Path(source + suffix).exists():
                shutil.copyfile(source + suffix, target + suffix)
        return target

    def read(self, client: Client, ino: int) -> bytes:
        inode = client.store.inode(ino)
        assert inode is not None
        result = bytearray(inode.size)
        for extent in client.store.extents(ino, 0, inode.size):
            data = self.grid[client.store.pack(extent.pack_ref).pack_id][extent.run]
            assert len(data) == extent.run_length
            result[extent.start : extent.end] = data[extent.skip : extent.skip + extent.length]
        for piece in client.overlays[ino].pieces(0, SIZE):
            data = self.data[piece.number][piece.skip :][: piece.end - piece.start]
            result[piece.start : piece.end] = data
        assert len(result) == inode.size
        return bytes(result)

    @invariant()
    def files_read_as_written(self) -> None:
        for ino, model in self.files.items():
            assert self.read(self.client, ino) == model
        assert self.client.store.applied == len(self.log)
        assert self.client.store.totals().bytes == sum(map(len, self.files.values()))

    def teardown(self) -> None:
        store = self.client.store
        assert store.check() == []
        # What goes to the head log makes the same file system on another machine.
        elsewhere = Metadata.create(self.path(), MaskSealer())
        for number, payload in store.outbox(0, 1 << 30):
            elsewhere.apply(number, decode(payload))
        for each in (store, elsewhere):
            while each.work(3):
                pass
            assert each.check() == []
        assert elsewhere.totals() == store.totals()
        for ino in self.files:
            assert elsewhere.inode(ino) == store.inode(ino)
            assert elsewhere.extents(ino, 0, SIZE) == store.extents(ino, 0, SIZE)
        elsewhere.close()
        store.close()
        shutil.rmtree(self.directory)


@pytest.mark.parametrize(("rows_max", "depth_max"), [(0, 16), (0, 1), (2, 16), (1000, 16)])
def test_files_read_as_written_through_every_life(
    rows_max: int, depth_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where even the smallest truncate and clone go through the work list."""
    monkeypatch.setattr(bodies, "CUT_ROWS_MAX", rows_max)
    monkeypatch.setattr(bodies, "CLONE_ROWS_MAX", rows_max)
    monkeypatch.setattr(bodies, "DEPTH_MAX", depth_max)
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
