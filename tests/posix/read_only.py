"""What the read-only file systems hold."""

from __future__ import annotations

import contextlib
import os

from tests.posix.calls import put
from tests.posix.stage import Stage

DIRECTORY = "read-only"


def prepare(stage: Stage) -> None:
    """The same few names on both sides."""
    for top in (stage.references["ext4"], stage.mount):
        place = top / DIRECTORY
        place.mkdir()
        with contextlib.chdir(place):
            for name in ("file", "present"):
                put(name)
            os.setxattr("file", "user.name", b"value")
            os.mkdir("empty")
            os.mkdir("full")
            put("full/inside")
            os.symlink("full", "link")
            os.symlink("nowhere", "dangling")
            os.mkfifo("fifo")
