"""Health: how long to wait for a server before others are asked, and which servers not to ask first. Pure;
time is handed in.

A deadline comes from a server's own recent answers (`pace`), and is never much longer than what is usual of
all servers: one that was slow from the start is late from the start. To be late is not to be given up: what
another can give is asked of another, and the first answer counts.

A server that fails, or is late again and again, is demoted for a while that doubles each time until it
answers in time: reads go around it and packs are placed elsewhere as long as that is possible, but before
anything is given up, demoted servers are asked too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gridfs.grid.pace import CLASSES, Pace, size_class
from gridfs.grid.roster import ServerId

PEERS_EVERY = 64
"""Answers of all servers after which it is worked out again what is usual of them."""


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """Times in seconds of trio's clock."""

    first_s: float = 1.0
    """Deadline of a small request while nothing is known of any server."""
    deadline_s_min: float = 0.01
    """No deadline is shorter: below this, delays are this machine's own."""
    deadline_s_max: float = 4.0
    """No deadline of a small request is longer."""
    bytes_per_s_min: float = 1e6
    """The pace expected of a server for the bytes of a request, and those on their way before them,
    beyond `first_s` and `deadline_s_max`."""
    own: float = 1.0
    """A deadline is this times what is usual of the server itself ..."""
    own_large: float = 2.0
    """... or this, from `large_bytes` on: to ask for so much once more costs more than a moment's wait ..."""
    large_bytes: int = 256 << 10
    peers: float = 3.0
    """... and at most this times what is usual of all servers."""
    overdue: float = 16.0
    """A server that is silent for this many deadlines is demoted ..."""
    overdue_s: float = 2.0
    """... or for this long, if that is two deadlines at least."""
    races_lost_max: int = 3
    """So is one that was overtaken by others this many times in a row."""
    late_s: float = 0.5
    """Demotion after that, the first time."""
    failed_s: float = 0.5
    """Demotion after a first failure (refused, unreachable)."""
    lied_s: float = 60.0
    """Demotion after bytes that were not what the pack id certifies; further answers do not shorten it."""
    demotion_s_max: float = 60.0


@dataclass(slots=True)
class _Record:
    pace: Pace = field(default_factory=Pace)
    failures: int = 0
    failed_until: float = 0.0
    lied_until: float = 0.0
    races_lost: int = 0
    overtaken_at: float = float("-inf")


class HealthBook:
    """What is known of each server's recent behaviour."""

    def __init__(self, config: HealthConfig | None = None) -> None:
        self._config = config or HealthConfig()
        self._records: dict[ServerId, _Record] = {}
        self._peers: list[tuple[int, float | None]] = [(-PEERS_EVERY, None)] * CLASSES
        """By class of size: (answers of all servers when it was worked out, seconds)."""
        self._answers = 0

    # ---- how long

    def deadline_s(self, server_id: ServerId, size_bytes: int) -> float:
        """Seconds after which an answer of this server is late.

        size_bytes: what has to travel until it is here, bytes asked before it included.
        """
        config = self._config
        record = self._records.get(server_id)
        own = record.pace.usual_s(size_bytes) if record is not None else None
        peers = self._usual_of_all(size_bytes)
        slowest = size_bytes / config.bytes_per_s_min
        if own is None and peers is None:
            return config.first_s + slowest
        factor = config.own if size_bytes < config.large_bytes else config.own_large
        deadline = min(
            float("inf") if own is None else own * factor,
            float("inf") if peers is None else peers * config.peers,
        )
        return max(config.deadline_s_min, min(deadline, config.deadline_s_max + slowest))

    def limit_s(self, size_bytes: int) -> float:
        """Seconds after which a request is given up where that is to be."""
        return self._config.deadline_s_max + size_bytes / self._config.bytes_per_s_min

    def is_overdue(self, deadline_s: float, waited_s: float) -> bool:
        """Whether a server that let somebody wait for so long is to be demoted."""
        config = self._config
        return waited_s >= min(config.overdue * deadline_s, max(config.overdue_s, 2 * deadline_s))

    def _usual_of_all(self, size_bytes: int) -> float | None:
        """The middle one of what is usual of each server."""
        index = size_class(size_bytes)
        worked_out, seconds = self._peers[index]
        if self._answers - worked_out >= PEERS_EVERY or (seconds is None and self._answers > worked_out):
            each = [record.pace.usual_s(size_bytes) for record in self._records.values()]
            known = sorted(usual for usual in each if usual is not None)
            seconds = known[len(known) // 2] if known else None
            self._peers[index] = (self._answers, seconds)
        return seconds

    def usual_s(self, server_id: ServerId, size_bytes: int) -> float | None:
        """Seconds that most answers of this server take; None while too little is known."""
        record = self._records.get(server_id)
        return record.pace.usual_s(size_bytes) if record is not None else None

    # ---- whom not to ask first

    def demoted(self, now: float) -> frozenset[ServerId]:
        """The servers not to ask first at this time."""
        return frozenset(
            server_id
            for server_id, record in self._records.items()
            if now < record.failed_until or now < record.lied_until
        )

    def is_demoted(self, server_id: ServerId, now: float) -> bool:
        record = self._records.get(server_id)
        return record is not None and (now < record.failed_until or now < record.lied_until)

    def answered(self, server_id: ServerId, size_bytes: int, seconds: float, *, in_time: bool) -> None:
        """It answered after `seconds`; only an answer in time makes up for what was before."""
        record = self._record(server_id)
        record.pace.note(size_bytes, seconds)
        self._answers += 1
        if in_time:
            record.failures, record.failed_until, record.races_lost = 0, 0.0, 0

    def failed(self, server_id: ServerId, now: float) -> None:
        """It answered with an error, or could not be reached."""
        self._demote(self._record(server_id), now, self._config.failed_s)

    def overdue(self, server_id: ServerId, now: float) -> None:
        """It has been silent for long (`is_overdue`)."""
        self._demote(self._record(server_id), now, self._config.late_s)

    def overtaken(self, server_id: ServerId, size_bytes: int, asked_at: float, now: float) -> None:
        """What was asked of it at that time came from others, who were asked later."""
        record = self._record(server_id)
        record.pace.note(size_bytes, now - asked_at)
        self._answers += 1
        if asked_at < record.overtaken_at:
            return  # requests that were under way together are late together: that is one
        record.overtaken_at = now
        record.races_lost += 1
        if record.races_lost >= self._config.races_lost_max:
            self._demote(record, now, self._config.late_s)

    def lied(self, server_id: ServerId, now: float) -> None:
        """Its bytes were not what the pack id certifies."""
        self._record(server_id).lied_until = now + self._config.lied_s

    def _demote(self, record: _Record, now: float, first_s: float) -> None:
        if now < record.failed_until:
            return  # requests that were under way together fail together: that is one failure
        pause = first_s * 2.0 ** min(record.failures, 16)
        record.failed_until = now + min(self._config.demotion_s_max, pause)
        record.failures += 1

    def _record(self, server_id: ServerId) -> _Record:
        record = self._records.get(server_id)
        if record is None:
            record = self._records[server_id] = _Record()
        return record
