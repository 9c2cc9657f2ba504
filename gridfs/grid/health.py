"""Health: which servers not to ask first, and how long to wait for an answer. Pure; time is handed in.

A server that fails is demoted for a while that doubles with every failure in a row: reads go around it
and packs are placed elsewhere as long as that is possible, but before anything is given up, demoted
servers are asked too. Hedging by a server's own history will build on the same book.
"""

from __future__ import annotations

from dataclasses import dataclass

from gridfs.grid.roster import ServerId


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """Times in seconds of trio's clock."""

    deadline_s: float = 4.0
    """What any request may take, however small."""
    bytes_per_s_min: float = 1e6
    """... and the pace that is expected for its bytes and those on their way before it."""
    failed_s: float = 0.5
    """Demotion after a first failure that was quick (refused, unreachable)."""
    hung_s: float = 5.0
    """Demotion after a first missed deadline: the next one costs a whole deadline again."""
    lied_s: float = 60.0
    """Demotion after bytes that were not what the pack id certifies; further answers do not shorten it."""
    demotion_s_max: float = 60.0


@dataclass(slots=True)
class _Record:
    failures: int = 0
    failed_until: float = 0.0
    lied_until: float = 0.0


class HealthBook:
    """What is known of each server's recent behaviour."""

    def __init__(self, config: HealthConfig | None = None) -> None:
        self._config = config or HealthConfig()
        self._records: dict[ServerId, _Record] = {}

    def deadline_s(self, size_bytes: int) -> float:
        """Seconds to wait for an answer that has `size_bytes` to travel, those queued before it included."""
        return self._config.deadline_s + size_bytes / self._config.bytes_per_s_min

    def demoted(self, now: float) -> frozenset[ServerId]:
        """The servers not to ask first at this time."""
        return frozenset(
            server_id
            for server_id, record in self._records.items()
            if now < record.failed_until or now < record.lied_until
        )

    def worked(self, server_id: ServerId) -> None:
        """It answered in time."""
        record = self._records.get(server_id)
        if record is not None:
            record.failures, record.failed_until = 0, 0.0

    def failed(self, server_id: ServerId, now: float, *, hung: bool) -> None:
        """It answered with an error, could not be reached, or (hung) did not answer in time."""
        record = self._records.setdefault(server_id, _Record())
        if now < record.failed_until:
            return  # requests that were under way together fail together: that is one failure
        first = self._config.hung_s if hung else self._config.failed_s
        record.failed_until = now + min(self._config.demotion_s_max, first * 2.0 ** min(record.failures, 16))
        record.failures += 1

    def lied(self, server_id: ServerId, now: float) -> None:
        """Its bytes were not what the pack id certifies."""
        self._records.setdefault(server_id, _Record()).lied_until = now + self._config.lied_s
