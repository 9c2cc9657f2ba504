"""Extents and packs in the store: commits, truncates of any size, live bytes and garbage."""

from __future__ import annotations

import pytest

from gridfs.meta.bodies import CUT_ROWS_MAX
from gridfs.meta.operations import (
    KIND_JOURNAL,
    Commit,
    Drop,
    ExtentRecord,
    PackRecord,
    SetAttributes,
    Together,
    Unlink,
    Write,
)
from gridfs.meta.rows import Extent
from gridfs.meta.store import ROOT, key_hash
from storage.errors import Missing

from .support import DIRECTORY, SERVERS, Driver, extent_record, pack_record

BLOCK = 4096


def truncate(driver: Driver, ino: int, size: int) -> int:
    return driver.do(SetAttributes(ino, None, None, None, None, None, size, 900))


def written(driver: Driver, length: int, name: bytes = b"file") -> int:
    ino = driver.make(name)
    driver.do(Write(ino, 0, length, 200))
    return ino


def committed(driver: Driver, ino: int, start: int, length: int, mark: int = 1) -> int:
    driver.do(Commit([pack_record(mark)], [extent_record(ino, start, length, driver.number)]))
    ref = driver.store.find_pack(mark.to_bytes(32, "big"))
    assert ref is not None
    return ref


def scattered(driver: Driver, rows: int, name: bytes = b"big") -> tuple[int, int]:
    """A file of `rows` extents that cannot join; returns (inode, pack)."""
    ino = written(driver, rows * BLOCK, name)
    extents = [
        extent_record(ino, row * BLOCK, BLOCK, driver.number, run=row, run_offset=row * BLOCK)
        for row in range(rows)
    ]
    driver.do(Commit([pack_record(77, stream_length=rows * BLOCK)], extents))
    ref = driver.store.find_pack((77).to_bytes(32, "big"))
    assert ref is not None
    return ino, ref


def blocks(driver: Driver, ino: int) -> int:
    inode = driver.store.inode(ino)
    assert inode is not None
    return inode.blocks


def live(driver: Driver, ref: int) -> int:
    return driver.store.pack(ref).live_bytes


def clear_away(driver: Driver, limit: int = 300) -> int:
    steps = 1
    while driver.store.work(limit):
        steps += 1
    return steps


def test_a_commit_makes_pack_and_extents_visible(driver: Driver) -> None:
    ino = written(driver, 10_000)
    record = pack_record(5, places=[*SERVERS[:5], None], missing=[5], key=b"k" * 32)
    driver.do(Commit([record], [extent_record(ino, 0, 10_000, driver.number, run=3, run_offset=70)]))
    ref = driver.store.find_pack(record.pack_id)
    assert ref is not None
    pack = driver.store.pack(ref)
    assert (pack.pack_id, pack.k, pack.n, pack.stream_length) == (record.pack_id, 4, 6, 1 << 20)
    assert (pack.key, pack.places, pack.missing) == (b"k" * 32, (*SERVERS[:5], None), (5,))
    assert (pack.convergent, pack.kind, pack.live_bytes) == (False, 0, 10_000)
    assert driver.store.extents(ino, 0, 1) == [Extent(0, 10_000, ref, 3, 70, 10_000, 0, 2)]
    assert driver.store.extents(ino, 10_000, 20_000) == []
    assert driver.store.extents(ino, 5, 5) == []
    assert blocks(driver, ino) == 20
    totals = driver.store.totals()
    assert (totals.packs, totals.live_bytes, totals.missing_shares) == (1, 10_000, 1)
    driver.store.commit()
    driver.reopen()
    assert driver.store.pack(ref) == pack
    assert driver.store.totals() == totals
    with pytest.raises(Missing):
        driver.store.pack(ref + 1)


def test_later_frozen_bytes_win_whatever_is_committed_first(driver: Driver) -> None:
    ino = written(driver, 100)
    early = driver.number
    driver.do(Write(ino, 40, 20, 300))
    late = driver.number
    driver.do(Commit([pack_record(2)], [extent_record(ino, 40, 20, late)]))
    driver.do(Commit([pack_record(1)], [extent_record(ino, 0, 100, early)]))
    found = [(item.start, item.end, item.frozen, item.skip) for item in driver.store.extents(ino, 0, 100)]
    assert found == [(0, 40, early, 0), (40, 60, late, 0), (60, 100, early, 60)]
    assert [live(driver, ref) for ref in (1, 2)] == [20, 80]


def test_overwritten_packs_become_garbage_and_can_come_back(driver: Driver) -> None:
    ino = written(driver, 100)
    old = committed(driver, ino, 0, 100, mark=1)
    driver.do(Write(ino, 0, 100, 300))
    new = committed(driver, ino, 0, 100, mark=2)
    (item,) = driver.store.garbage()
    assert (item.pack_ref, item.pack_id, item.since) == (old, (1).to_bytes(32, "big"), driver.number)
    assert driver.store.totals().packs == 1
    assert live(driver, old) == 0
    # The same content written once more is found and lives again.
    driver.do(Write(ino, 0, 100, 301))
    assert committed(driver, ino, 0, 100, mark=1) == old
    assert [item.pack_ref for item in driver.store.garbage()] == [new]
    assert (live(driver, old), live(driver, new)) == (100, 0)


def test_references_are_counted_each(driver: Driver) -> None:
    one, two = written(driver, 100, b"one"), written(driver, 100, b"two")
    frozen = driver.number
    extents = [extent_record(one, 0, 100, frozen), extent_record(two, 0, 60, frozen, run_length=100)]
    driver.do(Commit([pack_record(1)], extents))
    assert live(driver, 1) == 160
    driver.do(Unlink(ROOT, b"one", one, 300))
    driver.do(Drop(one))
    assert live(driver, 1) == 60
    assert driver.store.garbage() == []
    truncate(driver, two, 10)
    assert live(driver, 1) == 10
    truncate(driver, two, 0)
    assert [item.pack_ref for item in driver.store.garbage()] == [1]


def test_convergent_packs_are_found_by_the_hash_of_their_key(driver: Driver) -> None:
    ino = written(driver, 100)
    record = pack_record(1, convergent=True, key=b"c" * 32)
    driver.do(Commit([record], [extent_record(ino, 0, 100, driver.number)]))
    assert driver.store.find_convergent(key_hash(b"c" * 32)) == 1
    assert driver.store.find_convergent(key_hash(b"d" * 32)) is None
    plain = pack_record(2, key=b"d" * 32)
    driver.do(Commit([plain], [extent_record(ino, 0, 50, driver.number)]))
    assert driver.store.find_convergent(key_hash(b"d" * 32)) is None
    assert key_hash(b"c" * 32) != b"c" * 32


def test_keys_lie_sealed_in_the_file(driver: Driver) -> None:
    ino = written(driver, 100)
    secret = b"an unmistakable key of 32 bytes!"
    driver.do(Commit([pack_record(1, key=secret)], [extent_record(ino, 0, 100, driver.number)]))
    driver.store.commit()
    with open(driver.path, "rb") as database, open(driver.path + "-wal", "rb") as log:
        assert secret not in database.read() + log.read()
    assert driver.store.pack(1).key == secret


def test_news_of_a_known_pack_replace_places_and_debt(driver: Driver) -> None:
    ino = written(driver, 100)
    owing = pack_record(1, places=[*SERVERS[:4], None, None], missing=[4, 5])
    driver.do(Commit([owing], [extent_record(ino, 0, 100, driver.number)]))
    assert driver.store.totals().missing_shares == 2
    driver.do(Commit([pack_record(1, places=[*SERVERS[:5], None], missing=[5])], []))
    assert driver.store.totals().missing_shares == 1
    assert driver.store.pack(1).places == (*SERVERS[:5], None)
    assert live(driver, 1) == 100
    truncate(driver, ino, 0)
    assert driver.store.totals().missing_shares == 0
    driver.do(Commit([pack_record(1, missing=[1, 2, 3])], []))
    assert driver.store.totals().missing_shares == 0


def test_journal_packs_have_no_extents_and_are_no_garbage(driver: Driver) -> None:
    driver.do(Commit([pack_record(1, kind=KIND_JOURNAL, missing=[0])], []))
    assert driver.store.garbage() == []
    totals = driver.store.totals()
    assert (totals.packs, totals.live_bytes, totals.missing_shares) == (1, 0, 1)


def test_a_commit_for_an_inode_that_is_gone_leaves_its_pack_as_garbage(driver: Driver) -> None:
    ino, other = written(driver, 100), written(driver, 100, b"other")
    frozen = driver.number
    driver.do(Unlink(ROOT, b"file", ino, 300))
    driver.do(Drop(ino))
    records = [pack_record(1), pack_record(2)]
    extents = [extent_record(ino, 0, 100, frozen), extent_record(other, 0, 100, frozen, pack=1)]
    driver.do(Commit(records, extents))
    assert [item.pack_ref for item in driver.store.garbage()] == [1]
    assert live(driver, 2) == 100


def test_an_orphan_still_takes_commits(driver: Driver) -> None:
    ino = written(driver, 100)
    driver.do(Unlink(ROOT, b"file", ino, 300))
    committed(driver, ino, 0, 100)
    assert len(driver.store.extents(ino, 0, 100)) == 1


def test_commits_that_do_not_fit_change_nothing(driver: Driver) -> None:
    ino = written(driver, 100)
    directory = driver.make(b"directory", DIRECTORY)
    committed(driver, ino, 0, 100, mark=1)
    frozen = driver.number

    def with_extent(record: ExtentRecord) -> Commit:
        return Commit([pack_record(9)], [record])

    for misfit in [
        with_extent(extent_record(ino, 0, 101, frozen)),
        with_extent(extent_record(ino, 0, 10, frozen, pack=1)),
        with_extent(extent_record(ino, 0, 10, frozen, skip=1)),
        with_extent(extent_record(ino, 0, 0, frozen)),
        with_extent(extent_record(ino, -1, 5, frozen)),
        with_extent(extent_record(ino, 0, 10, frozen + 1)),
        with_extent(extent_record(directory, 0, 10, frozen)),
        Commit([pack_record(9), pack_record(9)], []),
        Commit([pack_record(9, k=7)], []),
        Commit([pack_record(9, places=SERVERS[:5])], []),
        Commit([pack_record(9, missing=[6])], []),
        Commit([pack_record(9, key=b"short")], []),
        Commit([pack_record(1, key=b"x" * 32)], []),
        Commit([pack_record(1, stream_length=5)], []),
        Commit([pack_record(9), PackRecord(b"short", 4, 6, 9, b"k" * 32, False, [None] * 6, [])], []),
    ]:
        driver.refused(misfit)
    assert driver.store.find_pack((9).to_bytes(32, "big")) is None


def test_truncate_cuts_the_extent_at_the_end_and_extending_leaves_a_hole(driver: Driver) -> None:
    ino = written(driver, 10_000)
    ref = committed(driver, ino, 0, 10_000)
    truncate(driver, ino, 3_000)
    truncate(driver, ino, 20_000)
    assert [(item.start, item.end) for item in driver.store.extents(ino, 0, 20_000)] == [(0, 3_000)]
    assert (blocks(driver, ino), live(driver, ref)) == (6, 3_000)


def test_one_sequential_file_stays_one_row_per_run(driver: Driver) -> None:
    ino = written(driver, 100)
    frozen = driver.number
    for start in range(0, 100, 10):
        record = ExtentRecord(ino, start, 10, 0, 0, 0, 100, start, frozen)
        driver.do(Commit([pack_record(1)], [record]))
    assert driver.store.extents(ino, 0, 100) == [Extent(0, 100, 1, 0, 0, 100, 0, frozen)]


@pytest.mark.parametrize("kept_rows", [0, 1, 700])
def test_a_large_truncate_is_seen_at_once_and_cleared_away_in_steps(driver: Driver, kept_rows: int) -> None:
    rows = 2 * CUT_ROWS_MAX
    ino, ref = scattered(driver, rows)
    size = kept_rows * BLOCK
    truncate(driver, ino, size)
    assert driver.store.work(0)
    truncate(driver, ino, rows * BLOCK)
    kept = driver.store.extents(ino, 0, rows * BLOCK)
    assert (len(kept), sum(item.length for item in kept)) == (kept_rows, size)
    # New data behind the cut is not taken for what was cut off.
    driver.do(Write(ino, (rows - 10) * BLOCK + 7, BLOCK, 950))
    before = live(driver, ref)
    new = committed(driver, ino, (rows - 10) * BLOCK + 7, BLOCK, mark=2)
    # The two dead extents that it touches leave whole; a body that was cut to nothing is not touched.
    assert live(driver, ref) == before - (2 * BLOCK if kept_rows else 0)
    driver.store.commit()
    driver.reopen()
    assert len(driver.store.extents(ino, 0, rows * BLOCK)) == kept_rows + 1
    assert clear_away(driver) >= (rows - kept_rows) // 300
    assert len(driver.store.extents(ino, 0, rows * BLOCK)) == kept_rows + 1
    assert (live(driver, ref), live(driver, new)) == (size, BLOCK)
    assert blocks(driver, ino) == (size + BLOCK) // 512
    assert not driver.store.work(300)


def test_a_dropped_large_file_is_gone_at_once_and_its_pack_dies_with_the_last_row(driver: Driver) -> None:
    ino, ref = scattered(driver, CUT_ROWS_MAX + 500)
    truncate(driver, ino, 200 * BLOCK)
    driver.do(Unlink(ROOT, b"big", ino, 960))
    driver.do(Drop(ino))
    assert driver.store.inode(ino) is None
    assert driver.store.extents(ino, 0, 1 << 40) == []
    assert driver.store.garbage() == []
    clear_away(driver)
    assert [item.pack_ref for item in driver.store.garbage()] == [ref]
    assert driver.store.totals().live_bytes == 0


def test_a_second_smaller_truncate_takes_over_the_first(driver: Driver) -> None:
    ino, ref = scattered(driver, 3 * CUT_ROWS_MAX)
    truncate(driver, ino, CUT_ROWS_MAX * BLOCK)
    truncate(driver, ino, 10 * BLOCK)
    truncate(driver, ino, 3 * CUT_ROWS_MAX * BLOCK)
    assert len(driver.store.extents(ino, 0, 1 << 40)) == 10
    assert blocks(driver, ino) >= 10 * 8
    clear_away(driver)
    assert (blocks(driver, ino), live(driver, ref)) == (10 * 8, 10 * BLOCK)


def test_no_step_touches_more_rows_than_allowed(driver: Driver) -> None:
    ino, ref = scattered(driver, CUT_ROWS_MAX + 1000)
    truncate(driver, ino, 0)
    before = live(driver, ref)
    driver.store.work(100)
    assert before - live(driver, ref) == 100 * BLOCK


def test_files_that_go_cost_their_pack_one_row_and_leave_it_right(driver: Driver) -> None:
    """Dropped one by one and together, looked at and rolled back in the middle of it."""
    store = driver.store
    inodes = [written(driver, BLOCK, b"%d" % number) for number in range(12)]
    extents = [
        extent_record(ino, 0, BLOCK, driver.number, run=run, run_offset=run * BLOCK)
        for run, ino in enumerate(inodes)
    ]
    driver.do(Commit([pack_record(7, stream_length=12 * BLOCK)], extents))
    ref = store.find_pack((7).to_bytes(32, "big"))
    assert ref is not None
    for number, ino in enumerate(inodes):
        driver.do(Unlink(ROOT, b"%d" % number, ino, 300))
    store.commit()
    before = store._database.total_changes()
    for ino in inodes[:4]:
        driver.do(Drop(ino))
    assert store._database.total_changes() == before
    assert store.totals().live_bytes == 8 * BLOCK
    assert live(driver, ref) == 8 * BLOCK
    assert store.check() == []
    driver.do(Together([Drop(ino) for ino in inodes[4:8]]))
    assert "no inode" in driver.refused(Together([Drop(inodes[8]), Drop(inodes[0])]))
    assert store.totals().live_bytes == live(driver, ref) == 4 * BLOCK
    driver.do(Drop(inodes[8]))
    store.revoke(driver.number)
    assert store.inode(inodes[8]) is not None
    assert store.totals().live_bytes == live(driver, ref) == 4 * BLOCK
    driver.number -= 1
    driver.do(Together([Drop(ino) for ino in inodes[8:]]))
    assert [garbage.pack_ref for garbage in store.garbage()] == [ref]
    store.commit()
    driver.reopen()
    assert driver.store.check() == []
    assert driver.store.orphans() == []
    assert live(driver, ref) == 0
