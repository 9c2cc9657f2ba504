"""A lock on a directory, so that two processes never serve or mount one; the kernel frees it at death."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from storage.errors import Conflict

NAME = "lock"


@contextmanager
def lock_directory(directory: str) -> Iterator[None]:
    """Hold the directory's lock; the directory is made (mode 0700) where missing.

    Raises Conflict, naming the holder's process id, where another process holds it; OSError.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    descriptor = os.open(f"{directory}/{NAME}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise Conflict(f"{directory} is in use by process {holder or 'unknown'}") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
