"""The outbox: what still has to be shipped, with Writes gathered."""

from __future__ import annotations

from gridfs.meta.operations import Operation, SetAttributes, SetXattr, Write, decode, encode
from gridfs.meta.outbox import GATHERED_INODES_MAX, RECENT_BYTES_MAX
from gridfs.meta.store import ROOT

from .support import Driver, MaskSealer


def rows(driver: Driver) -> list[tuple[int, Operation]]:
    return [(number, decode(payload)) for number, payload in driver.store.outbox(0, 1 << 30)]


def writes(driver: Driver) -> list[tuple[int, Operation]]:
    return [row for row in rows(driver) if isinstance(row[1], Write)]


def test_every_operation_is_there_in_order(driver: Driver) -> None:
    ino = driver.make(b"file")
    operation = SetAttributes(ino, None, 5, None, None, None, None, 9)
    driver.do(operation)
    assert [number for number, _ in rows(driver)] == [1, 2]
    assert rows(driver)[1] == (2, operation)


def test_writes_to_one_inode_are_one_under_the_last_number(driver: Driver) -> None:
    one, two = driver.make(b"one"), driver.make(b"two")
    driver.do(Write(one, 100, 10, 301))
    driver.do(Write(two, 0, 5, 302))
    driver.do(Write(one, 0, 10, 303))
    driver.do(Write(two, 5, 5, 304))
    assert writes(driver) == [(5, Write(one, 0, 110, 303)), (6, Write(two, 0, 10, 304))]


def test_writes_without_a_time_keep_the_last_one(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(Write(ino, 0, 10, None))
    driver.do(Write(ino, 10, 10, 301))
    driver.do(Write(ino, 20, 10, None))
    assert writes(driver) == [(4, Write(ino, 0, 30, 301))]


def test_writes_are_gathered_over_transactions_too(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(Write(ino, 0, 10, 301))
    driver.store.commit()
    driver.do(Write(ino, 10, 10, 302))
    driver.store.commit()
    assert writes(driver) == [(3, Write(ino, 0, 20, 302))]
    driver.reopen()
    driver.do(Write(ino, 20, 10, 303))
    assert writes(driver) == [(3, Write(ino, 0, 20, 302)), (4, Write(ino, 20, 10, 303))]


def test_another_operation_ends_the_gathering(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(Write(ino, 0, 100, 301))
    driver.do(SetAttributes(ino, None, None, None, None, None, 5, 302))
    driver.do(Write(ino, 0, 10, 303))
    assert [number for number, _ in rows(driver)] == [1, 2, 3, 4]
    assert writes(driver) == [(2, Write(ino, 0, 100, 301)), (4, Write(ino, 0, 10, 303))]


def test_an_empty_write_does_not_widen_the_span(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(Write(ino, 900, 0, 301))
    driver.do(Write(ino, 10, 10, 302))
    driver.do(Write(ino, 5000, 0, 303))
    assert writes(driver) == [(4, Write(ino, 10, 10, 303))]


def test_rows_come_in_portions(driver: Driver) -> None:
    for number in range(5):
        driver.make(b"%d" % number)
    all_rows = driver.store.outbox(0, 1 << 30)
    size = len(all_rows[0][1])
    assert driver.store.outbox(0, 1) == all_rows[:1]
    assert driver.store.outbox(0, 2 * size) == all_rows[:2]
    assert driver.store.outbox(2, 2 * size) == all_rows[2:4]
    assert driver.store.outbox(5, 1 << 30) == []


def test_dropped_rows_do_not_come_back(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(Write(ino, 0, 10, 301))
    driver.store.commit()
    driver.store.drop_outbox(2)
    assert driver.store.outbox(0, 1 << 30) == []
    # The next write is not joined to one that was shipped.
    driver.do(Write(ino, 50, 10, 302))
    assert writes(driver) == [(3, Write(ino, 50, 10, 302))]
    driver.store.commit()
    driver.reopen()
    assert writes(driver) == [(3, Write(ino, 50, 10, 302))]


def test_a_write_that_was_shipped_while_it_grew_is_shipped_again_whole(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(Write(ino, 0, 10, 301))
    assert len(driver.store.outbox(0, 1 << 30)) == 2
    driver.do(Write(ino, 10, 10, 302))
    driver.store.drop_outbox(2)
    assert writes(driver) == [(3, Write(ino, 0, 20, 302))]


def test_a_write_gathered_in_memory_is_dropped_as_well(driver: Driver) -> None:
    ino = driver.make(b"file")
    driver.do(Write(ino, 0, 10, 301))
    driver.store.drop_outbox(2)
    driver.store.commit()
    assert rows(driver) == []


def test_gathering_is_bounded_and_loses_nothing(driver: Driver) -> None:
    inodes = [driver.make(b"%d" % number) for number in range(GATHERED_INODES_MAX + 5)]
    for ino in inodes:
        driver.do(Write(ino, 0, 10, 301))
    found = [operation.ino for _, operation in writes(driver) if isinstance(operation, Write)]
    assert found == inodes


def test_rows_lie_sealed_in_the_file(driver: Driver) -> None:
    name = b"a name that is nowhere else in the outbox"
    ino = driver.make(name)
    driver.do(SetAttributes(ino, None, None, None, None, None, None, 9))
    driver.store.commit()
    payload = driver.store.outbox(0, 1 << 30)[0][1]
    assert name in payload
    with open(driver.path + "-wal", "rb") as log:
        assert payload not in log.read()
    assert encode(decode(payload)) == payload
    assert driver.store.lookup(ROOT, name) == ino


def test_what_was_written_just_now_is_not_read_again(driver: Driver) -> None:
    """The same rows come from memory and from the table, whatever was dropped, replaced or pushed out."""
    store = driver.store
    opened: list[bytes] = []
    inodes = [driver.make(b"%d" % number) for number in range(20)]

    class Counting(MaskSealer):
        def open(self, data: bytes) -> bytes:
            opened.append(data)
            return super().open(data)

    store._outbox._sealer = Counting()
    shipped = 0
    for turn in range(400):
        ino = inodes[turn * 7 % 20]
        driver.do(Write(ino, turn, 1, turn))
        driver.do(Write(inodes[turn * 3 % 20], turn, 1, turn))
        if turn % 5 == 0:
            driver.do(SetXattr(ino, b"user.a", bytes(RECENT_BYTES_MAX // 100), 6))
        if turn % 3 == 0:
            store.commit()
        if turn % 40 == 39:
            shipped = driver.number - 20
            store.drop_outbox(shipped)
        count = len(opened)
        newest = store.outbox(driver.number - 5, 1 << 30)
        assert len(opened) == count
        for after in (shipped, driver.number - 100, driver.number - 5):
            rows = store.outbox(after, 1 << 30)
            store._outbox.flush()
            table = store._outbox._database.execute(
                "SELECT number, payload FROM outbox WHERE number > ? ORDER BY number", (after,)
            )
            assert rows == [(number, MaskSealer().open(payload)) for number, payload in table]
        assert newest == rows
        assert store._outbox._recent_bytes == sum(map(len, store._outbox._recent.values()))
        assert store._outbox._recent_bytes <= RECENT_BYTES_MAX
    assert opened
