"""Packs: layout, sealing in place, convergence, shares that anybody can verify. SPEC.md of gridfs/codec."""

from __future__ import annotations

from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from gridfs.codec.cipher import SEGMENT_SIZE, TAG_SIZE, open_into
from gridfs.codec.erasure import encode_parity
from gridfs.codec.keys import KeyTree
from gridfs.codec.pack import (
    Layout,
    LayoutPlan,
    RunPlace,
    SealedPack,
    convergent_key,
    max_plaintext,
    plan_layout,
    rows_max,
    run_key,
    seal_pack,
    segment_span,
)
from storage.format.share import BLOCK_SIZE, verify_share

SECRET = KeyTree(bytes(range(32))).convergence_secret
PACK_KEY = bytes(32)


def golden(size: int) -> bytes:
    return blake3(b"gridfs golden plaintext").digest(size)


def columns_of(pack: SealedPack) -> dict[int, bytes]:
    return {number: bytes(parts[1]) for number, parts in pack.shares.items()}


def stream_of(pack: SealedPack) -> bytes:
    geometry, columns = pack.geometry, columns_of(pack)
    blocks = []
    for block in range(geometry.total_blocks):
        row, number = divmod(block, geometry.k)
        blocks.append(columns[number][row * BLOCK_SIZE : (row + 1) * BLOCK_SIZE])
    return b"".join(blocks)


def open_run(pack: SealedPack, run: int) -> bytes:
    sealed, stream = pack.runs[run], stream_of(pack)
    place = RunPlace(sealed.offset, sealed.length)
    plain = []
    for ordinal in range(place.segment_count):
        offset, length = segment_span(place, ordinal)
        out = bytearray(length)
        open_into(sealed.key, ordinal, stream[offset : offset + length + TAG_SIZE], memoryview(out))
        plain.append(bytes(out))
    return b"".join(plain)


def spans(layout: Layout) -> list[tuple[int, int]]:
    found = []
    for place in layout.runs:
        for index in range(place.segment_count):
            offset, length = segment_span(place, index)
            found.append((offset, offset + length + TAG_SIZE))
    return sorted(found)


LENGTHS = st.lists(
    st.one_of(
        st.integers(1, 4000),
        st.integers(SEGMENT_SIZE - 40, SEGMENT_SIZE + 40),
        st.integers(1, 3 * SEGMENT_SIZE),
    ),
    min_size=1,
    max_size=40,
)


@given(LENGTHS, st.integers(1, 256))
def test_a_layout_keeps_its_rules(lengths: list[int], k: int) -> None:
    plan = LayoutPlan(k)
    placed = [length for length in lengths if plan.add(length) is not None]
    layout = plan.layout()
    assert [place.length for place in layout.runs] == placed
    assert layout == plan_layout(k, placed)
    found = spans(layout)
    assert all(start // BLOCK_SIZE == (end - 1) // BLOCK_SIZE for start, end in found)
    assert all(before[1] <= after[0] for before, after in pairwise(found))
    assert layout.stream_length == found[-1][1] <= rows_max(k) * k * BLOCK_SIZE
    assert all(p.offset % BLOCK_SIZE == 0 for p in layout.runs if p.length > SEGMENT_SIZE)


def test_small_runs_fill_gaps_first_fit() -> None:
    layout = plan_layout(4, [SEGMENT_SIZE + 100, 1000, SEGMENT_SIZE, 2000, 65000])
    first_gap = BLOCK_SIZE + 100 + TAG_SIZE
    assert [place.offset for place in layout.runs] == [
        0,
        first_gap,
        2 * BLOCK_SIZE,
        first_gap + 1000 + TAG_SIZE,
        3 * BLOCK_SIZE,
    ]


def test_four_thousand_tiny_runs_are_one_pack() -> None:
    layout = plan_layout(4, [1000] * 4096)
    assert layout.stream_length <= 128 * BLOCK_SIZE


@pytest.mark.parametrize("k", [1, 3, 4, 60, 127, 128, 129, 256])
def test_the_largest_run_fits_and_one_byte_more_does_not(k: int) -> None:
    assert plan_layout(k, [max_plaintext(k)]).stream_length == rows_max(k) * k * BLOCK_SIZE
    assert LayoutPlan(k).add(max_plaintext(k) + 1) is None
    with pytest.raises(ValueError, match="one pack"):
        plan_layout(k, [max_plaintext(k), 1])


def test_a_full_plan_refuses_and_still_takes_what_fits() -> None:
    plan = LayoutPlan(128)
    assert plan.add(127 * SEGMENT_SIZE) is not None
    assert plan.add(60000) is not None
    before = plan.layout()
    assert plan.add(SEGMENT_SIZE) is None
    assert plan.layout() == before
    assert plan.add(1000) == RunPlace(127 * BLOCK_SIZE + 60000 + TAG_SIZE, 1000)


def test_nothing_is_no_run_and_no_pack() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        LayoutPlan(1).add(0)
    with pytest.raises(ValueError, match="at least one run"):
        plan_layout(1, [])
    with pytest.raises(IndexError):
        segment_span(RunPlace(0, SEGMENT_SIZE), 1)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 10), (4, 6), (60, 100)]),
    st.lists(st.one_of(st.integers(1, 3000), st.integers(60000, 200000)), min_size=1, max_size=6),
)
def test_every_run_opens_again_and_every_share_verifies(shape: tuple[int, int], lengths: list[int]) -> None:
    k, n = shape
    runs = [golden(length + at)[at:] for at, length in enumerate(lengths)]
    pack = seal_pack(k, n, runs, pack_key=PACK_KEY, convergence_secret=SECRET)
    geometry = pack.geometry
    assert [open_run(pack, number) for number in range(len(runs))] == runs
    assert tuple(pack.shares) == geometry.stored_numbers()
    for number, parts in pack.shares.items():
        share = b"".join(bytes(part) for part in parts)
        assert len(share) == geometry.share_size(number)
        assert verify_share(pack.pack_id, number, share) == geometry
    assert pack.size_bytes == sum(len(part) for parts in pack.shares.values() for part in parts)
    size = geometry.data_length(0)
    data = columns_of(pack)
    padded = [data.get(number, b"").ljust(size, b"\0") for number in range(k)]
    assert encode_parity(k, n, padded) == [data[number] for number in range(k, n)]


def test_what_no_segment_covers_is_zeros() -> None:
    pack = seal_pack(
        2, 3, [b"a" * 10, b"b" * (SEGMENT_SIZE + 1)], pack_key=PACK_KEY, convergence_secret=SECRET
    )
    stream = stream_of(pack)
    assert pack.runs[1].offset == BLOCK_SIZE
    assert not any(stream[10 + TAG_SIZE : BLOCK_SIZE])
    assert any(stream[: 10 + TAG_SIZE])


def test_run_keys_follow_from_what_metadata_keeps() -> None:
    pack = seal_pack(2, 3, [b"a", b"b"], pack_key=PACK_KEY, convergence_secret=SECRET)
    assert [run.key for run in pack.runs] == [run_key(pack.key, pack.convergent, run) for run in (0, 1)]
    assert pack.runs[0].key != pack.runs[1].key
    alone = seal_pack(2, 3, [b"a"], pack_key=None, convergence_secret=SECRET)
    assert alone.convergent
    assert alone.runs[0].key == alone.key == run_key(alone.key, True, 0)
    with pytest.raises(ValueError, match="one run"):
        run_key(alone.key, True, 1)


def test_the_same_content_converges_and_another_secret_parts_it() -> None:
    data = golden(100000)
    first = seal_pack(4, 6, [data], pack_key=None, convergence_secret=SECRET)
    again = seal_pack(4, 6, [bytearray(data)], pack_key=None, convergence_secret=SECRET)
    other = seal_pack(4, 6, [data], pack_key=None, convergence_secret=bytes(32))
    assert first.pack_id == again.pack_id
    assert columns_of(first) == columns_of(again)
    assert other.pack_id != first.pack_id
    assert other.key != first.key


@pytest.mark.parametrize("size", [1, SEGMENT_SIZE, SEGMENT_SIZE + 1, 3 * SEGMENT_SIZE])
def test_the_convergent_key_hashes_version_lengths_and_plaintext(size: int) -> None:
    data = golden(size)
    count = -(-size // SEGMENT_SIZE)
    lengths = [SEGMENT_SIZE] * (count - 1) + [size - SEGMENT_SIZE * (count - 1)]
    told = (1).to_bytes(2, "little") + count.to_bytes(4, "little")
    told += b"".join(length.to_bytes(4, "little") for length in lengths)
    assert convergent_key(SECRET, data) == blake3(told + data, key=SECRET).digest()


def test_only_one_run_may_converge_and_keys_have_their_size() -> None:
    with pytest.raises(ValueError, match="one run"):
        seal_pack(1, 1, [b"a", b"b"], pack_key=None, convergence_secret=SECRET)
    with pytest.raises(ValueError, match="32 bytes"):
        seal_pack(1, 1, [b"a"], pack_key=b"short", convergence_secret=SECRET)


def test_keys_do_not_show() -> None:
    pack = seal_pack(1, 1, [b"a"], pack_key=None, convergence_secret=SECRET)
    assert repr(pack.key) not in repr(pack)


@pytest.mark.parametrize(
    ("k", "n", "lengths", "pack_key", "pack_id"),
    [
        (4, 6, [1000], None, "a769d009e7325eafb7b45eecb1a57f8f7c1b2962ba504ee482126042c57e8af5"),
        (4, 6, [300000], None, "76813a96a5000dcccb2776bdfb3e02df0379a28c2205fb97034bc67ef8a5210b"),
        (
            3,
            10,
            [65536, 70000, 100, 65520, 20],
            PACK_KEY,
            "186e5bfb0444ec330c6bd14b41f0f7f00e73f14bfd2ea89ddb149ab4f0599220",
        ),
        (1, 1, [1], None, "a12c45bce50fd6312c0752a84665552ea06a780d43b25f715dc75f4713ee4d8b"),
        (60, 100, [10], PACK_KEY, "769b56de41aa9478679407ebf5966abf59766c1902252db60b7fafe489b2135d"),
    ],
)
def test_golden_packs(k: int, n: int, lengths: list[int], pack_key: bytes | None, pack_id: str) -> None:
    """SPEC.md, "Golden vectors"."""
    runs = [golden(length) for length in lengths]
    assert seal_pack(k, n, runs, pack_key=pack_key, convergence_secret=SECRET).pack_id.hex() == pack_id
    derived = run_key(PACK_KEY, False, 1).hex()
    assert derived == "81080705cf67d5cea9f0596b4e5280a42ffcc1813c9d8804d7f73d3b019a2f95"
