"""The head logs that a server keeps: the newest truth about file systems. See SPEC.md."""

from storage.format.head import HeadClaim, HeadRecord, HeadStanding, Succession, log_name, trim_signed_bytes
from storage.headlog.logs import HeadLogConfig, HeadLogs

__all__ = [
    "HeadClaim",
    "HeadLogConfig",
    "HeadLogs",
    "HeadRecord",
    "HeadStanding",
    "Succession",
    "log_name",
    "trim_signed_bytes",
]
