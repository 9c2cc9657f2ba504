"""The client of one storage server: what a mount, or any other user of servers, calls.

`StorageClient` owns one connection and makes it when it is first needed, again and again when it is lost.
"""

from storage.client.client import StorageClient, append_request
from storage.client.records import (
    ClientConfig,
    ClientStatistics,
    ServerInfo,
    SharePut,
    Span,
)
from storage.headlog import HeadRecord
from storage.wire.frames import Traffic
from storage.wire.messages import PUT_SIZE_MAX, READV_SIZE_MAX, READV_SPANS_MAX, SHARES_MAX
from storage.wire.url import Access

__all__ = [
    "PUT_SIZE_MAX",
    "READV_SIZE_MAX",
    "READV_SPANS_MAX",
    "SHARES_MAX",
    "Access",
    "ClientConfig",
    "ClientStatistics",
    "HeadRecord",
    "ServerInfo",
    "SharePut",
    "Span",
    "StorageClient",
    "Traffic",
    "append_request",
]
