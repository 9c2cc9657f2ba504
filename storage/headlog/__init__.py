"""The head logs that a server keeps: the newest truth about file systems. See SPEC.md."""

from storage.format.head import HeadRecord, log_name, trim_signed_bytes
from storage.headlog.logs import HeadLogConfig, HeadLogs

__all__ = ["HeadLogConfig", "HeadLogs", "HeadRecord", "log_name", "trim_signed_bytes"]
