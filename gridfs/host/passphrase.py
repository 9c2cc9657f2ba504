"""Where a passphrase comes from: a command, or the terminal. Never the command line or the environment."""

from __future__ import annotations

import getpass
import shlex
import subprocess
import sys

from gridfs.codec.keys import WrongKey

COMMAND_S_MAX = 60.0


def from_command(command: str) -> bytes:
    """The first line that the command prints. Raises WrongKey."""
    try:
        done = subprocess.run(
            shlex.split(command),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_S_MAX,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise WrongKey(f"the passphrase command failed: {error}") from None
    if done.returncode:
        raise WrongKey(f"the passphrase command failed with status {done.returncode}")
    line = done.stdout.split(b"\n", 1)[0].rstrip(b"\r")
    if not line:
        raise WrongKey("the passphrase command printed nothing")
    return line


def from_terminal(prompt: str) -> bytes | None:
    """Ask on the terminal; None where there is none."""
    if not sys.stdin.isatty():
        return None
    return getpass.getpass(prompt).encode()
