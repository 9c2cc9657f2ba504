"""The share format: SPEC.md's clauses, any geometry, any corruption, golden bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import Corrupt, Refused, StorageError
from storage.format.share import (
    BLOCK_SIZE,
    EMPTY_ROOT,
    HASH_SIZE,
    BuiltPack,
    Geometry,
    ShareHeader,
    ShareVerifier,
    block_ok,
    build_shares,
    locate,
    max_full_rows,
    verify_share,
    verify_table,
)

GOLDEN = Path(__file__).parent / "golden"


@st.composite
def geometries(draw: st.DrawFn, block_max: int = 40) -> Geometry:
    n = draw(st.integers(1, 256))
    k = draw(st.integers(1, n))
    block = draw(st.integers(1, block_max))
    limit = (max_full_rows(k) + 1) * k * block - 1
    return Geometry(k, n, draw(st.integers(1, limit)), block)


def pattern(length: int, seed: int) -> bytes:
    return blake3(seed.to_bytes(8, "big")).digest(length) if length else b""


def columns_of(geometry: Geometry) -> list[bytes]:
    return [pattern(geometry.data_length(number), number) for number in range(geometry.n)]


def shares_of(geometry: Geometry) -> tuple[BuiltPack, list[bytes]]:
    columns = columns_of(geometry)
    built = build_shares(geometry, columns)
    return built, [h + c + t for h, c, t in zip(built.headers, columns, built.tables, strict=True)]


@given(geometries())
def test_primaries_hold_the_stream_and_parity_is_as_long_as_the_first(geometry: Geometry) -> None:
    primaries = [geometry.data_length(number) for number in range(geometry.k)]
    assert sum(primaries) == geometry.stream_length
    assert primaries == sorted(primaries, reverse=True)
    assert {geometry.data_length(number) for number in range(geometry.k, geometry.n)} <= {primaries[0]}
    assert geometry.block_count(0) == geometry.rows
    assert geometry.stored_numbers() == tuple(n for n in range(geometry.n) if geometry.data_length(n))


@given(geometries(), st.data())
def test_lengths_of_blocks_sum_up_to_the_share(geometry: Geometry, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, geometry.n - 1))
    count = geometry.block_count(number)
    lengths = [geometry.block_length(number, row) for row in range(count)]
    assert sum(lengths) == geometry.data_length(number)
    assert all(length == geometry.block_size for length in lengths[:-1])
    assert geometry.share_size(number) == geometry.data_offset + sum(lengths) + HASH_SIZE * count


@given(geometries(), st.data())
def test_locate_finds_the_byte_that_dealing_out_put_there(geometry: Geometry, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, geometry.stream_length - 1))
    room = min(geometry.block_size - offset % geometry.block_size, geometry.stream_length - offset)
    length = data.draw(st.integers(1, room))
    number, place = locate(geometry, offset, length)
    row, inside = divmod(place - geometry.data_offset, geometry.block_size)
    assert (row * geometry.k + number) * geometry.block_size + inside == offset
    assert inside + length <= geometry.block_length(number, row)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (5, 6), (99, 2), (100, 1)])
def test_locate_refuses_what_is_not_inside_one_block(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="not inside one block"):
        locate(Geometry(3, 5, 100, 10), offset, length)


@pytest.mark.parametrize(
    ("k", "n", "length", "block"),
    [
        (0, 1, 1, 10),
        (2, 1, 1, 10),
        (1, 257, 1, 10),
        (1, 1, 0, 10),
        (1, 1, 1, 0),
        (1, 1, 1, BLOCK_SIZE + 1),
        (1, 1, 129 * 10, 10),
        (60, 100, 3 * 600, 10),
        (256, 256, 5120, 10),
    ],
)
def test_geometry_has_limits(k: int, n: int, length: int, block: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- which limit is said in several ways
        Geometry(k, n, length, block)


@given(geometries(block_max=9), st.data())
def test_every_stored_share_verifies_from_the_pack_id_alone(geometry: Geometry, data: st.DataObject) -> None:
    built, shares = shares_of(geometry)
    number = data.draw(st.sampled_from(geometry.stored_numbers()))
    share = shares[number]
    assert len(share) == geometry.share_size(number)
    assert verify_share(built.pack_id, number, share) == geometry
    verifier = ShareVerifier(built.pack_id, number, len(share))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(share)), max_size=6)))
    for start, end in zip([0, *cuts], [*cuts, len(share)], strict=True):
        verifier.feed(memoryview(share)[start:end])
    assert verifier.finish() == geometry


@given(geometries(block_max=9), st.data())
def test_a_changed_byte_anywhere_is_noticed(geometry: Geometry, data: st.DataObject) -> None:
    built, shares = shares_of(geometry)
    number = data.draw(st.sampled_from(geometry.stored_numbers()))
    damaged = bytearray(shares[number])
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    # Bytes 8 and 9 are the format version: another version is refused before anything is hashed.
    with pytest.raises(Refused if at in (8, 9) else Corrupt):
        verify_share(built.pack_id, number, damaged)


@given(geometries(block_max=9), st.data())
def test_a_share_of_another_length_is_noticed(geometry: Geometry, data: st.DataObject) -> None:
    built, shares = shares_of(geometry)
    number = data.draw(st.sampled_from(geometry.stored_numbers()))
    cut = data.draw(st.integers(0, len(shares[number]) - 1))
    for wrong in (shares[number][:cut], shares[number] + b"\0"):
        with pytest.raises(Corrupt):
            verify_share(built.pack_id, number, wrong)
    verifier = ShareVerifier(built.pack_id, number, len(shares[number]))
    verifier.feed(shares[number][:cut])
    with pytest.raises(Corrupt, match="ends after"):
        verifier.finish()


@given(st.binary(max_size=400))
def test_decoding_any_bytes_gives_a_header_or_an_error(data: bytes) -> None:
    for candidate in (data, b"gridfsSH\0\1" + data):
        try:
            header = ShareHeader.decode(candidate)
        except StorageError:
            continue
        assert header.encode() == candidate[: header.geometry.data_offset]


def test_every_single_byte_of_a_share_counts() -> None:
    """No byte of header, path, blocks or table is without meaning, reserved ones included."""
    geometry = Geometry(2, 4, 75, 10)
    built, shares = shares_of(geometry)
    for at in range(len(shares[1])):
        damaged = bytearray(shares[1])
        damaged[at] ^= 1
        with pytest.raises(Refused if at in (8, 9) else Corrupt):
            verify_share(built.pack_id, 1, damaged)


def test_the_verifier_speaks_up_before_the_table_arrives() -> None:
    geometry = Geometry(2, 3, 60, 10)
    built, shares = shares_of(geometry)
    damaged = bytearray(shares[1][: geometry.table_offset(1)])
    damaged[-1] ^= 1
    verifier = ShareVerifier(built.pack_id, 1, len(shares[1]))
    with pytest.raises(Corrupt, match="do not fit its root"):
        verifier.feed(damaged)


def test_the_verifier_speaks_up_at_the_header_of_another_share_or_pack() -> None:
    geometry = Geometry(2, 4, 60, 10)
    built, shares = shares_of(geometry)
    other = build_shares(geometry, [b"x" * 60] * 4)
    header = built.headers[1]
    with pytest.raises(Corrupt, match="not 2"):
        ShareVerifier(built.pack_id, 2, len(shares[1])).feed(header)
    with pytest.raises(Corrupt, match="does not belong"):
        ShareVerifier(other.pack_id, 1, len(shares[1])).feed(header)


def test_single_blocks_are_checked_by_a_verified_table() -> None:
    geometry = Geometry(2, 4, 75, 10)
    built, _ = shares_of(geometry)
    columns = columns_of(geometry)
    header = ShareHeader.decode(built.headers[0])
    verify_table(built.pack_id, header, built.tables[0])
    assert [block_ok(built.tables[0], row, columns[0][row * 10 :][:10]) for row in range(4)] == [True] * 4
    assert not block_ok(built.tables[0], 1, columns[0][:10])
    for wrong in (built.tables[1], built.tables[0][:-32], built.tables[0] + bytes(32)):
        with pytest.raises(Corrupt):
            verify_table(built.pack_id, header, wrong)


def test_an_empty_share_has_the_constant_root_and_is_never_stored() -> None:
    geometry = Geometry(4, 6, 25, 10)
    built, shares = shares_of(geometry)
    assert geometry.stored_numbers() == (0, 1, 2, 4, 5)
    assert ShareHeader.decode(built.headers[3]).root == EMPTY_ROOT
    assert built.tables[3] == b""
    with pytest.raises(Corrupt, match="never stored"):
        verify_share(built.pack_id, 3, shares[3])


def test_columns_may_be_longer_than_their_data_but_not_shorter() -> None:
    geometry = Geometry(2, 3, 25, 10)
    built, _ = shares_of(geometry)
    padded = [bytearray(column.ljust(20, b"\0")) for column in columns_of(geometry)]
    assert build_shares(geometry, padded) == built
    with pytest.raises(ValueError, match="column 0"):
        build_shares(geometry, [b"", *padded[1:]])
    with pytest.raises(ValueError, match="2 columns"):
        build_shares(geometry, padded[:2])


def test_the_pack_id_binds_k_n_block_size_and_length() -> None:
    block = b"a" * 20
    ids = [
        build_shares(geometry, [block] * geometry.n).pack_id
        for geometry in (
            Geometry(1, 3, 20, 20),
            Geometry(1, 4, 20, 20),
            Geometry(1, 3, 20, 10),
            Geometry(2, 3, 20, 10),
            Geometry(1, 3, 19, 20),
        )
    ]
    assert len(dict.fromkeys(ids)) == len(ids)


def test_unknown_versions_are_refused_in_words() -> None:
    built, shares = shares_of(Geometry(1, 2, 5, 10))
    newer = shares[0][:8] + b"\0\2" + shares[0][10:]
    with pytest.raises(Refused, match="version 2 is unknown"):
        verify_share(built.pack_id, 0, newer)


@pytest.mark.parametrize("name", ["share-k1n1", "share-k3n5-0", "share-k3n5-2", "share-k3n5-4"])
def test_golden_shares(name: str) -> None:
    """The bytes in golden/ are the format: they never change for version 1."""
    geometry = Geometry(1, 1, 7) if "k1n1" in name else Geometry(3, 5, 100, 16)
    number = 0 if "k1n1" in name else int(name[-1])
    built, shares = shares_of(geometry)
    lines = (GOLDEN / f"{name}.hex").read_text().split()
    assert bytes.fromhex(lines[0]) == built.pack_id
    assert bytes.fromhex("".join(lines[1:])) == shares[number]
