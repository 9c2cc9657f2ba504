"""A module of this package as a process of its own, for as long as it is wanted."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from scripts.benchmarks.machine import ROOT

LISTENING = "listening"
"""What the process prints when it is ready."""


@contextlib.contextmanager
def child(module: str, *words: str) -> Iterator[int]:
    """Run `python -m scripts.benchmarks.MODULE WORDS`, and end it with the block; gives its pid.

    Raises RuntimeError where it does not become ready.
    """
    command = [sys.executable, "-m", f"scripts.benchmarks.{module}", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if process.stdout.readline().strip() != LISTENING:
            raise RuntimeError(f"{module} did not start")
        yield process.pid
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
