"""Where the mount answers otherwise than the reference, and why that cannot be helped from a FUSE server.

Each case named here is run and must differ: the table cannot outlive its reasons.
"""

from __future__ import annotations

DIFFERENT: dict[str, str] = {}
