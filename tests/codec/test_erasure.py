"""Erasure coding: any k of n, any range, any mixture of primaries and parity."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridfs.codec.erasure import encode_parity, rebuild


@settings(deadline=None)
@given(st.data())
def test_any_k_shares_rebuild_all_others_in_any_range(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12), "n")
    k = data.draw(st.integers(1, n), "k")
    size = data.draw(st.integers(1, 40), "size")
    columns = [data.draw(st.binary(min_size=size, max_size=size)) for _ in range(k)]
    shares = [*columns, *encode_parity(k, n, columns)]
    start = data.draw(st.integers(0, size - 1), "start")
    end = data.draw(st.integers(start + 1, size), "end")
    numbers = data.draw(st.permutations(range(n)), "numbers")[:k]
    wanted = data.draw(st.permutations(range(n)), "wanted")
    have = {number: memoryview(shares[number])[start:end] for number in numbers}
    rebuilt = rebuild(k, n, wanted, have)
    assert {number: bytes(view) for number, view in rebuilt.items()} == {
        number: bytes(shares[number][start:end]) for number in range(n)
    }


def test_the_largest_grid() -> None:
    columns = [bytes([number, 255 - number]) for number in range(200)]
    parity = encode_parity(200, 256, columns)
    shares = dict(enumerate([*columns, *parity]))
    have = {number: shares[number] for number in range(56, 256)}
    rebuilt = rebuild(200, 256, range(56), have)
    assert [bytes(rebuilt[number]) for number in range(56)] == columns[:56]


def test_no_parity_where_k_is_n() -> None:
    assert encode_parity(3, 3, [b"a", b"b", b"c"]) == []


def test_too_few_shares_and_wrong_numbers_are_errors() -> None:
    with pytest.raises(ValueError, match="1 shares given where 2"):
        rebuild(2, 3, [0], {1: b"x"})
    with pytest.raises(ValueError, match="share numbers"):
        rebuild(2, 3, [3], {1: b"x", 2: b"y"})
    with pytest.raises(ValueError, match="columns given"):
        encode_parity(2, 3, [b"x"])
