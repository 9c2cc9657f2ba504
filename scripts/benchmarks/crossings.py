"""Bytes that cross between processes and kernel during a stretch of work, counted by strace.

    with Crossings(daemon, servers) as crossings: ...
    crossings.bytes["servers", "sent"]

Kinds: read (from files), received and sent (sockets), replied (to /dev/fuse). Each crossing is a copy of the
kernel's, but for reads past the page cache and for sendfile. Everything is much slower meanwhile.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterable
from types import TracebackType

CALLS = {
    "pread64": "read",
    "preadv": "read",
    "preadv2": "read",
    "recvmsg": "received",
    "recvfrom": "received",
    "sendmsg": "sent",
    "sendto": "sent",
    "sendfile": "sent",
    "writev": "replied",
}
_BEGIN = re.compile(r"^(\d+)\s+(?:<\.\.\. )?(\w+)[ (]")
_END = re.compile(r"= (\d+)$")
ATTACH_SECONDS_MAX = 10.0


class Crossings:
    def __init__(self, daemon: Iterable[int], servers: Iterable[int]) -> None:
        self._pids = {"client": list(daemon), "servers": list(servers)}
        self.bytes: dict[tuple[str, str], int] = {}
        """By (who, kind)."""
        self._running: list[tuple[str, subprocess.Popen[bytes], str]] = []

    def __enter__(self) -> Crossings:
        self._directory = tempfile.TemporaryDirectory(prefix="gridfs-bench-")
        for who, pids in self._pids.items():
            file = f"{self._directory.name}/{who}"
            words = ["strace", "-f", "-q", "-s0", "-e", f"trace={','.join(CALLS)}", "-o", file]
            for pid in pids:
                words += ["-p", str(pid)]
            self._running.append((who, subprocess.Popen(words, stderr=subprocess.DEVNULL), file))
        deadline = time.monotonic() + ATTACH_SECONDS_MAX
        while not all(_is_traced(pid) for pids in self._pids.values() for pid in pids):
            if time.monotonic() > deadline:
                raise TimeoutError("strace does not attach")
            time.sleep(0.02)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for who, process, file in self._running:
            process.terminate()
            process.wait()
            with open(file, errors="replace") as lines:
                for line in lines:
                    self._count(who, line.rstrip())
        self._directory.cleanup()

    def _count(self, who: str, line: str) -> None:
        begin, end = _BEGIN.match(line), _END.search(line)
        if begin is not None and end is not None and begin[2] in CALLS:
            key = who, CALLS[begin[2]]
            self.bytes[key] = self.bytes.get(key, 0) + int(end[1])


def _is_traced(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as lines:
        return any(line.startswith("TracerPid:") and int(line.split()[1]) for line in lines)
