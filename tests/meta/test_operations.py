"""SPEC.md "Operations": the encoding, its golden bytes and what is refused."""

import msgspec
import pytest

from gridfs.meta.operations import (
    Attach,
    Clone,
    Commit,
    Detach,
    Drop,
    ExtentRecord,
    Link,
    Make,
    Operation,
    PackRecord,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Together,
    Unlink,
    Write,
    decode,
    encode,
)
from storage.errors import Corrupt

# What SPEC.md shows byte by byte. A change of one of these is a new format.
GOLDEN: list[tuple[Operation, str]] = [
    (Make(2, 1, b"a", 0o100644, 0, 0, 0, b"", -1), "9a010201c40161cd81a4000000c400ff"),
    (Link(2, 1, b"b", 5), "95020201c4016205"),
    (Unlink(1, b"a", 2, 5), "950301c401610205"),
    (Drop(2), "920402"),
    (Rename(1, b"a", 1, b"b", 2, 0, False, 5), "990501c4016101c401620200c205"),
    (SetAttributes(2, None, None, None, None, None, 0, 7), "990602c0c0c0c0c00007"),
    (Write(2, 4096, 512, 5), "950702cd1000cd020005"),
    (Write(2, 4096, 512, None), "950702cd1000cd0200c0"),
    (SetXattr(2, b"user.x", b"v", 5), "950802c406757365722e78c4017605"),
    (RemoveXattr(2, b"user.x", 5), "940902c406757365722e7805"),
    (
        Together(
            [Make(2, 1, b"a", 0o100644, 0, 0, 0, b"", -1), RemoveXattr(2, b"user.x", 5)],
        ),
        "920c929a010201c40161cd81a4000000c400ff940902c406757365722e7805",
    ),
    (Together([Drop(2), Drop(3)]), "920c92920402920403"),
    (
        Commit(
            [PackRecord(b"\1" * 32, 1, 2, 9, b"\2" * 32, True, [b"\3" * 32, None], [1], 0)],
            [ExtentRecord(2, 0, 5, 0, 0, 0, 5, 0, 3)],
        ),
        f"930a9199c420{'01' * 32}010209c420{'02' * 32}c392c420{'03' * 32}c091010091990200050000000500" + "03",
    ),
    (Clone(3, 2, 1, b"b", False, 5), "970d030201c40162c205"),
    (Clone(4, 1, 0, b"", True, 5), "970d040100c400c305"),
    (Attach(4, 1, b"c", 6), "950e0401c4016306"),
    (Detach(1, b"c", 4, 7), "950f01c401630407"),
]


@pytest.mark.parametrize(("operation", "golden"), GOLDEN, ids=lambda item: type(item).__name__)
def test_golden_bytes(operation: Operation, golden: str) -> None:
    assert encode(operation).hex() == golden
    assert decode(bytes.fromhex(golden)) == operation
    assert decode(memoryview(bytes.fromhex(golden))) == operation


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"\x91\x63",
        encode(Drop(2)) + b"\0",
        encode(Make(2, 1, b"name", 0o100644, 0, 0, 0, b"", 0))[:-1],
        msgspec.msgpack.encode([4, 2, 3]),
        msgspec.msgpack.encode([4, 0]),
        msgspec.msgpack.encode([4, 1 << 63]),
        msgspec.msgpack.encode([4, "2"]),
        msgspec.msgpack.encode([12, [[]]]),
        msgspec.msgpack.encode([12, [[3, 1, b"a", 2, 5]]]),
        msgspec.msgpack.encode([12, [[9, 2, b"user.x", 5]] * 17]),
        msgspec.msgpack.encode([7, 2, -1, 5, 0]),
        msgspec.msgpack.encode([2, 2, 1, b"", 0]),
        msgspec.msgpack.encode([13, 3, 0, 1, b"b", False, 0]),
        msgspec.msgpack.encode([13, 3, 2, 1, b"b", 1, 0]),
        msgspec.msgpack.encode([13, 3, 2, 1, b"n" * 256, False, 0]),
        msgspec.msgpack.encode([14, 3, 0, b"b", 0]),
        msgspec.msgpack.encode([15, 1, b"", 3, 0]),
        msgspec.msgpack.encode([2, 2, 1, b"n" * 256, 0]),
        msgspec.msgpack.encode([10, [[b"short", 1, 1, 1, b"k" * 32, False, [None], [], 0]], []]),
    ],
)
def test_what_is_not_an_operation_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match="cannot be read"):
        decode(data)


def test_every_cut_of_a_record_is_corrupt() -> None:
    for operation, golden in GOLDEN:
        data = bytes.fromhex(golden)
        for end in range(len(data)):
            with pytest.raises(Corrupt):
                decode(data[:end])
        assert decode(data) == operation


def test_a_printed_record_does_not_show_its_key() -> None:
    record = PackRecord(b"\1" * 32, 1, 1, 9, b"secretsecretsecretsecretsecretse", False, [None], [])
    assert b"secret".hex() not in repr(record)
    assert "secret" not in repr(Commit([record], []))
