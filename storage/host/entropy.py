"""The machine's source of randomness."""

from __future__ import annotations

import os


class SystemEntropy:
    """`Entropy` of the operating system's generator."""

    def token(self, size: int) -> bytes:
        return os.urandom(size)
