"""The service on a backend in memory, and the identity files of a server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.appendfile import read_exactly
from storage.backends.memory import MemoryBackend
from storage.backends.port import SyncPolicy
from storage.errors import Corrupt, Refused
from storage.headlog import HeadLogs
from storage.host import OsDisk, SystemEntropy, ThreadOffload
from storage.identity import (
    Account,
    create_account,
    find_account,
    load_identity,
    load_or_create_identity,
    record_address,
    recorded_address,
    verify,
)
from storage.pages import PagePool
from storage.ports import TlsAddress, UnixAddress
from storage.putbody import PutBody
from storage.service import Service
from storage.transport.residency import SystemPageCache
from storage.wire import messages as wire
from storage.wire.body import FileRange, Part, part_size
from storage.wire.url import RIGHTS
from tests.storage.servers import FILE_SYSTEM, make_pack
from tests.storage.test_messages import REQUESTS

ACCOUNT = Account(b"a" * 16, "full", b"s" * 32)
PACK = make_pack(length=300_000)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[Service, MemoryBackend]]:
    backend = MemoryBackend()
    heads = HeadLogs(OsDisk(), ThreadOffload(), str(directory))
    service = Service(backend, heads, ThreadOffload(), SystemPageCache(), PagePool(0), SyncPolicy.NONE)
    async with trio.open_nursery() as nursery:
        await nursery.start(backend.run)
        yield service, backend
        nursery.cancel_scope.cancel()


async def put(service: Service, *numbers: int) -> wire.FlagsReply:
    shares = [bytearray(PACK.shares[number]) for number in numbers]
    entries = [
        wire.PutShare(PACK.pack_id, number, len(share)) for number, share in zip(numbers, shares, strict=True)
    ]
    return await service.put(ACCOUNT, arrived(wire.Put(FILE_SYSTEM, 1, 1, entries), shares))


def arrived(request: wire.Put, shares: list[bytearray]) -> PutBody:
    """A body whose bytes have come, in pieces that end anywhere."""
    body = PutBody(request, PagePool(0))
    data = memoryview(b"".join(shares))
    while body.missing:
        pieces = body.take(min(100_003, body.missing))
        for piece in pieces:
            piece[:] = data[: len(piece)]
            data = data[len(piece) :]
        body.arrived(pieces)
    return body


@pytest.mark.parametrize("rights", RIGHTS)
@pytest.mark.parametrize("request_", REQUESTS, ids=wire.request_name)
async def test_rights(tmp_path: Path, rights: str, request_: wire.AnyRequest) -> None:
    allowed = {"readv", "have", "head_read", "head_look", "info"}
    if rights == "repair":
        allowed.add("put")
    name = wire.request_name(request_)
    async with running(tmp_path) as (service, _):
        account = Account(b"a" * 16, rights, b"s" * 32)
        if rights in ("full", "admin") or name in allowed:
            service.check_rights(account, request_)
        else:
            with pytest.raises(Refused, match=f"'{rights}', asked was {name}"):
                service.check_rights(account, request_)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 90_000)), min_size=1),
        ),
        min_size=1,
        max_size=6,
    )
)
async def test_a_plan_is_what_slicing_would_give(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, list[tuple[int, int]]]]
) -> None:
    """Any vector over two present shares and a missing one: bytes, lengths and order."""
    async with running(tmp_path_factory.mktemp("heads")) as (service, backend):
        await put(service, 0, 2)
        reads = [
            wire.ShareRead(PACK.pack_id, number, [value for pair in ranges for value in pair])
            for number, ranges in asked
        ]
        plan = service.read(wire.Readv(reads))
        expected = [
            b"" if number == 1 else PACK.shares[number][offset : offset + length]
            for number, ranges in asked
            for offset, length in ranges
        ]
        wanted = [length for _, ranges in asked for _, length in ranges]
        assert plan.lengths == [len(piece) for piece in expected]
        assert plan.whole == (plan.lengths == wanted)
        assert plan.size == sum(map(part_size, plan.parts)) == sum(plan.lengths)
        if (loading := service.prepare(plan)) is not None:
            await loading()
        assert b"".join(map(content, plan.parts)) == b"".join(expected)
        plan.close()
        assert backend.statistics()[0] == 0, "nothing stays pinned"


def content(part: Part) -> bytes:
    return bytes(read_exactly(*part) if isinstance(part, FileRange) else part)


async def test_neighbours_in_a_file_are_joined(tmp_path: Path) -> None:
    async with running(tmp_path) as (service, _):
        await put(service, 0)
        read = wire.ShareRead(PACK.pack_id, 0, [0, 1000, 1000, 50_000, 51_001, 10])
        plan = service.read(wire.Readv([read]))
        assert [part_size(part) for part in plan.parts] == [51_000, 10]
        plan.close()


@pytest.mark.parametrize("position", [0, 5000, 100_000, -1])
@pytest.mark.parametrize("length", [10_000, 2_000_000])
async def test_a_wrong_share_is_found(tmp_path: Path, length: int, position: int) -> None:
    pack = make_pack(length=length)
    share = bytearray(pack.shares[0])
    share[min(position, len(share) - 1)] ^= 1
    async with running(tmp_path) as (service, backend):
        request = wire.Put(FILE_SYSTEM, 1, 1, [wire.PutShare(pack.pack_id, 0, len(share))])
        with pytest.raises(Corrupt):
            await service.put(ACCOUNT, arrived(request, [share]))
        assert backend.counts() == (0, 0)


# Identity


def test_an_identity_is_made_once(tmp_path: Path) -> None:
    directory = str(tmp_path / "server")
    assert load_identity(OsDisk(), directory) is None
    made = load_or_create_identity(OsDisk(), SystemEntropy(), directory)
    assert load_or_create_identity(OsDisk(), SystemEntropy(), directory) == made
    assert load_identity(OsDisk(), directory) == made
    assert verify(made.server_id, made.sign(b"message"), b"message")
    assert not verify(made.server_id, made.sign(b"message"), b"another")
    assert not verify(b"short", made.sign(b"message"), b"message")
    assert repr(made.signing_key) not in repr(made)
    assert sorted(os.listdir(directory)) == ["server.key"]


@pytest.mark.parametrize("rights", RIGHTS)
def test_accounts_are_found_while_their_file_is_there(tmp_path: Path, rights: str) -> None:
    directory = str(tmp_path / "server")
    account = create_account(OsDisk(), SystemEntropy(), directory, rights)
    path = tmp_path / "server" / "accounts" / account.name.hex()
    assert find_account(OsDisk(), directory, account.name) == account
    assert find_account(OsDisk(), directory, b"b" * 16) is None
    assert find_account(OsDisk(), directory, bytes(16)) is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert repr(account.secret) not in repr(account)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole + b"x", whole.replace(b"version\x01", b"version\x02")):
        path.write_bytes(damaged)
        assert find_account(OsDisk(), directory, account.name) is None


def test_unknown_rights_make_no_account(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="rights must be"):
        create_account(OsDisk(), SystemEntropy(), str(tmp_path / "server"), "everything")
    assert not (tmp_path / "server").exists()


@pytest.mark.parametrize("address", [UnixAddress("/run/a ü/s"), TlsAddress("::1", 9), TlsAddress("host", 1)])
def test_the_address_is_remembered(tmp_path: Path, address: UnixAddress | TlsAddress) -> None:
    assert recorded_address(OsDisk(), str(tmp_path)) is None
    record_address(OsDisk(), str(tmp_path), address)
    assert recorded_address(OsDisk(), str(tmp_path)) == address
