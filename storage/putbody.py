"""The body of a put while it arrives: memory for its shares, hashed piece by piece as they fill.

Hashing what was just received costs the loop 40 us a frame while it is still in the processor's cache; a
worker thread for the whole share costs more than that for its two hand-overs alone. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

from storage.backends.plan import SMALL_SHARE_MAX
from storage.errors import Corrupt, StorageError
from storage.format.share import ShareVerifier
from storage.pages import PagePool
from storage.ports import Buffer
from storage.wire.messages import Put


class PutBody:
    """Shares of one put, in the order of the request."""

    def __init__(self, request: Put, pages: PagePool) -> None:
        """Takes the memory: the caller has bounded it."""
        self.request = request
        self.missing = sum(share.size for share in request.shares)
        """Bytes still to come."""
        self._shares: list[Buffer] = [
            # Larger shares get files of their own, which wants pages.
            pages.take(share.size) if share.size > SMALL_SHARE_MAX else bytearray(share.size)
            for share in request.shares
        ]
        self._views = [memoryview(share) for share in self._shares]
        self._index = 0
        self._verifier: ShareVerifier | None = None
        self._error: StorageError | None = None

    def take(self, length: int) -> list[memoryview]:
        """Where the next `length` bytes go, at most what is missing."""
        taken: list[memoryview] = []
        index = self._index
        while length:
            view = self._views[index][:length]
            taken.append(view)
            length -= len(view)
            index += 1
        return taken

    def arrived(self, pieces: Sequence[memoryview]) -> None:
        """What `take` gave has been filled."""
        for piece in pieces:
            self.missing -= len(piece)
            left = self._views[self._index] = self._views[self._index][len(piece) :]
            if self._error is None:
                try:
                    self._verify(piece, last=not left)
                except StorageError as error:
                    self._error = error
            if not left:
                self._index += 1

    def verified(self) -> Sequence[Buffer]:
        """The shares. Raises Corrupt (or Refused: unknown version) where one of them is wrong."""
        if self._error is not None:
            raise self._error
        if self.missing:
            raise Corrupt(f"{self.missing} bytes of the shares are missing")
        return self._shares

    def _verify(self, piece: memoryview, *, last: bool) -> None:
        if self._verifier is None:
            share = self.request.shares[self._index]
            self._verifier = ShareVerifier(share.pack_id, share.number, share.size)
        self._verifier.feed(piece)
        if last:
            self._verifier.finish()
            self._verifier = None
