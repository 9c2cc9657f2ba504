"""The ports on a real machine: its disk, clock, entropy and threads. The network is `storage.transport`."""

from storage.host.clock import SystemClock
from storage.host.disk import OsDisk, OsFile
from storage.host.entropy import SystemEntropy
from storage.host.heap import have_one_heap, keep_on_heap
from storage.host.lock import lock_directory
from storage.host.threads import ThreadOffload

__all__ = [
    "OsDisk",
    "OsFile",
    "SystemClock",
    "SystemEntropy",
    "ThreadOffload",
    "have_one_heap",
    "keep_on_heap",
    "lock_directory",
]
