"""The head servers as one: who decides, who is waited for, and what is said when it is too few."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gridfs.grid.errors import NotEnoughServers
from gridfs.grid.heads import Claim, HeadServers
from storage.errors import Conflict, StorageError, Unavailable
from storage.format.head import GENESIS
from storage.headlog import HeadRecord
from tests.grid.servers import make_roster, server_id

SIGNER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
LOG, KEY, MOUNT = b"l" * 32, SIGNER.public_key().public_bytes_raw(), b"m" * 16
COUNT, QUORUM = 6, 4


def record(sequence: int, epoch: int = 1, payload: bytes = b"sealed") -> HeadRecord:
    unsigned = HeadRecord(epoch, sequence, GENESIS, payload, bytes(64), MOUNT)
    return replace(unsigned, signature=SIGNER.sign(unsigned.signed_bytes(LOG)))


@dataclass
class FakeClient:
    """Answers after `delay_s`, with what it is told."""

    delay_s: float = 0.0
    failure: StorageError | None = None
    newest: HeadRecord | None = None
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

    async def head_claim(
        self, log: bytes, verifying_key: bytes, epoch: int, mount_id: bytes
    ) -> tuple[int, bytes, HeadRecord | None]:
        assert (log, verifying_key) == (LOG, KEY)
        await self._answer()
        return epoch, mount_id, self.newest

    async def head_append(self, log: bytes, record: HeadRecord) -> None:
        assert log == LOG
        await self._answer()
        self.kept.append(record)

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
    return HeadServers(there, ids, make_roster(len(clients)), LOG)


async def test_an_append_returns_with_the_quorum_and_leaves_the_slow(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients = [FakeClient(delay_s=index) for index in range(COUNT)]
    await head_servers(clients).append(record(1), QUORUM)
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
        await head_servers(clients).append(record(7), QUORUM)


async def test_a_server_that_is_behind_is_no_veto_for_an_append(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It could not write the promise down, say, because its disk is full."""
    clients = [FakeClient(delay_s=5) for _ in range(COUNT)]
    clients[2] = FakeClient(failure=Conflict("epoch 0 is promised"))
    await head_servers(clients).append(record(1), QUORUM)
    assert sum(len(client.kept) for client in clients) >= QUORUM


async def test_an_append_ends_with_a_conflict_as_soon_as_too_few_are_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients = [FakeClient(delay_s=5) for _ in range(COUNT)]
    for client in clients[:2]:
        client.delay_s, client.failure = 1, Conflict("epoch 9 was promised")
    clients[2] = FakeClient(delay_s=2, failure=Unavailable("down"))
    with pytest.raises(Conflict, match="epoch 9"):
        await head_servers(clients).append(record(1), QUORUM)
    assert trio.current_time() == pytest.approx(2)


async def test_a_head_server_that_the_servers_file_lost_counts_as_failed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    heads = head_servers([FakeClient() for _ in range(COUNT)], listed=3)
    with pytest.raises(NotEnoughServers, match="not in the servers file"):
        await heads.append(record(1), QUORUM)


async def test_a_claim_hears_everybody_and_takes_the_newest_record(
    autojump_clock: trio.testing.MockClock,
) -> None:
    old, new = record(4, epoch=1), record(2, epoch=2)
    clients = [
        FakeClient(newest=old),
        FakeClient(newest=new, delay_s=3),
        FakeClient(newest=new),
        FakeClient(newest=None),
        FakeClient(failure=Conflict("another mount")),
        FakeClient(failure=Unavailable("down")),
    ]
    claim = await head_servers(clients).claim(KEY, 5, MOUNT)
    assert claim == Claim(promises=4, refused=1, newest=new, holders=2)
    assert trio.current_time() == pytest.approx(3)


async def test_a_forged_record_is_not_the_newest_whatever_it_says(
    autojump_clock: trio.testing.MockClock,
) -> None:
    true = record(4)
    clients = [FakeClient(newest=true) for _ in range(COUNT)]
    clients[1].newest = replace(true, epoch=7, sequence=9)
    claim = await head_servers(clients).claim(KEY, 5, MOUNT)
    assert claim == Claim(promises=COUNT - 1, refused=0, newest=true, holders=COUNT - 1)


async def test_a_claim_that_nobody_answers_is_an_answer(autojump_clock: trio.testing.MockClock) -> None:
    clients = [FakeClient(failure=Unavailable("down")) for _ in range(COUNT)]
    assert await head_servers(clients).claim(KEY, 1, MOUNT) == Claim(0, 0, None, 0)


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


async def test_a_trim_does_not_mind_who_is_away(autojump_clock: trio.testing.MockClock) -> None:
    clients = [FakeClient(), FakeClient(failure=Unavailable("down")), FakeClient(delay_s=1)]
    await head_servers(clients).trim((3, 4), bytes(64))
    assert [client.trimmed for client in clients] == [[(3, 4)], [], [(3, 4)]]
