"""k-of-n erasure coding, bytewise: byte i of any share is rebuilt from byte i of any k others.

So every function takes any equal-length range of the shares, a whole column or a few bytes. Coding
releases the GIL; whole packs belong into a worker thread, ranges of a read are short enough for the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import zfec

from storage.ports import Buffer

_CODERS_MAX = 8
"""Coding tables kept, each n*k bytes: one file system uses one pair (k, n), old packs perhaps others."""


@lru_cache(maxsize=_CODERS_MAX)
def _encoder(k: int, n: int) -> zfec.Encoder:
    return zfec.Encoder(k, n)


@lru_cache(maxsize=_CODERS_MAX)
def _decoder(k: int, n: int) -> zfec.Decoder:
    return zfec.Decoder(k, n)


def encode_parity(k: int, n: int, columns: Sequence[Buffer]) -> list[bytes]:
    """The n-k parity columns for k primary columns of equal length, in order of their numbers."""
    if len(columns) != k:
        raise ValueError(f"{len(columns)} columns given where k is {k}")
    return _encode(k, n, columns, tuple(range(k, n)))


def rebuild(k: int, n: int, wanted: Sequence[int], have: Mapping[int, Buffer]) -> dict[int, Buffer]:
    """The wanted shares' bytes, from the same byte range of at least k other shares.

    have: share number -> bytes, all of one length; of more than k the primaries and lowest numbers serve.
    Returns wanted number -> bytes of that length (the very buffer where `have` holds it already).
    ValueError where fewer than k are given or a number is out of range.
    """
    if any(not 0 <= number < n for number in (*wanted, *have)):
        raise ValueError(f"share numbers lie between 0 and {n - 1}")
    lost = [number for number in wanted if number not in have]
    result = {number: have[number] for number in wanted if number in have}
    if not lost:
        return result
    numbers = tuple(sorted(have)[:k])
    if len(numbers) < k:
        raise ValueError(f"{len(numbers)} shares given where {k} are needed")
    primaries: Sequence[Buffer] = _decoder(k, n).decode(tuple(have[number] for number in numbers), numbers)
    parity = tuple(number for number in lost if number >= k)
    result.update((number, primaries[number]) for number in lost if number < k)
    result.update(zip(parity, _encode(k, n, primaries, parity), strict=True))
    return result


def _encode(k: int, n: int, columns: Sequence[Buffer], numbers: tuple[int, ...]) -> list[bytes]:
    if not numbers:
        return []  # zfec takes an empty choice for all n
    parity: list[bytes] = _encoder(k, n).encode(tuple(columns), numbers)
    return parity
