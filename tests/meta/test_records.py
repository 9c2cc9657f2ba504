"""Head log records and journal packs: sealed under what they are, opened as nothing else, golden bytes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gridfs.codec.headlist import HeadList
from gridfs.files.carrying import PIECE_COST
from gridfs.meta.operations import Drop, encode
from gridfs.meta.records import (
    CarriedData,
    HeadBody,
    JournalBody,
    Journaled,
    Settings,
    brief,
    decode_journal,
    encode_journal,
    open_head,
    operations_max,
    seal_head,
)
from storage.errors import Corrupt, Refused
from storage.format.head import PAYLOAD_MAX
from tests.meta.support import SERVERS, pack_record

GOLDEN = Path(__file__).parent / "golden"
KEY = bytes(range(32))
SALT = bytes(range(100, 116))
OPERATIONS = [(8, encode(Drop(2))), (11, encode(Drop(3)))]
DATA = [CarriedData(2, 4096, 10, b"synced")]
SETTINGS = Settings(b"f" * 16, 4, 6, 5, 1, b"r" * 32)
BODY = HeadBody(
    heads=HeadList(tuple(SERVERS[:2]), 2, 1),
    after=7,
    last=11,
    journal=pack_record(5, kind=1),
    gathered=7,
    operations=OPERATIONS,
    begins=True,
    carries=True,
    data=DATA,
    settings=SETTINGS,
    checkpoint=pack_record(6, kind=2),
    checkpointed=3,
    earlier=[Journaled(7, pack_record(4, kind=1))],
    leaving=HeadList(tuple(SERVERS[:1]), 1, 0),
)
JOURNAL = JournalBody([Journaled(7, pack_record(4, kind=1))], 7, 11, OPERATIONS)
PAYLOAD = seal_head(BODY, KEY, SALT, 3, 9)


def test_a_record_opens_where_it_belongs_and_nowhere_else() -> None:
    assert open_head(PAYLOAD, KEY, 3, 9) == BODY
    for key, epoch, sequence in ((bytes(32), 3, 9), (KEY, 4, 9), (KEY, 3, 10)):
        with pytest.raises(Corrupt, match=f"{epoch}.{sequence} does not open"):
            open_head(PAYLOAD, key, epoch, sequence)


def test_any_changed_byte_is_noticed() -> None:
    for position in range(len(PAYLOAD)):
        changed = bytearray(PAYLOAD)
        changed[position] ^= 1
        with pytest.raises((Corrupt, Refused)):
            open_head(bytes(changed), KEY, 3, 9)


@pytest.mark.parametrize("size", [0, 1, 17, 33, len(PAYLOAD) - 1])
def test_a_record_that_is_cut_short_is_corrupt(size: int) -> None:
    with pytest.raises(Corrupt):
        open_head(PAYLOAD[:size], KEY, 3, 9)


def test_an_unknown_version_is_refused_and_named() -> None:
    with pytest.raises(Refused, match="format version 2; this gridfs reads 1"):
        open_head(b"\2\0" + PAYLOAD[2:], KEY, 3, 9)


def test_no_two_records_share_a_key_stream() -> None:
    other = seal_head(BODY, KEY, bytes(16), 3, 9)
    assert other[18:] != PAYLOAD[18:]


@pytest.mark.parametrize(
    "change",
    [
        {"heads": HeadList((b"s" * 32,), 0, 1)},
        {"heads": HeadList((b"s" * 32,), 257, 1)},
        {"last": -1},
        {"heads": HeadList((b"short",), 1, 1)},
        {"data": [CarriedData(0, 0, 1, b"x")]},
        {"data": [CarriedData(1, -1, 1, b"x")]},
        {"checkpointed": -1},
        {"settings": Settings(b"short", 4, 6, 5, 1, b"r" * 32)},
        {"settings": Settings(b"f" * 16, 0, 6, 5, 1, b"r" * 32)},
        {"settings": Settings(b"f" * 16, 4, 257, 5, 1, b"r" * 32)},
        {"settings": Settings(b"f" * 16, 4, 6, 5, 0, b"r" * 32)},
        {"settings": Settings(b"f" * 16, 4, 6, 5, 1, b"r" * 33)},
    ],
)
def test_a_body_out_of_its_limits_is_corrupt(change: dict[str, object]) -> None:
    fields = msgspec.structs.asdict(BODY) | change
    with pytest.raises(Corrupt):
        open_head(seal_head(HeadBody(**fields), KEY, SALT, 3, 9), KEY, 3, 9)


@pytest.mark.parametrize(("servers", "n"), [(1, 1), (6, 6), (159, 100), (256, 256)])
@pytest.mark.parametrize("operation_size", [1, 30, 1000, 12_000])
@pytest.mark.parametrize("data_size", [0, 1, 5000])
@pytest.mark.parametrize("leaving", [0, 6])
def test_the_largest_record_fits_the_head_log(
    servers: int, n: int, operation_size: int, data_size: int, leaving: int
) -> None:
    room = operations_max(servers + leaving, n)
    pieces = room // 2 // (data_size + PIECE_COST) if data_size else 0
    count = (room - pieces * (data_size + PIECE_COST)) // (operation_size + 16)
    assert count
    pack = pack_record(1, k=1, n=n, kind=1, places=[bytes(32)] * n, missing=list(range(n)))
    body = HeadBody(
        heads=HeadList((bytes(32),) * servers, 256, 2**60),
        after=2**60,
        last=2**60,
        journal=pack,
        gathered=2**60,
        operations=[(2**60 + number, bytes(operation_size)) for number in range(count)],
        begins=True,
        carries=True,
        data=[CarriedData(2**60, 2**60, 2**60, bytes(data_size))] * pieces,
        settings=Settings(bytes(16), 256, 256, 256, 256, bytes(32)),
        checkpoint=pack,
        checkpointed=2**60,
        earlier=brief([Journaled(2**60, pack)] * (6 if n < 100 else 1)),
        leaving=HeadList((bytes(32),) * leaving, 256, 2**60) if leaving else None,
    )
    assert len(seal_head(body, KEY, SALT, 2**60, 2**60)) <= PAYLOAD_MAX


def test_a_journal_pack_is_read_back_and_damage_is_told() -> None:
    data = encode_journal(JOURNAL)
    assert decode_journal(memoryview(data)) == JOURNAL
    for damaged in (data[:-1], data + b"\0", b"", b"\x94" + data[1:-1]):
        with pytest.raises(Corrupt, match="journal pack cannot be read"):
            decode_journal(damaged)


@pytest.mark.parametrize(
    ("name", "made"), [("head-payload.hex", PAYLOAD), ("journal-body.hex", encode_journal(JOURNAL))]
)
def test_golden_bytes(name: str, made: bytes) -> None:
    """They never change for version 1. SPEC.md explains head-payload.hex."""
    assert bytes.fromhex((GOLDEN / name).read_text()) == made


def test_the_golden_records_open() -> None:
    payload = bytes.fromhex((GOLDEN / "head-payload.hex").read_text())
    assert open_head(payload, KEY, 3, 9) == BODY
    assert decode_journal(bytes.fromhex((GOLDEN / "journal-body.hex").read_text())) == JOURNAL
