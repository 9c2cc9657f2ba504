"""Sealed segments and blobs: what was changed does not open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.codec.cipher import (
    SEGMENT_SIZE,
    TAG_SIZE,
    open_blob,
    open_into,
    seal_blob,
    seal_into,
    segment_nonce,
)
from storage.errors import Corrupt

KEY = bytes(range(32))


def seal(data: bytes, ordinal: int = 0, key: bytes = KEY) -> bytearray:
    out = bytearray(len(data) + TAG_SIZE)
    seal_into(key, ordinal, data, memoryview(out))
    return out


def unseal(sealed: bytes | bytearray, ordinal: int = 0, key: bytes = KEY) -> bytes:
    out = bytearray(len(sealed) - TAG_SIZE)
    open_into(key, ordinal, sealed, memoryview(out))
    return bytes(out)


@given(st.binary(min_size=1, max_size=300), st.integers(0, 2**40))
def test_a_segment_opens_to_what_was_sealed(data: bytes, ordinal: int) -> None:
    assert unseal(seal(data, ordinal), ordinal) == data


def test_a_full_segment_fits_in_place_of_a_larger_buffer() -> None:
    column = bytearray(3 * (SEGMENT_SIZE + TAG_SIZE))
    place = memoryview(column)[SEGMENT_SIZE + TAG_SIZE : 2 * (SEGMENT_SIZE + TAG_SIZE)]
    data = b"x" * SEGMENT_SIZE
    seal_into(KEY, 7, data, place)
    assert unseal(bytes(place), 7) == data
    assert not any(column[: SEGMENT_SIZE + TAG_SIZE])
    assert not any(column[2 * (SEGMENT_SIZE + TAG_SIZE) :])


@given(st.data())
def test_any_changed_byte_is_corrupt(data: st.DataObject) -> None:
    sealed = seal(b"some plaintext")
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Corrupt):
        unseal(sealed)


def test_another_ordinal_or_key_is_corrupt() -> None:
    sealed = seal(b"some plaintext", 3)
    with pytest.raises(Corrupt):
        unseal(sealed, 4)
    with pytest.raises(Corrupt):
        unseal(sealed, 3, bytes(32))


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="a segment has"):
        seal_into(KEY, 0, b"", memoryview(bytearray(TAG_SIZE)))
    with pytest.raises(ValueError, match="a segment has"):
        seal(bytes(SEGMENT_SIZE + 1))
    with pytest.raises(ValueError, match="seal to"):
        seal_into(KEY, 0, b"abc", memoryview(bytearray(3)))


def test_the_nonce_is_the_ordinal() -> None:
    assert segment_nonce(0x0102) == bytes(10) + b"\x01\x02"


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_a_blob_opens_with_key_and_additional_data_only(data: bytes, aad: bytes) -> None:
    blob = seal_blob(KEY, b"n" * 12, data, aad)
    assert open_blob(KEY, blob, aad) == data
    for key, other, more in ((bytes(32), blob, aad), (KEY, blob[:-1], aad), (KEY, blob, aad + b"!")):
        with pytest.raises(Corrupt):
            open_blob(key, other, more)


def test_a_blob_cut_to_nothing_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="cut short"):
        open_blob(KEY, b"short")
    with pytest.raises(ValueError, match="nonce"):
        seal_blob(KEY, b"short", b"data")
