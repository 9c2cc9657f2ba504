"""The command line's side of a daemon's control socket. Synchronous."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from typing import Any

from gridfs.exits import CommandError
from gridfs.host.home import Home


class NoDaemon(CommandError):
    """Nobody answers on the control socket."""


def ask(
    home: Home, word: str, timeout_s: float | None = 10.0, **values: object
) -> Generator[dict[str, Any], None, None]:
    """Send one request, with more `values`, and yield each line of its answer. Raises NoDaemon.

    The connection stays open until the generator is used up or closed.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout_s)
    with connection:
        try:
            with home.control_address() as address:
                connection.connect(address)
            connection.sendall(json.dumps({"do": word, **values}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                for line in lines:
                    yield json.loads(line)
        except (OSError, ValueError) as error:
            raise NoDaemon(f"the mount daemon of {home.folder} does not answer: {error}") from None


def status(home: Home) -> dict[str, Any]:
    """The daemon's status. Raises NoDaemon."""
    for answer in ask(home, "status"):
        return answer
    raise NoDaemon(f"the mount daemon of {home.folder} does not answer")
