"""The C library's heap, which keeps more than is used where each thread has a heap of its own. No other
library than GNU's is told anything."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8


def have_one_heap() -> None:
    """One heap for all threads: buffers are filled in one and let go in another. Called when everything is
    imported, and before there are threads."""
    _tell({M_ARENA_MAX: 1})
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_on_heap(bytes_max: int, kept_bytes: int) -> None:
    """Have buffers of up to `bytes_max` on the heap, and keep so much free memory at its top: giving it back
    and taking it again costs page faults. Called early."""
    _tell({M_MMAP_THRESHOLD: bytes_max, M_TRIM_THRESHOLD: kept_bytes})


def _tell(options: Mapping[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        for option, value in options.items():
            ctypes.CDLL(None).mallopt(option, value)
