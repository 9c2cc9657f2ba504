"""What figures were measured on, and what processes use: CPU seconds, resident memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.version import __version__

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("trio", "pyfuse3", "zfec", "cryptography", "blake3", "msgspec", "apsw")
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def configuration(arguments: dict[str, Any]) -> dict[str, Any]:
    """Versions, machine, kernel and commit."""
    processor = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "gridfs": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": f"{os.cpu_count()} x {processor or platform.machine()}, {memory / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        **arguments,
    }


def _commit() -> str:
    """With a plus where the tree has changes; empty where this is no clone."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    changes = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short", "HEAD") + changes


# ---- processes --------------------------------------------------------------------------------------


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that these processes have used, children that ended not counted."""
    return sum(_cpu_s(pid) for pid in pids)


def _cpu_s(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / TICKS_A_SECOND


def resident_bytes(pid: int) -> int:
    return _status_bytes(pid, "VmRSS:")


def peak_bytes(pid: int) -> int:
    """The most that was resident since the process started, or since `forget_peak`."""
    return _status_bytes(pid, "VmHWM:")


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


@dataclass
class Used:
    """Wall clock and CPU of a stretch of work; whole when the block is left."""

    seconds: float = 0.0
    client_cpu_s: float = 0.0
    server_cpu_s: float = 0.0


@contextmanager
def measured(client: Iterable[int], servers: Iterable[int]) -> Iterator[Used]:
    """Measure what happens in the block, by these processes."""
    client, servers, used = list(client), list(servers), Used()
    before = cpu_s(client), cpu_s(servers)
    began = time.monotonic()
    yield used
    used.seconds = time.monotonic() - began
    used.client_cpu_s = cpu_s(client) - before[0]
    used.server_cpu_s = cpu_s(servers) - before[1]


def at_once(works: Iterable[Any]) -> None:
    """Call each of these in a thread of its own; raises the first failure."""
    failures: list[BaseException] = []

    def guarded(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
