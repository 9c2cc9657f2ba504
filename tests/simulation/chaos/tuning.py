"""Small limits in place of the real ones: so gathering, trimming, braking and compaction happen often."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

from gridfs import assembly
from gridfs.files import carrying, checkpointing, gathering, journal, spool
from gridfs.meta import outbox, ranges
from storage.backends import disk, plan
from storage.headlog import HeadLogConfig
from storage.server import composition
from tests.simulation.chaos.plan import Limits


@contextlib.contextmanager
def tuned(limits: Limits) -> Iterator[None]:
    """Within, everything that is built has these limits."""
    patches: list[tuple[Any, str, Any]] = [
        (spool, "SLOT_BYTES_MIN", limits.slot_bytes),
        (journal, "GATHER_BYTES", limits.gather_bytes),
        (gathering, "JOURNAL_BYTES_MAX", limits.journal_bytes),
        (carrying, "CARRIED_BYTES_MAX", limits.carried_bytes),
        (outbox, "GATHERED_INODES_MAX", limits.gathered_inodes),
        (
            assembly,
            "FreezeConfig",
            partial(assembly.FreezeConfig, own_pack_bytes=limits.own_pack_bytes, idle_s=limits.idle_s),
        ),
        (
            assembly,
            "LogConfig",
            partial(
                assembly.LogConfig,
                durable_every_s=limits.durable_every_s,
                operations_max=limits.operations_max,
            ),
        ),
        (checkpointing, "JOURNAL_PACKS_MAX", limits.journal_packs),
        (ranges, "PART_BYTES", limits.part_bytes),
        (
            assembly,
            "CheckpointConfig",
            partial(assembly.CheckpointConfig, journal_bytes=limits.checkpoint_bytes),
        ),
        (
            assembly,
            "ReaderConfig",
            partial(assembly.ReaderConfig, segment_cache_bytes=limits.segment_cache_bytes),
        ),
        (composition, "DiskConfig", partial(composition.DiskConfig, volume_size_max=limits.volume_bytes)),
        (
            composition,
            "HeadLogs",
            partial(composition.HeadLogs, config=HeadLogConfig(garbage_bytes_min=limits.garbage_bytes)),
        ),
        (disk, "SMALL_SHARE_MAX", limits.small_share_bytes),
        (plan, "SMALL_SHARE_MAX", limits.small_share_bytes),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
