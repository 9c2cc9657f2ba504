"""Shares built anew are byte for byte those that were lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridfs.codec.cipher import SEGMENT_SIZE
from gridfs.codec.mending import mend
from gridfs.codec.pack import SealedPack, seal_pack
from storage.errors import Corrupt
from storage.format.share import verify_share

SIZES = st.one_of(st.integers(1, 2000), st.integers(SEGMENT_SIZE - 20, 6 * SEGMENT_SIZE))


def sealed(k: int, n: int, size: int) -> SealedPack:
    return seal_pack(
        k, n, [bytes(index % 251 for index in range(size))], pack_key=b"k" * 32, convergence_secret=b""
    )


def column(pack: SealedPack, number: int) -> bytes:
    return bytes(pack.shares[number][1]) if number in pack.shares else b""


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_k_columns_give_every_share(data: st.DataObject) -> None:
    k, n = data.draw(st.sampled_from([(1, 1), (1, 3), (2, 3), (3, 10), (4, 6), (6, 6)]), "shape")
    pack = sealed(k, n, data.draw(SIZES, "size"))
    numbers = data.draw(st.permutations(range(n)), "numbers")
    have = {number: column(pack, number) for number in numbers[:k]}
    stored = pack.geometry.stored_numbers()
    found = mend(pack.geometry, pack.pack_id, have, stored)
    assert {number: b"".join(map(bytes, parts)) for number, parts in found.items()} == {
        number: b"".join(map(bytes, parts)) for number, parts in pack.shares.items()
    }
    for number, parts in found.items():
        verify_share(pack.pack_id, number, b"".join(map(bytes, parts)))
    assert list(mend(pack.geometry, pack.pack_id, have, stored[-1:])) == list(stored[-1:])


def test_a_wrong_column_gives_nothing() -> None:
    pack = sealed(2, 4, 300_000)
    have = {1: column(pack, 1), 3: bytes([column(pack, 3)[0] ^ 1]) + column(pack, 3)[1:]}
    with pytest.raises(Corrupt, match="do not give the pack"):
        mend(pack.geometry, pack.pack_id, have, [0])
    with pytest.raises(ValueError, match="1 shares given where 2"):
        mend(pack.geometry, pack.pack_id, {1: column(pack, 1)}, [0])
