"""Gathering: older operations move from head records into journal packs."""

from __future__ import annotations

from gridfs.codec.pack import max_plaintext
from gridfs.files.headstate import Base, HeadState, load_base, save_base, save_head_state
from gridfs.files.log import OperationLog
from gridfs.files.runs import store_runs
from gridfs.grid.uploader import Uploader
from gridfs.meta.operations import KIND_JOURNAL, Commit, PackRecord
from gridfs.meta.records import JournalBody, encode_journal
from storage.ports import Machine

JOURNAL_BYTES_MAX = 6 << 20
"""Encoded operations in one journal pack."""


class Gatherer:
    """Makes journal packs, and keeps with the head log's state what records rest on."""

    def __init__(
        self, machine: Machine, log: OperationLog, uploader: Uploader, state: HeadState, k: int, n: int
    ) -> None:
        self._machine = machine
        self._log = log
        self._uploader = uploader
        self._state = state
        self._k, self._n = k, n
        self.base = load_base(log.metadata)
        self._is_saved = True

    def adopt(self, base: Base, gathered: int) -> None:
        """The grid has these packs, with all operations up to `gathered`."""
        self.base = base
        self._is_saved = False
        self._state.gathered = gathered

    def rebase(self, checkpoint: PackRecord, number: int) -> None:
        """Records rest on a newer checkpoint, which knows all operations up to `number`."""
        self.adopt(self.base.with_checkpoint(checkpoint, number), max(self._state.gathered, number))

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
            body = JournalBody(list(self.base.journals), self._state.gathered, last, operations)
            pack, _ = await store_runs(
                self._machine,
                self._uploader,
                [encode_journal(body)],
                (self._k, self._n),
                self._state.stamp,
                KIND_JOURNAL,
            )
            self._log.record(Commit(packs=[pack], extents=[]))
            self.adopt(self.base.with_journal(last, pack), last)

    def save(self) -> None:
        """State and base, in one transaction."""
        save_head_state(self._log.metadata, self._state)
        if not self._is_saved:
            save_base(self._log.metadata, self.base)
            self._is_saved = True

    def save_late(self) -> None:
        """The same, where only the newest record is another, when the transaction ends: not at every fsync.

        Should the process die before, the next one finds the record, as if it had been stored unanswered.
        """
        if self._is_saved:
            self._log.before_commit(self.save)
        else:
            self.save()
