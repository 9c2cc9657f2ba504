"""AES-256-GCM: segments sealed in place under the key of their run, and small blobs under long-lived keys.

A segment's nonce is its ordinal in its run, so a run's key must never seal other bytes (SPEC.md says how
keys come to be). Blobs carry a nonce of their own, which the caller draws at random.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage.errors import Corrupt
from storage.ports import Buffer

KEY_SIZE = 32
NONCE_SIZE = 12
SEGMENT_SIZE = 65536
"""Bytes of plaintext in a full segment."""
TAG_SIZE = 16
"""Bytes by which a sealed segment is longer than its plaintext."""

_CIPHERS_MAX = 512
"""Expanded keys that are kept (a few hundred bytes each): about the runs one read-ahead window touches."""


@lru_cache(maxsize=_CIPHERS_MAX)
def run_cipher(key: bytes) -> AESGCM:
    """The cipher for a 32-byte key, of a run or of blobs, kept among the last used ones."""
    return AESGCM(key)


def segment_nonce(ordinal: int) -> bytes:
    """The nonce of the segment with this ordinal (0, 1, ...) in its run: 12 bytes, big-endian."""
    return ordinal.to_bytes(NONCE_SIZE, "big")


def seal_into(key: bytes, ordinal: int, plaintext: Buffer, out: memoryview) -> None:
    """Seal one segment into `out`, which is exactly TAG_SIZE bytes longer than `plaintext`.

    `plaintext` and `out` must not overlap. ValueError where a length does not fit.
    """
    _check_lengths(len(plaintext), len(out))
    run_cipher(key).encrypt_into(segment_nonce(ordinal), plaintext, None, out)


def open_into(key: bytes, ordinal: int, sealed: Buffer, out: memoryview) -> None:
    """Verify and decrypt one sealed segment into `out`, which is exactly TAG_SIZE bytes shorter.

    Raises Corrupt if the bytes are not what was sealed under this key and ordinal; `out` then holds
    nothing of use.
    """
    _check_lengths(len(out), len(sealed))
    try:
        run_cipher(key).decrypt_into(segment_nonce(ordinal), sealed, None, out)
    except InvalidTag:
        raise Corrupt(f"segment {ordinal} of a run does not open: its bytes were changed") from None


def seal_blob(key: bytes, nonce: bytes, data: Buffer, aad: Buffer | None = None) -> bytes:
    """Seal a small blob: nonce (12 bytes, never twice under one key), ciphertext and tag in one piece.

    `aad` is authenticated with the data and must be given again to open it.
    """
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes, not {len(nonce)}")
    return nonce + run_cipher(key).encrypt(nonce, data, aad)


def open_blob(key: bytes, blob: Buffer, aad: Buffer | None = None) -> bytes:
    """The data of a blob that `seal_blob` made. Raises Corrupt if blob, key or `aad` are other ones."""
    view = memoryview(blob)
    if len(view) < NONCE_SIZE + TAG_SIZE:
        raise Corrupt("a sealed blob is cut short")
    try:
        return run_cipher(key).decrypt(bytes(view[:NONCE_SIZE]), view[NONCE_SIZE:], aad)
    except InvalidTag:
        raise Corrupt("a sealed blob does not open: it was changed, or another key sealed it") from None


def _check_lengths(plain_bytes: int, sealed_bytes: int) -> None:
    if not 1 <= plain_bytes <= SEGMENT_SIZE:
        raise ValueError(f"a segment has 1 to {SEGMENT_SIZE} bytes, not {plain_bytes}")
    if sealed_bytes != plain_bytes + TAG_SIZE:
        raise ValueError(f"{plain_bytes} bytes of plaintext seal to {TAG_SIZE} more, not to {sealed_bytes}")
