"""Gathering: older operations move from head records into journal packs."""

from __future__ import annotations

from functools import partial

from gridfs.codec.pack import max_plaintext, seal_pack
from gridfs.files.headstate import HeadState, load_journals, save_head_state, save_journals
from gridfs.files.log import OperationLog
from gridfs.files.writer import pack_record
from gridfs.grid.uploader import Uploader
from gridfs.meta.operations import KIND_JOURNAL, Commit, PackRecord
from gridfs.meta.records import JournalBody, encode_journal
from storage.ports import Machine

JOURNAL_BYTES_MAX = 6 << 20
"""Encoded operations in one journal pack."""


class Gatherer:
    """Makes journal packs, and keeps with the head log's state which there are."""

    def __init__(
        self, machine: Machine, log: OperationLog, uploader: Uploader, state: HeadState, k: int, n: int
    ) -> None:
        self._machine = machine
        self._log = log
        self._uploader = uploader
        self._state = state
        self._k, self._n = k, n
        self.journals = load_journals(log.metadata)
        """All journal packs, oldest first."""
        self._is_saved = True

    def adopt(self, journals: list[PackRecord], gathered: int) -> None:
        """The grid has these journal packs, with all operations up to `gathered`."""
        self.journals = journals
        self._is_saved = False
        self._state.gathered = gathered

    def operations(self, after: int, limit: int, size: int) -> list[tuple[int, bytes]]:
        """Operations behind `after`, up to `limit`: about `size` bytes of them, one at least."""
        return [row for row in self._log.metadata.outbox(after, size) if row[0] <= limit]

    async def gather(self, limit: int) -> None:
        """Store everything behind the newest journal pack, up to `limit`, in journal packs.

        Raises what storing a pack raises; what was stored by then counts.
        """
        most = min(JOURNAL_BYTES_MAX, max_plaintext(self._k) // 2)
        while self._state.gathered < limit:
            operations = self.operations(self._state.gathered, limit, most)
            if not operations:
                self._state.gathered = limit
                return
            last = operations[-1][0]
            body = encode_journal(JournalBody(self.journals, self._state.gathered, last, operations))
            key = self._machine.entropy.token(32)
            sealed = await self._machine.offload.run(
                partial(seal_pack, self._k, self._n, [body], pack_key=key, convergence_secret=b"")
            )
            receipt = await self._uploader.store(sealed, self._state.stamp)
            pack = pack_record(sealed, receipt, KIND_JOURNAL)
            self._log.record(Commit(packs=[pack], extents=[]))
            self.adopt([*self.journals, pack], last)

    def save(self) -> None:
        """State and journal packs, in one transaction."""
        save_head_state(self._log.metadata, self._state)
        if not self._is_saved:
            save_journals(self._log.metadata, self.journals)
            self._is_saved = True
