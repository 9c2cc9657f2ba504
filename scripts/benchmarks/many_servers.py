"""Many storage servers in one process, with a servers file for `gridfs create`.

    with ManyServers(directory, 200) as many: ...; many.servers_file, many.pid

The process is `python -m scripts.benchmarks.many_servers DIR COUNT`; it says when all of them listen.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import trio

from scripts.benchmarks.machine import ROOT
from storage.identity import create_account
from storage.ports import UnixAddress
from storage.server import RunningServer, ServerConfig, run_server
from storage.system import system_machine
from storage.wire.url import format_access

LISTENING = "listening"
KEPT_MEMORY_BYTES = 1 << 20
"""Of each; a server alone keeps more."""


class ManyServers:
    def __init__(self, directory: Path, count: int) -> None:
        self._directory, self._count = directory, count
        self._process: subprocess.Popen[str] | None = None

    @property
    def servers_file(self) -> Path:
        return self._directory / "servers"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> ManyServers:
        self._directory.mkdir(mode=0o700)
        words = [sys.executable, "-m", "scripts.benchmarks.many_servers", str(self._directory)]
        self._process = subprocess.Popen(
            [*words, str(self._count)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != LISTENING:
            raise RuntimeError("the servers did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


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
