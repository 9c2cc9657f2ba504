"""Clone, Attach and Detach: what they copy, what is shared, and large bodies through the work list."""

from __future__ import annotations

import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gridfs.meta import bodies
from gridfs.meta.bodies import CLONE_ROWS_MAX
from gridfs.meta.operations import (
    Attach,
    Clone,
    Commit,
    Detach,
    Drop,
    Link,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
    decode,
)
from gridfs.meta.store import ROOT, Metadata

from .support import DIRECTORY, FILE, Driver, MaskSealer, extent_record, pack_record
from .test_data import BLOCK, blocks, clear_away, committed, live, scattered, truncate, written
from .test_namespace import inode, names


def clone(
    driver: Driver, source: int, name: bytes = b"clone", parent: int = ROOT, read_only: bool = False
) -> int:
    ino = driver.store.reserve_inode()
    driver.do(Clone(ino, source, parent, name, read_only, 700))
    return ino


# ---- inodes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FILE, stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600, DIRECTORY])
def test_a_clone_has_the_attributes_of_its_source(driver: Driver, kind: int) -> None:
    ino = driver.make(b"source", kind, target=b"there" if stat.S_ISLNK(kind) else b"")
    driver.do(SetAttributes(ino, 0o4751, 7, 8, -5, 6, None, 300))
    driver.do(SetXattr(ino, b"user.x", b"value", 301))
    made = clone(driver, ino)
    old, new = inode(driver, ino), inode(driver, made)
    assert (new.mode, new.uid, new.gid, new.size, new.nlink) == (old.mode, 7, 8, old.size, old.nlink)
    assert (new.atime, new.mtime, new.ctime, new.rdev, new.target) == (-5, 6, 700, old.rdev, old.target)
    assert driver.store.xattr(made, b"user.x") == b"value"
    assert not new.read_only
    assert inode(driver, clone(driver, ino, b"snapshot", read_only=True)).read_only
    assert inode(driver, ROOT).mtime == 700
    assert inode(driver, ROOT).nlink == (5 if kind == DIRECTORY else 2)
    assert driver.store.check() == []


def test_content_is_shared_until_one_side_changes(driver: Driver) -> None:
    ino = written(driver, 100)
    ref = committed(driver, ino, 0, 100, mark=1)
    made = clone(driver, ino)
    assert driver.store.extents(made, 0, 100) == driver.store.extents(ino, 0, 100)
    assert (live(driver, ref), blocks(driver, made), driver.store.totals().bytes) == (200, 1, 200)
    driver.do(Write(made, 0, 10, 800))
    committed(driver, made, 0, 10, mark=2)
    truncate(driver, ino, 50)
    assert [item.length for item in driver.store.extents(ino, 0, 100)] == [50]
    assert [item.length for item in driver.store.extents(made, 0, 100)] == [10, 90]
    assert live(driver, ref) == 140
    driver.do(Unlink(ROOT, b"file", ino, 900))
    driver.do(Drop(ino))
    assert live(driver, ref) == 90
    assert driver.store.check() == []


def test_a_tree_is_built_unseen_and_appears_at_once(driver: Driver) -> None:
    box = driver.make(b"box", DIRECTORY)
    inner = driver.make(b"inner", DIRECTORY, box)
    file = driver.make(b"file", FILE, inner)
    root = clone(driver, box, b"", parent=0)
    below = clone(driver, inner, b"inner", parent=root)
    copied = clone(driver, file, b"file", parent=below)
    driver.do(Link(copied, root, b"again", 701))
    assert names(driver) == [b"box"]
    assert driver.store.detached() == [root]
    assert driver.store.orphans() == []
    assert "not a detached" in driver.refused(Attach(below, ROOT, b"new", 800))
    assert "takes names" in driver.refused(Attach(root, 99, b"new", 800))
    assert "in itself" in driver.refused(Attach(root, below, b"new", 800))
    assert driver.store.check() == []
    driver.store.commit()
    driver.reopen()
    driver.do(Attach(root, ROOT, b"new", 800))
    assert names(driver) == [b"box", b"new"]
    assert (inode(driver, root).nlink, inode(driver, root).ctime, inode(driver, ROOT).nlink) == (3, 800, 4)
    assert driver.store.parent_of(root) == ROOT
    assert driver.store.detached() == []
    assert driver.store.check() == []


def test_a_tree_loses_its_name_and_is_cleared_from_below(driver: Driver) -> None:
    box = driver.make(b"box", DIRECTORY)
    root = clone(driver, box, b"snap", read_only=True)
    below = clone(driver, box, b"below", parent=root, read_only=True)
    assert "is not a directory" in driver.refused(Detach(ROOT, b"file", driver.make(b"file"), 800))
    driver.do(Detach(ROOT, b"snap", root, 800))
    assert names(driver) == [b"box", b"file"]
    assert (driver.store.detached(), inode(driver, ROOT).nlink) == ([root], 3)
    assert driver.store.check() == []
    assert "not empty" in driver.refused(Drop(root))
    assert "still has a name" in driver.refused(Drop(below))
    driver.do(Unlink(root, b"below", below, 801))
    driver.do(Drop(below))
    driver.do(Drop(root))
    assert (driver.store.detached(), driver.store.inode(root)) == ([], None)
    assert driver.store.totals().directories == 2
    assert driver.store.check() == []


def test_what_does_not_fit_is_refused(driver: Driver) -> None:
    box, file = driver.make(b"box", DIRECTORY), driver.make(b"file")
    assert "no inode 77" in driver.refused(Clone(50, 77, ROOT, b"new", False, 1))
    assert "there already" in driver.refused(Clone(file, box, ROOT, b"new", False, 1))
    assert "has the name" in driver.refused(Clone(50, file, ROOT, b"box", False, 1))
    assert "takes names" in driver.refused(Clone(50, box, file, b"new", False, 1))
    assert "needs a directory" in driver.refused(Clone(50, file, 0, b"", False, 1))
    assert "needs a directory" in driver.refused(Clone(50, box, 0, b"new", False, 1))
    assert "is not inode" in driver.refused(Detach(ROOT, b"box", file, 1))
    driver.do(Unlink(ROOT, b"box", box, 2))
    assert "takes names" in driver.refused(Clone(50, file, box, b"new", False, 1))


# ---- large bodies -----------------------------------------------------------------------------------


def test_a_large_body_is_cloned_in_one_small_step(driver: Driver) -> None:
    rows = CLONE_ROWS_MAX + 500
    ino, ref = scattered(driver, rows)
    before = driver.store.extents(ino, 0, rows * BLOCK)
    made, again = clone(driver, ino), clone(driver, ino, b"again")
    for each in (ino, made, again):
        assert driver.store.extents(each, 0, rows * BLOCK) == before
        assert driver.store.extents(each, 5 * BLOCK, 7 * BLOCK) == before[5:7]
        assert blocks(driver, each) == rows * BLOCK // 512
    assert live(driver, ref) == rows * BLOCK  # nothing was copied so far
    truncate(driver, made, BLOCK + 1)
    driver.do(Write(made, 0, rows * BLOCK, 900))
    driver.store.commit()
    driver.reopen()
    for steps_min in (5, 1):
        assert [item.length for item in driver.store.extents(made, 0, rows * BLOCK)] == [BLOCK, 1]
        assert driver.store.extents(ino, 0, rows * BLOCK) == before
        assert driver.store.check() == []
        assert clear_away(driver) >= steps_min
    assert live(driver, ref) == 2 * rows * BLOCK + BLOCK + 1
    assert blocks(driver, made) == (BLOCK + 1 + 511) // 512


def test_a_base_that_no_copy_needs_is_cleared_away(driver: Driver) -> None:
    ino, ref = scattered(driver, CLONE_ROWS_MAX + 10)
    made = clone(driver, ino)
    driver.do(Write(made, 0, 10, 800))
    committed(driver, made, 0, 10, mark=5)
    over = clone(driver, made, b"over")
    for each, name in ((ino, b"big"), (made, b"clone"), (over, b"over")):
        driver.do(Unlink(ROOT, name, each, 900))
        driver.do(Drop(each))
        assert driver.store.check() == []
    clear_away(driver)
    assert live(driver, ref) == 0
    assert driver.store.totals().live_bytes == 0
    assert driver.store.check() == []


SIZE = 12
edges = st.integers(0, SIZE)
choices = st.integers(0, 9)
Cell = tuple[int, int, int]
"""Pack, byte of the run, number of the freeze."""


@dataclass
class Landing:
    """A range that was frozen and is not committed yet."""

    ino: int
    start: int
    end: int
    frozen: int
    limit: int = SIZE


class Bodies(RuleBasedStateMachine):
    """Commits, truncates, clones and drops of a few files, against a list of cells for each."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="gridfs-clones"))
        self.driver = Driver(self.directory / "a.db")
        self.marks = 0
        first = self.driver.make(b"first")
        self.driver.do(Write(first, 0, SIZE, 1))
        self.names = {first: b"first"}
        self.cells: dict[int, dict[int, Cell]] = {first: {}}
        self.sizes = {first: SIZE}
        self.landings: list[Landing] = []

    def pick(self, choice: int) -> int:
        return list(self.names)[choice % len(self.names)]

    @rule(choice=choices, start=edges, length=st.integers(1, SIZE))
    def freeze(self, choice: int, start: int, length: int) -> None:
        ino, end = self.pick(choice), min(SIZE, start + length)
        if start < end:
            self.driver.do(Write(ino, start, end - start, 2))
            self.sizes[ino] = max(self.sizes[ino], end)
            self.landings.append(Landing(ino, start, end, self.driver.number))

    @precondition(lambda self: self.landings)
    @rule(choice=choices)
    def land(self, choice: int) -> None:
        item = self.landings.pop(choice % len(self.landings))
        end = min(item.end, item.limit)
        self.marks += 1
        record = extent_record(
            item.ino, item.start, end - item.start, item.frozen, run_length=item.end - item.start
        )
        self.driver.do(Commit([pack_record(self.marks)], [record] if end > item.start else []))
        if item.ino not in self.names:
            return
        cells = self.cells[item.ino]
        for position in range(item.start, end):
            if position not in cells or cells[position][2] <= item.frozen:
                cells[position] = (self.marks, position - item.start, item.frozen)

    @rule(choice=choices, size=edges)
    def truncate(self, choice: int, size: int) -> None:
        ino = self.pick(choice)
        truncate(self.driver, ino, size)
        self.sizes[ino] = size
        self.cells[ino] = {at: cell for at, cell in self.cells[ino].items() if at < size}
        for item in self.landings:
            if item.ino == ino:
                item.limit = min(item.limit, size)

    @precondition(lambda self: len(self.names) < 6)
    @rule(choice=choices)
    def clone(self, choice: int) -> None:
        source = self.pick(choice)
        name = b"clone %d" % self.driver.number
        ino = clone(self.driver, source, name)
        self.names[ino] = name
        self.cells[ino], self.sizes[ino] = dict(self.cells[source]), self.sizes[source]

    @precondition(lambda self: len(self.names) > 1)
    @rule(choice=choices)
    def drop(self, choice: int) -> None:
        ino = self.pick(choice)
        self.driver.do(Unlink(ROOT, self.names.pop(ino), ino, 3))
        self.driver.do(Drop(ino))

    @rule(limit=st.integers(1, 3))
    def work(self, limit: int) -> None:
        self.driver.store.work(limit)

    @rule()
    def open_again(self) -> None:
        self.driver.store.commit()
        self.driver.reopen()

    @invariant()
    def every_byte_is_where_it_was_committed(self) -> None:
        store = self.driver.store
        for ino in self.names:
            found = {}
            for extent in store.extents(ino, 0, SIZE):
                mark = int.from_bytes(store.pack(extent.pack_ref).pack_id, "big")
                for position in range(extent.start, extent.end):
                    assert position not in found
                    found[position] = (mark, extent.skip + position - extent.start, extent.frozen)
            assert found == self.cells[ino]
            for at in range(SIZE):
                assert bool(store.extents(ino, at, at + 1)) == (at in found)
        assert store.check() == []

    def teardown(self) -> None:
        store = self.driver.store
        elsewhere = Metadata.create(str(self.directory / "b.db"), MaskSealer(), time=1)
        for number, payload in store.outbox(0, 1 << 30):
            elsewhere.apply(number, decode(payload))
        for each in (store, elsewhere):
            while each.work(2):
                pass
            assert each.check() == []
        self.every_byte_is_where_it_was_committed()
        assert elsewhere.totals() == store.totals()
        for ino in self.names:
            assert elsewhere.extents(ino, 0, SIZE) == store.extents(ino, 0, SIZE)
            assert elsewhere.inode(ino) == store.inode(ino)
        elsewhere.close()
        store.close()
        shutil.rmtree(self.directory)


@pytest.mark.parametrize(("rows_max", "depth_max"), [(0, 16), (0, 1), (2, 2)])
def test_clones_of_any_size_through_every_change(
    rows_max: int, depth_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "CUT_ROWS_MAX", rows_max)
    monkeypatch.setattr(bodies, "CLONE_ROWS_MAX", rows_max)
    monkeypatch.setattr(bodies, "DEPTH_MAX", depth_max)
    run_state_machine_as_test(
        Bodies,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
