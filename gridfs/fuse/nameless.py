"""Inodes that lost their last name while the kernel still knows them.

A working directory, a handle opened with O_PATH, or a name that another process just looked up point to
an inode without an open that we hear of. So what loses its last name is kept like an open file until
the kernel forgets it, which it does at once when nobody points there any more.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

from gridfs.files.namespace import Namespace
from storage.errors import StorageError

logger = logging.getLogger(__name__)


class Nameless:
    """The nameless inodes that wait to be forgotten: a handful, since only those are counted."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._waiting: set[int] = set()

    @contextlib.contextmanager
    def kept(self, parent: int, name: bytes) -> Iterator[None]:
        """Around what may take a name away: its inode outlives that. Raises OSError like a lookup."""
        found = self._namespace.lookup(parent, name)
        if found is None:
            yield
            return
        self._namespace.opened(found.ino)
        try:
            yield
        finally:
            if self._namespace.inode(found.ino).nlink == 0 and found.ino not in self._waiting:
                self._waiting.add(found.ino)
            else:
                self._namespace.closed(found.ino)

    def forgotten(self, inodes: Iterable[int]) -> None:
        """The kernel knows them no more. What cannot be dropped now is dropped by the next mount."""
        if not self._waiting:
            return
        for ino in self._waiting.intersection(inodes):
            self._waiting.remove(ino)
            try:
                self._namespace.closed(ino)
            except (OSError, StorageError) as error:
                logger.error("inode %d, without a name, is still kept: %s", ino, error)
