"""What every share backend promises, run on each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from storage.backends.disk import DiskBackend, DiskConfig
from storage.backends.memory import MemoryBackend
from storage.backends.port import IncomingShare, Lease, ShareBackend, ShareKey, SyncPolicy
from storage.errors import Exhausted, Refused, Unavailable
from storage.host import OsDisk, ThreadOffload

SMALL, LARGE = 1500, 200_000


def key(seed: int, number: int = 0) -> ShareKey:
    return ShareKey(bytes([seed]) * 32, number)


def lease(stamp: int, account: int = 1, file_system: int = 1) -> Lease:
    return Lease(bytes([file_system]) * 16, bytes([account]) * 16, 1, stamp)


def body(which: ShareKey, size: int) -> bytes:
    return (which.pack_id + bytes([which.number])) * (size // 33 + 1)


def share(which: ShareKey, size: int = SMALL, held: Lease | None = None) -> IncomingShare:
    data = body(which, size)[:size]
    return IncomingShare(which, [data[:7], memoryview(data)[7:]], held)


def contents(backend: ShareBackend, which: ShareKey) -> bytes | None:
    piece = backend.pin(which)
    if piece is None:
        return None
    try:
        buffer = bytearray(piece.length)
        assert piece.file.read_into(memoryview(buffer), piece.offset) == piece.length
        return bytes(buffer)
    finally:
        backend.unpin(piece)


Make = Callable[[int], ShareBackend]
MIB = 1 << 20


@pytest.fixture(params=["memory", *SyncPolicy])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    if request.param == "memory":
        return MemoryBackend
    policy = SyncPolicy(request.param)
    return lambda capacity: DiskBackend(
        OsDisk(),
        ThreadOffload(),
        str(tmp_path / "shares"),
        bytes(32),
        DiskConfig(sync=policy, capacity_bytes=capacity, reserve_bytes=0),
    )


@pytest.fixture
async def backend(make: Make) -> AsyncIterator[ShareBackend]:
    async with trio.open_nursery() as nursery:
        made = make(16 * MIB)
        await nursery.start(lambda task_status: made.run(task_status=task_status))
        yield made
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [1, SMALL, 65536, 65537, LARGE])
async def test_a_stored_share_reads_back(backend: ShareBackend, size: int) -> None:
    which = key(1, 255)
    assert await backend.store([share(which, size, lease(1))]) == [True]
    assert backend.has([which, key(1, 254), key(2, 255)]) == [True, False, False]
    assert contents(backend, which) == body(which, size)[:size]
    assert backend.pin(key(1, 254)) is None
    assert backend.counts() == (1, size)


async def test_one_call_stores_a_vector_in_order_and_says_what_was_new(backend: ShareBackend) -> None:
    assert await backend.store([share(key(2))]) == [True]
    vector = [share(key(1)), share(key(2)), share(key(3), LARGE), share(key(1)), share(key(3), LARGE)]
    assert await backend.store(vector) == [True, False, True, False, False]
    assert backend.counts() == (3, 2 * SMALL + LARGE)
    assert contents(backend, key(3)) == body(key(3), LARGE)[:LARGE]
    assert await backend.store([]) == []


async def test_concurrent_stores_of_one_share_keep_it_once(backend: ShareBackend) -> None:
    answers: list[bool] = []

    async def put(size: int, which: ShareKey) -> None:
        answers.extend(await backend.store([share(which, size, lease(1))]))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(put, SMALL, key(1))
            nursery.start_soon(put, LARGE, key(2))
    assert sorted(answers) == [False] * 8 + [True] * 2
    assert backend.counts() == (2, SMALL + LARGE)
    assert contents(backend, key(2)) == body(key(2), LARGE)[:LARGE]


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_release_needs_a_higher_stamp_and_takes_the_share_with_the_last_lease(
    backend: ShareBackend, size: int
) -> None:
    which = key(1)
    await backend.store([share(which, size, lease(5))])
    assert await backend.release([which], lease(4)) == [False]
    assert await backend.release([which], lease(5)) == [False]
    assert backend.has([which]) == [True]
    assert await backend.release([which], lease(6)) == [True]
    assert backend.has([which]) == [False]
    assert contents(backend, which) is None
    assert backend.counts() == (0, 0)
    assert await backend.release([which], lease(6)) == [True], "a release that is sent again"


async def test_an_epoch_outranks_a_sequence(backend: ShareBackend) -> None:
    await backend.store([share(key(1), held=lease(9)._replace(epoch=1))])
    assert await backend.release([key(1)], lease(1)._replace(epoch=2)) == [True]
    assert backend.has([key(1)]) == [False]


async def test_a_stamp_only_rises(backend: ShareBackend) -> None:
    await backend.store([share(key(1), held=lease(5))])
    assert await backend.assert_leases([key(1), key(2)], lease(9)) == [True, False]
    assert await backend.assert_leases([key(1)], lease(3)) == [True]
    assert await backend.store([share(key(1), held=lease(4))]) == [False]
    assert await backend.release([key(1)], lease(9)) == [False]
    assert await backend.release([key(1)], lease(10)) == [True]
    assert backend.has([key(1)]) == [False]


async def test_a_put_of_a_share_that_is_here_renews_its_lease(backend: ShareBackend) -> None:
    await backend.store([share(key(1), held=lease(1))])
    assert await backend.store([share(key(1), held=lease(7))]) == [False]
    assert await backend.release([key(1)], lease(7)) == [False]
    assert backend.has([key(1)]) == [True]


@pytest.mark.parametrize("other", [lease(1, account=2), lease(1, file_system=2)])
async def test_a_share_stays_while_another_holder_needs_it(backend: ShareBackend, other: Lease) -> None:
    await backend.store([share(key(1), held=lease(1))])
    assert await backend.assert_leases([key(1)], other) == [True]
    assert await backend.release([key(1)], lease(2)) == [True]
    assert backend.has([key(1)]) == [True]
    assert await backend.release([key(1)], other._replace(sequence=2)) == [True]
    assert backend.has([key(1)]) == [False]


async def test_a_stranger_cannot_release_a_share(backend: ShareBackend) -> None:
    await backend.store([share(key(1), held=lease(1)), share(key(2))])
    stranger = lease(99, account=7)
    assert await backend.release([key(1), key(2)], stranger) == [True, True]
    assert backend.has([key(1), key(2)]) == [True, True]


async def test_what_a_holder_leases_is_listed_in_order(backend: ShareBackend) -> None:
    mine = sorted(key(seed, number) for seed in range(4) for number in (0, 7))
    await backend.store([share(which, held=lease(1)) for which in mine])
    await backend.store([share(key(9), held=lease(1, account=2)), share(key(8), held=None)])
    await backend.assert_leases([mine[0], mine[1], key(77)], lease(1, file_system=2))
    holder = lease(1).holder
    assert backend.leased(holder, None, 100) == mine
    assert backend.leased(holder, None, 3) == mine[:3]
    assert backend.leased(holder, mine[2], 3) == mine[3:6]
    assert backend.leased(holder, mine[-1], 3) == []
    assert backend.leased(lease(1, file_system=2).holder, None, 100) == mine[:2]
    assert backend.leased(lease(1, account=3).holder, None, 100) == []
    await backend.release(mine[:5], lease(2))
    assert backend.leased(holder, None, 100) == mine[5:]


async def test_a_released_share_may_come_back(backend: ShareBackend) -> None:
    for stamp in (1, 3, 5):
        assert await backend.store([share(key(1), LARGE, lease(stamp)), share(key(2), SMALL, lease(stamp))])
        assert await backend.release([key(1), key(2)], lease(stamp + 1)) == [True, True]
    await backend.store([share(key(1), LARGE, lease(7))])
    assert contents(backend, key(1)) == body(key(1), LARGE)[:LARGE]
    assert backend.counts() == (1, LARGE)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_pinned_share_stays_readable_when_it_is_released(backend: ShareBackend, size: int) -> None:
    await backend.store([share(key(1), size, lease(1))])
    piece = backend.pin(key(1))
    assert piece is not None
    await backend.release([key(1)], lease(2))
    assert backend.pin(key(1)) is None
    buffer = bytearray(piece.length)
    assert piece.file.read_into(memoryview(buffer), piece.offset) == size
    assert buffer == body(key(1), size)[:size]
    backend.unpin(piece)


async def test_long_vectors_of_keys_are_answered_whole_and_in_order(backend: ShareBackend) -> None:
    await backend.store([share(key(number, number), 40, lease(1)) for number in range(0, 256, 2)])
    keys = [key(number % 256, number % 256) for number in range(2500)]
    expected = [number % 2 == 0 for number in range(2500)]
    assert await backend.assert_leases(keys, lease(2)) == expected
    assert await backend.release(keys, lease(3)) == [True] * 2500
    assert backend.counts() == (0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        IncomingShare(ShareKey(b"short", 0), [b"x"], None),
        IncomingShare(ShareKey(bytes(32), 256), [b"x"], None),
        IncomingShare(key(1), [b""], None),
        IncomingShare(key(1), [bytes(9_000_000)], None),
        IncomingShare(key(1), [b"x"], Lease(b"fs", bytes(16), 0, 0)),
        IncomingShare(key(1), [b"x"], lease(2**63)),
    ],
)
async def test_malformed_shares_are_refused(backend: ShareBackend, wrong: IncomingShare) -> None:
    with pytest.raises(Refused):
        await backend.store([share(key(3)), wrong])
    assert backend.counts() == (0, 0)


async def test_a_full_backend_says_so_and_takes_shares_again_once_there_is_room(make: Make) -> None:
    async with trio.open_nursery() as nursery:
        backend = make(LARGE + SMALL)
        await nursery.start(lambda task_status: backend.run(task_status=task_status))
        await backend.store([share(key(1), LARGE, lease(1))])
        with pytest.raises(Exhausted):
            await backend.store([share(key(2), LARGE, lease(1))])
        assert backend.space().free == SMALL
        assert await backend.store([share(key(1), LARGE, lease(2))]) == [False], "what is here needs no room"
        await backend.release([key(1)], lease(3))
        assert await backend.store([share(key(2), LARGE, lease(1))]) == [True]
        nursery.cancel_scope.cancel()


async def test_a_backend_that_does_not_run_is_unavailable(make: Make) -> None:
    backend = make(MIB)
    with pytest.raises(Unavailable):
        await backend.store([share(key(1))])
    with pytest.raises(Unavailable):
        backend.has([key(1)])
    with pytest.raises(Unavailable):
        backend.leased(lease(1).holder, None, 1)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: backend.run(task_status=task_status))
        await backend.store([share(key(1))])
        nursery.cancel_scope.cancel()
    with pytest.raises(Unavailable):
        backend.pin(key(1))
    with pytest.raises(Unavailable):
        await backend.release([key(1)], lease(1))


async def test_a_cancelled_call_did_nothing_or_everything(backend: ShareBackend) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await backend.store([share(key(1), SMALL, lease(1)), share(key(2), LARGE, lease(1))])
    first, second = backend.has([key(1), key(2)])
    assert first == second
    assert await backend.store([share(key(1), SMALL, lease(1)), share(key(2), LARGE, lease(1))])
    assert contents(backend, key(2)) == body(key(2), LARGE)[:LARGE]
