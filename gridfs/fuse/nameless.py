"""Inodes that lost their last name while the kernel still knows them.

A working directory, a handle opened with O_PATH, or a name that another process just looked up point to
an inode without an open that we hear of. So what loses its last name is kept like an open file until
the kernel forgets it, which it does at once when nobody points there any more.

Nobody can see then whether such an inode is dropped now or a little later, and thousands come in a row:
several are dropped in one operation, and the last ones when no more have come for a moment.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import trio

from gridfs.files.namespace import Namespace
from gridfs.meta.operations import PARTS_MAX
from storage.errors import StorageError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

MOMENT_S = 0.05


class Nameless:
    """The nameless inodes that wait to be forgotten: a handful, since only those are counted."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._waiting: set[int] = set()
        self._forgotten: list[int] = []
        """What nobody knows any more and is not dropped yet."""
        self._begun = trio.Event()

    def outlived(
        self, parent: int, name: bytes, take: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do what may take a name away, so that its inode outlives that. Raises OSError like a lookup."""
        found = self._namespace.lookup(parent, name)
        if found is None:
            return take(*args, **kwargs)
        ino = found.ino
        self._namespace.opened(ino)
        try:
            return take(*args, **kwargs)
        finally:
            if self._namespace.inode(ino).nlink == 0 and ino not in self._waiting:
                self._waiting.add(ino)
            else:
                self._namespace.closed(ino)

    def forgotten(self, inodes: Iterable[int]) -> None:
        """The kernel knows them no more."""
        if not self._waiting:
            return
        for ino in self._waiting.intersection(inodes):
            self._waiting.remove(ino)
            self._forgotten.append(ino)
            if len(self._forgotten) >= PARTS_MAX:
                self.drop()
        if self._forgotten:
            self._begun.set()

    def drop(self) -> None:
        """Drop what is forgotten. What cannot be dropped now is dropped by the next mount."""
        inodes, self._forgotten = self._forgotten, []
        if not inodes:
            return
        try:
            self._namespace.closed(*inodes)
        except (OSError, StorageError) as error:
            logger.error("inodes %s, without a name, are still kept: %s", inodes, error)

    async def run(self) -> None:
        """Drop, until cancelled, and then once more, what was forgotten a moment ago."""
        try:
            while True:
                await self._begun.wait()
                await trio.sleep(MOMENT_S)
                self._begun = trio.Event()
                self.drop()
        finally:
            self.drop()
