"""The spool's bytes: a golden slot, and the worked bytes of SPEC.md."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gridfs.files.spool import Spool
from gridfs.files.spoolformat import PAGE, RECORD, SLOT_HEADER
from gridfs.meta.operations import Drop, Write, decode, encode
from storage.system import system_machine

GOLDEN = Path(__file__).parent / "golden" / "spool-slot.hex"
KEY = bytes(range(32))
SALT = bytes(range(100, 116))
DATA = bytes(range(200))
PHASE = 65_536 - 100
"""The data's chunks: 100 bytes, then 100 more behind the boundary."""


class FixedEntropy:
    def token(self, size: int) -> bytes:
        assert size == len(SALT)
        return SALT


def spool_in(directory: Path) -> Spool:
    machine = dataclasses.replace(system_machine(), entropy=FixedEntropy())
    return Spool(machine, str(directory), KEY, 32 << 20)


def test_the_golden_slot_is_what_is_written(tmp_path: Path) -> None:
    """These bytes never change for version 1."""
    spool = spool_in(tmp_path)
    assert list(spool.open(41)) == []
    spool.append(42, encode(Write(2, PHASE, len(DATA), 5)), DATA, PHASE)
    spool.append(43, encode(Drop(3)))
    spool.close()
    written = (tmp_path / "0000.spool").read_bytes()
    assert written == bytes.fromhex(GOLDEN.read_text()).ljust(PAGE, b"\0")


def test_the_golden_slot_is_read(tmp_path: Path) -> None:
    (tmp_path / "0000.spool").write_bytes(bytes.fromhex(GOLDEN.read_text()))
    spool = spool_in(tmp_path)
    first, second = spool.open(41)
    assert (first.number, decode(first.operation), first.data_length) == (42, Write(2, PHASE, 200, 5), 200)
    assert (second.number, decode(second.operation), second.source) == (43, Drop(3), None)
    out = bytearray(len(DATA))
    assert first.source is not None
    spool.read_into(first.source, 0, memoryview(out))
    assert out == DATA
    spool.close()


def test_the_fields_lie_where_the_spec_says() -> None:
    slot = bytes.fromhex(GOLDEN.read_text())
    assert SLOT_HEADER.unpack_from(slot, 0) == (b"GRIDSPL\0", 1, 1, SALT, 0, 42)
    assert RECORD.unpack_from(slot, 64) == (b"OPRC", 9, 200, PHASE, 42, 1)
    second = 64 + 32 + (9 + 16) + (100 + 16) + (100 + 16)
    assert second == 353
    assert RECORD.unpack_from(slot, second) == (b"OPRC", 3, 0, 0, 43, 1)
    assert len(slot) == second + 32 + 3 + 16
