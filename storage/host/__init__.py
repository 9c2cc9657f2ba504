"""The ports on a real machine: its disk, clock, entropy and threads. The network is `storage.transport`."""

from storage.host.clock import SystemClock
from storage.host.disk import OsDisk, OsFile
from storage.host.entropy import SystemEntropy
from storage.host.lock import lock_directory
from storage.host.threads import ThreadOffload

__all__ = ["OsDisk", "OsFile", "SystemClock", "SystemEntropy", "ThreadOffload", "lock_directory"]
