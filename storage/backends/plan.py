"""Operations on a disk backend, and what a batch of them does. Pure: the disk backend acts on the plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from storage.appendfile import ROOM_BATCH_MAX
from storage.backends.changes import BatchView, Change, ShareState
from storage.backends.port import IncomingShare, ShareKey
from storage.backends.requests import share_length
from storage.backends.sharefiles import WrittenFile
from storage.errors import StorageError
from storage.format.entry import HEAD_MAX
from storage.groupcommit import Ticket
from storage.leases import Lease
from storage.ports import Buffer

SMALL_SHARE_MAX = 65536
"""Bytes up to which a share goes into a volume."""


class Vanished(StorageError):
    """A large share that was here when its put began was released before the commit: write it after all."""


@dataclass(slots=True)
class Store:
    shares: Sequence[IncomingShare]
    written: dict[int, WrittenFile] = field(default_factory=dict)
    """By position in `shares`: those that were written to files of their own."""


@dataclass(slots=True)
class Assert:
    keys: Sequence[ShareKey]
    lease: Lease


@dataclass(slots=True)
class Release:
    keys: Sequence[ShareKey]
    lease: Lease


Operation = Store | Assert | Release


@dataclass(slots=True)
class Plan:
    """What one batch does."""

    changes: list[tuple[Change, Sequence[Buffer]]] = field(default_factory=list)
    written: list[WrittenFile] = field(default_factory=list)
    answers: list[tuple[Ticket[Operation, list[bool]], list[bool]]] = field(default_factory=list)

    @property
    def is_small(self) -> bool:
        """Whether it is a few pages of one file."""
        payload = sum(len(part) for _, parts in self.changes for part in parts)
        return not self.written and len(self.changes) * HEAD_MAX + payload <= ROOM_BATCH_MAX


def plan_batch(
    load: Callable[[ShareKey], ShareState], tickets: Sequence[Ticket[Operation, list[bool]]]
) -> Plan:
    """Decide a batch on committed state; tickets that cannot go into it are settled with Vanished."""
    plan = Plan()
    view = BatchView(load)
    for ticket in tickets:
        operation = ticket.operation
        answer: list[bool] = []
        if isinstance(operation, Store):
            if _vanished(view, operation):
                ticket.fail(Vanished())
                continue
            answer = [_plan_share(plan, view, operation, i) for i in range(len(operation.shares))]
        else:
            decide = view.assert_lease if isinstance(operation, Assert) else view.release
            for key in operation.keys:
                done, change = decide(key, operation.lease)
                answer.append(done)
                if change:
                    plan.changes.append((change, ()))
        plan.answers.append((ticket, answer))
    return plan


def _vanished(view: BatchView, operation: Store) -> bool:
    written = dict.fromkeys(file.key for file in operation.written.values())
    return any(
        share.key not in written
        and share_length(share) > SMALL_SHARE_MAX
        and not view.state(share.key).present
        for share in operation.shares
    )


def _plan_share(plan: Plan, view: BatchView, operation: Store, position: int) -> bool:
    share = operation.shares[position]
    length = share_length(share)
    large = length > SMALL_SHARE_MAX
    written = None
    if large and not view.state(share.key).present:
        written = next(file for file in operation.written.values() if file.key == share.key)
    new, change = view.store(share.key, share.lease, length, own_file=large)
    if change:
        plan.changes.append((change, share.parts if new and not large else ()))
    if new and written:
        plan.written.append(written)
    return new
