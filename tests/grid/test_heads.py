"""The head servers as one: who decides, who is waited for, and what is said when it is too few."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio
import trio.testing

from gridfs.codec.headlist import HeadList
from gridfs.grid.backlog import BYTES_MAX, FULL_COUNT, Backlog
from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.headappends import GATHER_S, HEDGE_S
from gridfs.grid.headquorum import HEAD_HEALTH
from gridfs.grid.heads import Claim, HeadServers
from storage.errors import Conflict, StorageError, Unavailable
from storage.format.head import GENESIS
from storage.headlog import HeadClaim, HeadRecord, HeadStanding
from storage.wire.heads import record_of
from storage.wire.messages import HEAD_APPEND_MAX, HeadAppend, decode_request
from tests.grid.servers import make_roster, server_id

LOG, MOUNT = b"l" * 32, b"m" * 16
CLAIM = HeadClaim(b"k" * 32, b"r" * 32, 5, MOUNT, bytes(64))
COUNT, QUORUM = 6, 4


def record(sequence: int, epoch: int = 1, payload: bytes = b"sealed") -> HeadRecord:
    return HeadRecord(epoch, sequence, GENESIS, payload, bytes(64), MOUNT)


@dataclass
class FakeClient:
    """Answers after `delay_s`, with what it is told."""

    delay_s: float = 0.0
    failure: StorageError | None = None
    newest: HeadRecord | None = None
    standing: HeadStanding | None = None
    kept: list[HeadRecord] = field(default_factory=list)
    trimmed: list[tuple[int, int]] = field(default_factory=list)
    cancelled: bool = False

    async def _answer(self) -> None:
        try:
            await trio.sleep(self.delay_s)
        except trio.Cancelled:
            self.cancelled = True
            raise
        if self.failure is not None:
            raise self.failure

    async def head_claim(self, claim: HeadClaim) -> tuple[int, bytes, HeadRecord | None]:
        assert claim == CLAIM
        await self._answer()
        return claim.epoch, claim.mount_id, self.newest

    async def head_look(self, log: bytes) -> HeadStanding | None:
        assert log == LOG
        await self._answer()
        return self.standing

    async def head_append(self, log: bytes, records: Sequence[HeadRecord]) -> None:
        assert log == LOG
        await self._answer()
        self.kept += records

    def head_append_nowait(self, request: bytes, settled: Callable[[StorageError | None], None]) -> bool:
        return False

    async def head_read(
        self, log: bytes, after: tuple[int, int] | None, limit_bytes: int
    ) -> list[HeadRecord]:
        assert (log, after) == (LOG, None)
        await self._answer()
        return self.kept

    async def head_trim(self, log: bytes, before: tuple[int, int], signature: bytes) -> None:
        await self._answer()
        self.trimmed.append(before)


def head_servers(clients: list[FakeClient], listed: int | None = None) -> HeadServers:
    """`listed`: how many of the head servers the servers file still names."""
    ids = [server_id(index) for index in range(len(clients))]
    there = dict(list(zip(ids, clients, strict=True))[:listed])
    return HeadServers(
        there,
        HeadList(tuple(ids), QUORUM, 1),
        make_roster(len(clients)),
        LOG,
        lambda record: record.signature == bytes(64),
    )


async def append(heads: HeadServers, *records: HeadRecord) -> None:
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(heads.run)
        try:
            for each in records:
                await heads.append(each)
        except (StorageError, NotEnoughServers) as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def chain(count: int, payload: bytes = b"sealed") -> list[HeadRecord]:
    """Records that name each other."""
    records: list[HeadRecord] = []
    for sequence in range(1, count + 1):
        previous = records[-1].record_hash() if records else GENESIS
        records.append(HeadRecord(1, sequence, previous, payload, bytes(64), MOUNT))
    return records


def told(claim: Claim) -> tuple[int, int, HeadRecord | None, int]:
    return claim.promises, claim.refused, claim.newest, claim.holders


async def test_an_append_returns_with_the_quorum_and_leaves_the_slow(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients = [FakeClient(delay_s=index) for index in range(COUNT)]
    await append(head_servers(clients), record(1))
    assert trio.current_time() == pytest.approx(QUORUM - 1)
    assert [len(client.kept) for client in clients] == [1, 1, 1, 1, 0, 0]
    assert [client.cancelled for client in clients] == [False] * 4 + [True] * 2


async def test_an_append_to_too_few_says_who_failed_and_why(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients = [FakeClient() for _ in range(COUNT)]
    for client in clients[:3]:
        client.failure = Unavailable("nobody listens")
    with pytest.raises(NotEnoughServers, match=r"head record 1\.7: 3 of the 4 servers .*nobody listens"):
        await append(head_servers(clients), record(7))


async def test_a_server_that_is_behind_is_no_veto_for_an_append(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It could not write the promise down, say, because its disk is full."""
    clients = [FakeClient(delay_s=5) for _ in range(COUNT)]
    clients[2] = FakeClient(failure=Conflict("epoch 0 is promised"))
    await append(head_servers(clients), record(1))
    assert sum(len(client.kept) for client in clients) >= QUORUM


async def test_an_append_ends_with_a_conflict_as_soon_as_too_few_are_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients = [FakeClient(delay_s=5) for _ in range(COUNT)]
    for client in clients[:2]:
        client.delay_s, client.failure = 1, Conflict("epoch 9 was promised")
    clients[2] = FakeClient(delay_s=2, failure=Unavailable("down"))
    with pytest.raises(Conflict, match="epoch 9"):
        await append(head_servers(clients), record(1))
    assert trio.current_time() == pytest.approx(2)


async def test_a_head_server_that_the_servers_file_lost_counts_as_failed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    heads = head_servers([FakeClient() for _ in range(COUNT)], listed=3)
    with pytest.raises(NotEnoughServers, match="not in the servers file"):
        await append(heads, record(1))


@dataclass
class PromptClient(FakeClient):
    """Takes what needs no waiting, and answers after `delay_s`; counts messages."""

    messages: list[list[int]] = field(default_factory=list)
    """Sequences, of each message."""
    nursery: trio.Nursery | None = None
    hangs: bool = False

    def head_append_nowait(self, request: bytes, settled: Callable[[StorageError | None], None]) -> bool:
        message = decode_request(request)
        assert isinstance(message, HeadAppend)
        assert self.nursery is not None
        self.messages.append([entry.sequence for entry in message.entries])
        self.nursery.start_soon(self._settle, list(map(record_of, message.entries)), settled)
        return True

    async def _settle(
        self, records: list[HeadRecord], settled: Callable[[StorageError | None], None]
    ) -> None:
        await trio.sleep(1000 if self.hangs else self.delay_s)
        if self.failure is None:
            self.kept += records
        settled(self.failure)


@asynccontextmanager
async def prompt(clients: list[PromptClient]) -> AsyncIterator[HeadServers]:
    heads = head_servers(list(clients))
    async with trio.open_nursery() as nursery:
        for client in clients:
            client.nursery = nursery
        await nursery.start(heads.run)
        yield heads
        nursery.cancel_scope.cancel()


async def test_what_a_quorum_takes_at_once_reaches_the_others_gathered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients = [PromptClient(delay_s=0.001) for _ in range(COUNT)]
    records = chain(FULL_COUNT + 3)
    async with prompt(clients) as heads:
        for each in records:
            await heads.append(each)
        numbers = [each.sequence for each in records]
        assert [client.messages for client in clients[:QUORUM]] == [[[n] for n in numbers]] * QUORUM
        assert [client.messages for client in clients[QUORUM:]] == [[numbers[:FULL_COUNT]]] * 2
        await trio.sleep(GATHER_S + 2 * HEDGE_S)
        assert [client.kept for client in clients] == [records] * COUNT
        assert [len(client.messages) for client in clients[QUORUM:]] == [2, 2]


async def test_what_is_gathered_goes_out_before_anything_else_and_at_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients = [PromptClient(delay_s=0.001) for _ in range(COUNT)]
    first, second, third = chain(3)
    async with prompt(clients) as heads:
        await heads.append(first)
        assert [len(client.messages) for client in clients] == [1] * 4 + [0] * 2
        await heads.claim(CLAIM)
        assert [client.messages for client in clients] == [[[1]]] * COUNT
        await heads.append(second)
        await heads.append(third)
    assert [client.messages[1:] for client in clients] == [[[2], [3]]] * 4 + [[[2, 3]]] * 2


async def test_a_server_of_the_first_that_fails_is_replaced_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients = [PromptClient(delay_s=0.001) for _ in range(COUNT)]
    clients[1].failure = Unavailable("down")
    records = chain(3)
    async with prompt(clients) as heads:
        await heads.append(records[0])
        assert trio.current_time() == pytest.approx(0.002)
        await heads.append(records[1])
        await heads.append(records[2])
        assert trio.current_time() == pytest.approx(0.004), "it is not needed any more"
    assert clients[0].messages == [[1], [2], [3]]
    assert clients[1].messages == [[1], [2, 3]], "but told all the same"


async def test_a_server_of_the_first_that_hangs_costs_one_record_a_moment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients = [PromptClient(delay_s=0.001) for _ in range(COUNT)]
    clients[2].hangs = True
    async with prompt(clients) as heads:
        records = chain(4)
        await heads.append(records[0])
        assert HEDGE_S <= trio.current_time() <= 2 * HEDGE_S + 0.002
        began = trio.current_time()
        for each in records[1:]:
            await heads.append(each)
        assert trio.current_time() == pytest.approx(began + 0.003)


async def test_servers_that_are_slower_are_not_needed(autojump_clock: trio.testing.MockClock) -> None:
    clients = [PromptClient(delay_s=0.2 if index < 2 else 0.001) for index in range(COUNT)]
    records = chain(40)
    async with prompt(clients) as heads:
        for each in records[:30]:
            await heads.append(each)
        began = trio.current_time()
        for each in records[30:]:
            await heads.append(each)
        assert trio.current_time() == pytest.approx(began + 0.01)


def test_a_backlog_holds_what_follows_each_other_within_the_bounds_of_a_message() -> None:
    backlog = Backlog()
    records = chain(HEAD_APPEND_MAX + 5)
    for each in records:
        backlog.put(each)
    backlog.put(records[-1])
    assert backlog.take() == records[5:]
    for each in chain(4, bytes(BYTES_MAX // 3)):
        backlog.put(each)
    assert [each.sequence for each in backlog.records] == [3, 4]
    backlog.put(record(9))
    assert backlog.take() == [record(9)], "another chain"


async def test_a_claim_hears_everybody_and_takes_the_newest_record(
    autojump_clock: trio.testing.MockClock,
) -> None:
    old, new = record(4, epoch=1), record(2, epoch=2)
    clients = [
        FakeClient(newest=old),
        FakeClient(newest=new, delay_s=0.5),
        FakeClient(newest=new),
        FakeClient(newest=None),
        FakeClient(failure=Conflict("another mount")),
        FakeClient(failure=Unavailable("down")),
    ]
    claim = await head_servers(clients).claim(CLAIM)
    assert told(claim) == (4, 1, new, 2)
    assert trio.current_time() == pytest.approx(0.5)


async def test_a_forged_record_is_not_believed_and_its_server_is_named(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """However new it says to be."""
    clients = [FakeClient(newest=record(7)) for _ in range(COUNT)]
    clients[3].newest = replace(record(1, epoch=1 << 60), signature=b"!" * 64)
    heads = head_servers(clients)
    claim = await heads.claim(CLAIM)
    assert told(claim) == (5, 0, record(7), 5)
    assert heads.lied == {server_id(3): 1}
    assert f"{make_roster(COUNT).name(server_id(3))}: its head record {1 << 60}.1 is forged" in caplog.text


async def test_hung_head_servers_hold_up_nobody_whose_answer_is_known(
    autojump_clock: trio.testing.MockClock,
) -> None:
    newest = record(4)
    clients = [FakeClient(newest=newest, kept=[newest]) for _ in range(COUNT)]
    for client in clients[:2]:
        client.delay_s = 1000.0
    heads = head_servers(clients)
    waited = []
    for ask in (
        lambda: heads.claim(CLAIM, patient=True),
        heads.records,
        lambda: heads.trim((3, 4), bytes(64)),
        lambda: heads.claim(CLAIM),
        heads.records,
        lambda: heads.trim((3, 4), bytes(64)),
    ):
        begin = trio.current_time()
        answer = await ask()  # type: ignore[operator]
        waited.append(trio.current_time() - begin)
        if isinstance(answer, Claim):
            assert told(answer) == (4, 0, newest, 4)
        elif answer is not None:
            assert answer == [newest]
    assert waited[0] == pytest.approx(HEAD_HEALTH.first_s)
    assert waited[3:] == [0.0, 0.0, 0.0], "three times overtaken: nobody waits for them any more"
    assert all(client.cancelled for client in clients[:2])


async def test_answers_that_are_needed_are_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """Of six servers and a quorum of four, three show the newest record; to promise, four are needed."""
    clients = [FakeClient() for _ in range(2)] + [FakeClient(delay_s=9.0) for _ in range(4)]
    clients[5].newest = record(7)
    claim = await head_servers(clients).claim(CLAIM)
    assert claim.newest == record(7)
    assert trio.current_time() == pytest.approx(9.0)


async def test_distance_alone_makes_no_head_server_late(autojump_clock: trio.testing.MockClock) -> None:
    """All are far away, one a little farther."""
    clients = [FakeClient(delay_s=4.0) for _ in range(5)] + [FakeClient(delay_s=6.0, newest=record(3))]
    claim = await head_servers(clients).claim(CLAIM)
    assert told(claim) == (6, 0, record(3), 1)


async def test_a_claim_that_nobody_answers_is_an_answer(autojump_clock: trio.testing.MockClock) -> None:
    clients = [FakeClient(failure=Unavailable("down")) for _ in range(COUNT)]
    assert told(await head_servers(clients).claim(CLAIM)) == (0, 0, None, 0)


async def test_a_record_that_nobody_signed_is_not_the_newest(autojump_clock: trio.testing.MockClock) -> None:
    """A lying server shows a record of its own, with the highest stamp of all."""
    true = record(2, epoch=2)
    forged = replace(record(99, epoch=99), signature=b"f" * 64)
    clients = [FakeClient(newest=forged), FakeClient(newest=true), FakeClient()]
    heads = head_servers(clients)
    assert told(await heads.claim(CLAIM)) == (2, 0, true, 1)
    assert heads.lied == {server_id(0): 1}


async def test_a_look_tells_what_every_server_that_answers_has(
    autojump_clock: trio.testing.MockClock,
) -> None:
    standing = HeadStanding(3, MOUNT, None, record(2))
    clients = [
        FakeClient(standing=standing, delay_s=2),
        FakeClient(),
        *[FakeClient(failure=Unavailable("down")) for _ in range(COUNT - 2)],
    ]
    assert await head_servers(clients).look() == [standing]


async def test_records_of_all_servers_are_one_list_in_order(autojump_clock: trio.testing.MockClock) -> None:
    a, b, c = record(1), record(2), record(1, epoch=2)
    rival = record(2, payload=b"what too few servers took")
    clients = [
        FakeClient(kept=[a, b]),
        FakeClient(kept=[a, rival, c]),
        FakeClient(kept=[b, c]),
        FakeClient(failure=Unavailable("down")),
    ]
    found = await head_servers(clients).records()
    assert found[0] == a
    assert sorted(found[1:3], key=lambda each: each.payload) == sorted(
        [b, rival], key=lambda each: each.payload
    )
    assert found[3] == c
    assert len(found) == 4
    assert len(await head_servers(clients).records(surely=True)) == 4
    few = head_servers([*clients[:2], *[clients[3]] * 4])
    assert len(await few.records()) == 4
    with pytest.raises(NotEnoughServers, match="2 of the 3 servers"):
        await few.records(surely=True)


async def test_a_trim_does_not_mind_who_is_away(autojump_clock: trio.testing.MockClock) -> None:
    clients = [FakeClient(), FakeClient(failure=Unavailable("down")), FakeClient(delay_s=0.5)]
    clients += [FakeClient(delay_s=1000.0) for _ in range(3)]
    await head_servers(clients).trim((3, 4), bytes(64))
    assert [client.trimmed for client in clients] == [[(3, 4)], [], [(3, 4)], [], [], []]
    assert trio.current_time() == pytest.approx(HEAD_HEALTH.first_s)


OLD, NEW = (0, 1, 2, 3, 4), (3, 4, 5, 6, 7)


def changing(clients: list[FakeClient]) -> HeadServers:
    """Of eight servers the first five are left, the last five are new; three of each make a quorum."""
    heads = head_servers(clients)
    old, new = (HeadList(tuple(map(server_id, which)), 3, index) for index, which in enumerate((OLD, NEW)))
    heads.use(new, old)
    return heads


@pytest.mark.parametrize(
    ("down", "fails"),
    [
        ((), ""),
        ((0, 1), ""),
        ((6, 7), ""),
        ((0, 6), ""),
        ((0, 1, 2), "2 of the 3"),
        ((5, 6, 7), "2 of the 3"),
    ],
)
async def test_while_the_list_changes_an_append_needs_a_quorum_of_both(
    down: tuple[int, ...], fails: str, autojump_clock: trio.testing.MockClock
) -> None:
    clients = [FakeClient(delay_s=0.1) for _ in range(8)]
    for index in down:
        clients[index].failure = Unavailable("down")
    heads = changing(clients)
    if fails:
        with pytest.raises(NotEnoughServers, match=fails):
            await append(heads, record(1))
    else:
        await append(heads, record(1))
        for which in (OLD, NEW):
            assert sum(len(clients[index].kept) for index in which) >= 3
    claim = await heads.claim(CLAIM)
    assert (claim.promises, claim.has_quorum, claim.is_heard) == (8 - len(down), not fails, not fails)


async def test_while_the_list_changes_the_newest_is_on_a_quorum_of_both_or_not_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients = [FakeClient(newest=record(2 if index >= 3 else 1)) for index in range(8)]
    heads = changing(clients)
    claim = await heads.claim(CLAIM)
    assert (claim.newest, claim.holders, claim.is_kept) == (record(2), 5, False)
    clients[2].newest = record(2)
    assert (await heads.claim(CLAIM)).is_kept
