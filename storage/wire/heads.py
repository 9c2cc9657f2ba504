"""Head log records, claims and successions as messages carry them, both ways. Pure."""

from __future__ import annotations

from storage.format.head import HeadClaim, HeadRecord, HeadStanding, Succession
from storage.wire import messages as wire


def entry_of(record: HeadRecord) -> wire.HeadEntry:
    return wire.HeadEntry(
        record.epoch, record.sequence, record.previous, record.payload, record.signature, record.mount_id
    )


def record_of(entry: wire.HeadEntry) -> HeadRecord:
    return HeadRecord(
        entry.epoch, entry.sequence, entry.previous, entry.payload, entry.signature, entry.mount_id
    )


def message_of(claim: HeadClaim) -> wire.HeadClaim:
    return wire.HeadClaim(
        claim.first_key,
        claim.recovery_public,
        claim.epoch,
        claim.mount_id,
        claim.signature,
        _successor_of(claim.succession),
    )


def claim_of(message: wire.HeadClaim) -> HeadClaim:
    return HeadClaim(
        message.first_key,
        message.recovery_public,
        message.epoch,
        message.mount_id,
        message.signature,
        _succession_of(message.successor),
    )


def said_of(standing: HeadStanding) -> wire.Standing:
    return wire.Standing(
        standing.epoch,
        standing.mount_id,
        _successor_of(standing.succession),
        None if standing.newest is None else entry_of(standing.newest),
    )


def standing_of(said: wire.Standing) -> HeadStanding:
    newest = None if said.newest is None else record_of(said.newest)
    return HeadStanding(said.epoch, said.mount_id, _succession_of(said.successor), newest)


def _successor_of(succession: Succession | None) -> wire.Successor | None:
    if succession is None:
        return None
    return wire.Successor(
        succession.generation, succession.verifying_key, succession.wrapped, succession.signature
    )


def _succession_of(said: wire.Successor | None) -> Succession | None:
    if said is None:
        return None
    return Succession(said.generation, said.verifying_key, said.wrapped, said.signature)
