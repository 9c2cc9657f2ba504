"""The C library's heap, which keeps more than is used where each thread has a heap of its own."""

from __future__ import annotations

import contextlib
import ctypes

M_ARENA_MAX = -8


def have_one_heap() -> None:
    """One heap for all threads: buffers are filled in one and let go in another. Called when everything is
    imported, and before there are threads. No other C library than GNU's is told anything."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 1)
        libc.malloc_trim(0)
