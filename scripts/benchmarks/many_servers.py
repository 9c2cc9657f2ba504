"""Many storage servers in one process, with a servers file for `gridfs create`.

    with many_servers(directory, 200) as (pid, servers_file): ...

The process is `python -m scripts.benchmarks.many_servers DIR COUNT`; it says when all of them listen.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import trio

from scripts.benchmarks.child import LISTENING, child
from storage.identity import create_account
from storage.ports import UnixAddress
from storage.server import RunningServer, ServerConfig, run_server
from storage.system import system_machine
from storage.wire.url import format_access

KEPT_MEMORY_BYTES = 1 << 20
"""Of each; a server alone keeps more."""


@contextlib.contextmanager
def many_servers(directory: Path, count: int) -> Iterator[tuple[int, Path]]:
    """Their pid and their servers file."""
    directory.mkdir(mode=0o700)
    with child("many_servers", str(directory), str(count)) as pid:
        yield pid, directory / "servers"


async def serve(directory: Path, count: int) -> None:
    machine = system_machine()
    config = ServerConfig(kept_memory_bytes=KEPT_MEMORY_BYTES)
    lines = []
    async with trio.open_nursery() as nursery:
        for number in range(count):
            place = str(directory / str(number))
            address = UnixAddress(str(directory / "sockets" / str(number)))
            running: RunningServer = await nursery.start(run_server, machine, place, address, config)
            account = create_account(machine.disk, machine.entropy, place, "full")
            access = replace(
                running.access, account=account.name, secret=account.secret, rights=account.rights
            )
            lines.append(format_access(access) + "\n")
        (directory / "servers").write_text("".join(lines))
        print(LISTENING, flush=True)


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    trio.run(serve, Path(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    main()
