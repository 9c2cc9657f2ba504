"""Replay at the start: the spool's records go into the metadata and the overlays, oldest first.

The metadata may know operations that the spool lacks: after the loss of power, when the disk kept the
one and not the other, and where this machine was rolled forward from the grid. Records before such a gap
must not be believed without what the gap held, for a truncate or commit in it may have retired their
data. The outbox still has every operation since it was last emptied, so it fills the gap; where it
cannot, the data before the gap is given up: none of it was synced, or it is in packs.
"""

from __future__ import annotations

import logging

from gridfs.files.dirty import DirtyData
from gridfs.files.log import OperationLog
from gridfs.meta.operations import decode

logger = logging.getLogger(__name__)

_STEP_BYTES = 1 << 20


def replay(log: OperationLog, dirty: DirtyData, emptied: int) -> None:
    """Bring metadata and overlays to where the last process left them, as far as disk and database tell.

    `emptied`: number up to which the outbox was emptied. Raises what the spool's and the
    metadata's methods raise.
    """
    redo(log, dirty, emptied)
    if emptied <= log.spool.last:
        _keep_rest(log)
    log.start()


def _keep_rest(log: OperationLog) -> None:
    """Put operations into the spool again that it lost with the power and the metadata have: they leave the
    outbox some time, and then nothing would tell what became of the data before them."""
    while log.keeps_adopted and log.spool.last < log.number:
        rows = log.metadata.outbox(log.spool.last, _STEP_BYTES)
        if not rows or not all(log.keep(number, encoded) for number, encoded in rows):
            break


def redo(log: OperationLog, dirty: DirtyData, emptied: int) -> None:
    """The same, with the metadata's transaction left open: what is not committed then is as if not done."""
    applied = log.metadata.applied
    reached = 0
    for record in log.spool.open(applied):
        if reached and record.number > reached + 1:
            _fill(log, dirty, reached, record.number - 1, emptied)
        operation = log.replayed(record)
        dirty.replay(record.number, operation, record.source, record.data_length)
        reached = record.number
    if reached and reached < applied:
        _fill(log, dirty, reached, applied, emptied)


def _fill(log: OperationLog, dirty: DirtyData, reached: int, last: int, emptied: int) -> None:
    """Redo what the operations behind `reached`, up to `last`, did to the overlays."""
    if emptied > reached:
        if dirty.bytes:
            logger.error("%d bytes in the spool, not synced, were lost with the power", dirty.bytes)
        dirty.forget()
        return
    logger.warning("the spool lacks operations %d to %d, which the metadata has", reached + 1, last)
    while reached < last:
        rows = log.metadata.outbox(reached, _STEP_BYTES)
        for number, encoded in rows:
            if number <= last:
                dirty.replay(number, decode(encoded), None, 0)
        reached = rows[-1][0] if rows else last
